#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# Trains a recipe with combinations of values, each as a member of a Slurm job array, and writes a table of the scores.
#
#   bash scripts/slurm_sweep.sh RECIPE.yaml OUTPUT_DIR [sbatch options] -- SWEEP.yaml [--key value ...]
#   bash scripts/slurm_sweep.sh RECIPE.yaml OUTPUT_DIR [sbatch options] -- KEY=VALUE,VALUE ... [KEY=VALUE,VALUE ...]
#
# e.g. bash scripts/slurm_sweep.sh recipes/qwen3vl.yaml outputs/sweep --gpus=1 -- learning_rate=1e-4,2e-4 lora_r=16,64
# writes outputs/sweep/learning_rate=1e-4,lora_r=16 and so on. SWEEP.yaml is the file that `sft/run.py --sweep` takes
# (docs/training.md); the second form writes one to OUTPUT_DIR/sweep.yaml. Members that are preempted are requeued and
# resume. Once all have ended, a last job writes OUTPUT_DIR/sweep.csv and prints the table to OUTPUT_DIR/slurm-table.log.
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
shift || { echo "found no --; expected it before SWEEP.yaml, or KEY=VALUE,VALUE" >&2; exit 2; }
[ $# -gt 0 ] || { echo "found nothing to vary; expected SWEEP.yaml, or KEY=VALUE,VALUE" >&2; exit 2; }

if [[ "$1" == *=* && ! -f "$1" ]]; then # a file may lie in a folder such as outputs/lora_r=16
    written=$(
        echo "parameters:"
        for axis in "$@"; do
            echo "  ${axis%%=*}: [${axis#*=}]"
        done
    )
    if [ -f "$folder/sweep.yaml" ] && [ "$(cat "$folder/sweep.yaml")" != "$written" ]; then
        echo "$folder/sweep.yaml: found another sweep, which its jobs read; expected the same values, another" \
            "OUTPUT_DIR, or no such file once its jobs have ended" >&2
        exit 2
    fi
    mkdir -p "$folder"
    printf '%s\n' "$written" >"$folder/sweep.yaml"
    set -- "$folder/sweep.yaml"
fi
sweep=("${PYTHON:-python}" sft/run.py "$recipe" --sweep "$1" --output_dir "$folder" "${@:2}")
listed=$("${sweep[@]}" --show runs) || exit # a run per line, as arguments that a shell reads
mapfile -t runs <<<"$listed"
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    mkdir -p "$folder"
    members=$(sbatch --parsable --array="0-$((${#runs[@]} - 1))" --output "$folder/slurm-%A_%a.log" \
        ${options[@]+"${options[@]}"} scripts/slurm_sweep.sh "$recipe" "$folder" -- "$@") || exit
    table=$(sbatch --parsable --job-name=table --dependency="afterany:$members" --output "$folder/slurm-table.log" \
        ${options[@]+"${options[@]}"} --wrap "$(printf '%q ' "${sweep[@]}" --show table)") || exit
    echo "submitted table $table of sweep $members"
    exit
fi
eval "arguments=(${runs[$SLURM_ARRAY_TASK_ID]})"
export REPOSITORY=$PWD
# shellcheck disable=SC2154 # eval sets it
exec bash scripts/slurm_train.sh "${CONFIG:-accelerate_configs/single_gpu.yaml}" "$recipe" "${arguments[@]}"
