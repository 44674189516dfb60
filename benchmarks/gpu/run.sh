#!/usr/bin/env bash
# The first minutes on a CUDA GPU, without network: does training run, how fast is it, how much memory does it take.
# Every part writes OUT/gpu_*.json as soon as it has a figure and ends by its own time limit; OUT/run.log has all output.
# bash benchmarks/gpu/run.sh OUT [--minutes 14] [--only attention,training,profile] [--wheels wheels] [--tiny]
#   --only    these parts, in this order: attention training profile recipe rollout stock smoke forms single experts [all]
#   --wheels  folder that pack.sh filled; its packages are used beside this machine's [wheels, where it exists]
#   --tiny    tiny models on the CPU, to test all but the GPU
set -uo pipefail
usage="expected OUT [--minutes 14] [--only PARTS] [--wheels wheels] [--tiny]"
parts="attention training profile recipe rollout stock smoke forms single experts"

out="" minutes=14 only=${parts// /,} wheels="" tiny=""
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:?$usage} && shift 2 ;;
        --only) only=${2:?$usage} && shift 2 ;;
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
for name in ${only//,/ }; do
    if [[ " $parts " != *" $name "* ]]; then
        echo "--only: found $name; expected some of ${parts// /,}" >&2
        exit 2
    fi
done
chosen() { [[ ",$only," == *",$1,"* ]]; }
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
# NAME SECONDS COMMAND...: runs a part for at most so many seconds, and never beyond the end
run_part() {
    local name=$1 limit=$2 left=$((total - SECONDS)) started=$SECONDS code
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

# What a figure most often is wanted of comes first. On a fresh machine each process takes 25 to 35 s to start: imports,
# 8 s for the 8B's weights, and a first step of 6 to 13 s, in which Triton compiles.
base=$work/base
chosen attention && run_part "attention" 120 benchmarks.gpu.attention --json "$out/gpu_attention.json"
if chosen training || chosen profile || chosen recipe || chosen rollout || chosen stock || chosen forms || chosen single; then
    run_part "model folder" 60 benchmarks.gpu.base_8b "$base"
fi
if chosen training || chosen profile; then
    profile=()
    chosen profile && profile=(--profile "$out/gpu_profile.json")
    run_part "training, 8 steps a screenshot, packed" 130 benchmarks.gpu.training "$base" --side packed \
        --json "$out/gpu_training_8.json" "${profile[@]}"
fi
chosen recipe && run_part "memory of the recipe" 130 benchmarks.gpu.recipe_step "$base" --json "$out/gpu_memory.json"
chosen rollout && run_part "rollout" 150 benchmarks.gpu.rollout "$base" --json "$out/gpu_rollout.json"
chosen stock && run_part "training, 8 steps a screenshot, stock" 110 benchmarks.gpu.training "$base" --side stock \
    --json "$out/gpu_training_8.json"
chosen smoke && run_part "sft/run.py and eval/rollout.py" 150 benchmarks.gpu.smoke --json "$out/gpu_smoke.json"
if chosen forms; then
    for form in "true off" "true on" "selective on" "false on"; do # 4,096 tokens a batch: without checkpointing it fits
        run_part "training, checkpointing ${form% *}, compiled ${form#* }" 100 benchmarks.gpu.training "$base" \
            --side packed --checkpointing "${form% *}" --compiled "${form#* }" --tokens_per_batch 4096 \
            --json "$out/gpu_training_forms.json"
    done
fi
if chosen single; then
    for side in packed stock; do
        run_part "training, 1 step a screenshot, $side" 110 benchmarks.gpu.training "$base" --side $side \
            --screen 1280x800 --steps_a_screenshot 1 --json "$out/gpu_training_1.json"
    done
fi
tiny=${tiny:+--small} # its name there
chosen experts && run_part "a Maverick layer of experts" 90 benchmarks.llama4_experts --json "$out/gpu_experts.json"

printf '%s\n' "" "${summary[@]}" "Took $SECONDS s; results in $out" | tee -a "$log"
exit "$failed"
