#!/usr/bin/env bash
# Installs this checkout into .venv with the versions of constraints.txt; does nothing where that has been done.
# Used by demo.sh, test.sh and test_vllm.sh: bash scripts/install.sh EXTRAS, where EXTRAS is "" or "dev".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-}
find_python() { # a version manager may put a name on PATH that only says it is not installed
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$name" ] && command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "found no Python 3.11 to 3.13; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2
    return 1
}

wanted=$(cat pyproject.toml constraints.txt | cksum)-$extras
if [ -f .venv/installed ] && [ "$(cat .venv/installed)" = "$wanted" ]; then
    exit 0
fi
python=$(find_python)
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2
    exit 1
fi
echo "Installing into .venv ..."
[ -x .venv/bin/pip ] || "$python" -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}"
echo "$wanted" >.venv/installed
