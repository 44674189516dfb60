#!/usr/bin/env bash
# Installs what the clinic needs and this machine lacks: bash demo/clinic/install.sh
#
# Debian 12 with npm, as root (or with sudo). Python packages go to PYTHON's (.venv/bin/python), OHIF to outputs/clinic.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(chromium orthanc orthanc-dicomweb nginx-light fonts-dejavu-core fonts-liberation)
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
fi
bash demo/clinic/fetch_ohif.sh
if ! "$python" -c "import playwright, PIL, pydicom, pynetdicom, requests" 2>/dev/null; then
    "$python" -m pip install --quiet --constraint constraints.txt --requirement demo/clinic/requirements.txt
fi
