#!/usr/bin/env bash
# Re-create demo/data from nothing: install the clinical software, record both programs, build the CSV files.
#
#     bash demo/capture/capture.sh [WORK_FOLDER]
#
# Debian 12 with Python 3.11+ and npm, as root (or with sudo). Takes about 90 minutes on 2 cores; run again, it goes on where it stopped.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mkdir -p "${1:-$here/../../outputs/capture}" && cd "${1:-$here/../../outputs/capture}" && pwd)
ohif_version=3.12.10
packages=(chromium orthanc orthanc-dicomweb nginx-light fonts-dejavu-core fonts-liberation)

if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
fi

python="$work/venv/bin/python"
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --requirement "$here/../clinic/requirements.txt"

if [ ! -f "$work/package/dist/index.html" ]; then
    (cd "$work" && npm pack --silent "@ohif/app@$ohif_version" && tar -xzf "ohif-app-$ohif_version.tgz")
fi

export PYTHONPATH="$(cd "$here/../.." && pwd)"
"$python" -m demo.capture.record --application orthanc --out "$work/raw/orthanc"
"$python" -m demo.capture.record --application ohif --out "$work/raw/ohif" --ohif_dist "$work/package/dist"
"$python" -m demo.capture.build --raw "$work/raw/orthanc" "$work/raw/ohif" --out "$here/../data"
