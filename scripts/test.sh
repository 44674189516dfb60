#!/usr/bin/env bash
# Installs what the tests need and runs all checks: bash scripts/test.sh [--fast] [pytest arguments]
# --fast leaves out the tests that are marked slow. CONTRIBUTING.md says how long each takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen=()
if [ "${1:-}" = "--fast" ]; then
    shift
    chosen=(-m "not slow")
fi
bash scripts/install.sh dev
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
bash scripts/install_programs.sh
bash demo/clinic/fetch_ohif.sh || echo "Without OHIF the checks of the clinic are skipped."
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist worksteal ${chosen[@]+"${chosen[@]}"} "$@"
