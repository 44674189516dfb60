#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# Trains a recipe with every combination of some values, each as a member of a Slurm job array.
#
#   bash scripts/slurm_sweep.sh RECIPE.yaml OUTPUT_DIR [sbatch options] -- KEY=VALUE,VALUE ... [KEY=VALUE,VALUE ...]
#
# e.g. bash scripts/slurm_sweep.sh recipes/qwen3vl.yaml outputs/sweep --gpus=1 -- learning_rate=1e-4,2e-4 lora_r=16,64
# writes outputs/sweep/learning_rate=1e-4,lora_r=16 and so on. Members that are preempted are requeued and resume.
# Environment: CONFIG, the accelerate configuration [accelerate_configs/single_gpu.yaml]; LAUNCH_OPTIONS; PYTHON.
set -uo pipefail
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}" || exit 2

if [ "${1:-}" = "--help" ] || [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' scripts/slurm_sweep.sh
    [ "${1:-}" = "--help" ]
    exit
fi
recipe=$1 folder=$2
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    options+=("$1")
    shift
done
shift || { echo "found no --; expected it before KEY=VALUE,VALUE" >&2; exit 2; }
[ $# -gt 0 ] || { echo "found nothing to vary; expected KEY=VALUE,VALUE" >&2; exit 2; }

combinations=("")
for axis in "$@"; do
    IFS=, read -ra values <<<"${axis#*=}"
    longer=()
    for combination in "${combinations[@]}"; do
        for value in "${values[@]}"; do
            longer+=("${combination:+$combination,}${axis%%=*}=$value")
        done
    done
    combinations=("${longer[@]}")
done
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    mkdir -p "$folder"
    sbatch --array="0-$((${#combinations[@]} - 1))" --output "$folder/slurm-%A_%a.log" ${options[@]+"${options[@]}"} \
        scripts/slurm_sweep.sh "$recipe" "$folder" -- "$@"
    exit
fi
chosen=${combinations[$SLURM_ARRAY_TASK_ID]}
IFS=, read -ra settings <<<"$chosen"
arguments=()
for setting in "${settings[@]}"; do
    arguments+=("--${setting%%=*}" "${setting#*=}")
done
export REPOSITORY=$PWD
exec bash scripts/slurm_train.sh "${CONFIG:-accelerate_configs/single_gpu.yaml}" "$recipe" \
    --output_dir "$folder/$chosen" "${arguments[@]}"
