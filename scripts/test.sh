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
if [ ! -d .venv/apart/trackio ]; then # it takes no Pillow 13, so it lies apart, and its tests alone look there
    pip install --quiet --target .venv/apart "trackio>=0.43" "pillow<13" 2>/dev/null ||
        echo "Without trackio its tests are skipped."
fi
bash scripts/install_programs.sh
bash demo/clinic/fetch_ohif.sh || echo "Without OHIF the checks of the clinic are skipped."
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist worksteal ${chosen[@]+"${chosen[@]}"} "$@"
