#!/usr/bin/env bash
# Starts the clinic on 127.0.0.1: Orthanc, OHIF behind nginx, and a DICOM peer. Installs first what is missing.
#
#     bash demo/clinic/start.sh        (bash demo/clinic/stop.sh ends it)
#
# Debian 12 with npm, as root (or with sudo). CLINIC_PORT_BASE (8300) is the first of four ports; state: outputs/clinic.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
PYTHON=$python bash demo/clinic/install.sh
exec "$python" -m demo.clinic.stack start
