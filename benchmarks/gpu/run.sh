#!/usr/bin/env bash
# The first minutes on a CUDA GPU, without network: does training run, how fast is it, how much memory does it take.
# Every part writes OUT/gpu_*.json as soon as it has a figure and ends by its own time limit; OUT/run.log has all output.
# bash benchmarks/gpu/run.sh OUT [--minutes 8] [--wheels wheels] [--tiny]
#   --wheels  folder that pack.sh filled; its packages are used beside this machine's [wheels, where it exists]
#   --tiny    tiny models on the CPU, to test all but the GPU
set -uo pipefail
usage="expected OUT [--minutes 8] [--wheels wheels] [--tiny]"

out= minutes=8 wheels= tiny=
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:?$usage} && shift 2 ;;
        --wheels) wheels=$(realpath "${2:?$usage}") && shift 2 ;;
        --tiny) tiny=--tiny && shift ;;
        -*) echo "found $1; $usage" >&2 && exit 2 ;;
        *) out=$(realpath "$1") && shift ;;
    esac
done
if [ -z "$out" ]; then
    echo "found no OUT; $usage" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
total=$(awk -v m="$minutes" 'BEGIN { printf "%d", 60 * m }')
python=${PYTHON:-python3} wheels=${wheels:-$PWD/wheels} log=$out/run.log
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
: >"$log"

export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl || exit
    export PYTHONPATH=$PWD:$work/site BENCHMARK_COMMIT
    BENCHMARK_COMMIT=$(cat "$wheels/COMMIT")
fi
"$python" - "$tiny" <<'PYTHON' || exit 2
import sys
from importlib.util import find_spec

needed = (
    "torch transformers peft accelerate trl datasets bitsandbytes tokenizers safetensors huggingface_hub pydantic"
    " rapidfuzz codecarbon pycountry cpuinfo requests psutil pynvml numpy pandas pyarrow PIL yaml jinja2 matplotlib"
    " rich tqdm tensorboard"
)
if missing := [name for name in needed.split() if find_spec(name) is None]:
    sys.exit(f"found no {', '.join(missing)}; expected them here or in wheels of benchmarks/gpu/pack.sh (`packages`)")
import torch

if not torch.cuda.is_available() and not sys.argv[1]:
    sys.exit("found no CUDA GPU; expected one, or --tiny")
PYTHON

summary=() failed=0
# NAME SECONDS COMMAND...: runs a part for at most so many of 8 minutes, and never beyond the end
part() {
    local name=$1 left=$((total - SECONDS)) limit=$(($2 * total / 480)) started=$SECONDS code
    shift 2
    if [ "$left" -lt 10 ]; then
        summary+=("$name: not started, no time left") failed=1
        return
    fi
    echo "== $name" >>"$log"
    # shellcheck disable=SC2086
    timeout --signal=KILL $((limit < left ? limit : left)) "$python" -m "$@" $tiny 2>>"$log" | tee -a "$log"
    code=${PIPESTATUS[0]}
    case $code in
        0) summary+=("$name: $((SECONDS - started)) s") ;;
        137) summary+=("$name: stopped after $((SECONDS - started)) s") failed=1 ;;
        *) summary+=("$name: failed with exit code $code, see run.log") failed=1 && tail -n 15 "$log" ;;
    esac
}

base=$work/base
part "model folder" 40 benchmarks.gpu.base_8b "$base"
part "sft/run.py and eval/rollout.py" 90 benchmarks.gpu.smoke --json "$out/gpu_smoke.json"
for side in packed stock; do
    part "8 steps a screenshot, 1920x1080, $side" 75 benchmarks.gpu.training "$base" --side $side \
        --json "$out/gpu_training_8.json"
done
part "memory of the recipe" 75 benchmarks.gpu.recipe_step "$base" --json "$out/gpu_memory.json"
part "profile of one step" 60 benchmarks.gpu.training "$base" --profile --json "$out/gpu_profile.json"
for side in packed stock; do
    part "1 step a screenshot, 1280x800, $side" 75 benchmarks.gpu.training "$base" --side $side \
        --screen 1280x800 --steps_a_screenshot 1 --json "$out/gpu_training_1.json"
done
part "rollout" 75 benchmarks.gpu.rollout "$base" --json "$out/gpu_rollout.json"
tiny=${tiny:+--small} # its name there
part "a Maverick layer of experts" 60 benchmarks.llama4_experts --json "$out/gpu_experts.json"

printf '%s\n' "" "${summary[@]}" "Took $SECONDS s; results in $out" | tee -a "$log"
exit "$failed"
