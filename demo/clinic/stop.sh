#!/usr/bin/env bash
# Ends the clinic that start.sh started: bash demo/clinic/stop.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
exec "$python" -m demo.clinic.stack stop
