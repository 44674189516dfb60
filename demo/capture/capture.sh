#!/usr/bin/env bash
# Re-create demo/data from nothing: install the clinical software, record both programs, build the CSV files.
#
#     bash demo/capture/capture.sh [WORK_FOLDER]
#
# Debian 12 with Python 3.11+ and npm, as root (or with sudo). Takes about an hour on 2 cores; run again, it goes on
# where it stopped. For a look: LIMIT=3 records the first tasks alone, DATA says where the CSV files go.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=${1:-outputs/capture}
data=${DATA:-demo/data}
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv"
fi
python=$(cd "$work/venv/bin" && pwd)/python
PYTHON=$python bash demo/clinic/install.sh

limit=${LIMIT:+--limit $LIMIT}
# shellcheck disable=SC2086 # two words, or none
"$python" -m demo.capture.record --application orthanc --out "$work/raw/orthanc" $limit
# shellcheck disable=SC2086
"$python" -m demo.capture.record --application ohif --out "$work/raw/ohif" $limit
"$python" -m demo.capture.build --raw "$work/raw/orthanc" "$work/raw/ohif" --out "$data"
