#!/usr/bin/env bash
#SBATCH --job-name=rollout
#SBATCH --requeue
#SBATCH --open-mode=append
# Rolls a model out as a Slurm job array, the tasks shared out over its members, and merges their results.
#
#   bash scripts/slurm_rollout.sh N OUTPUT_DIR [sbatch options] -- --model_path FOLDER --test_csv test.csv [...]
#
# submits N members and a job that merges OUTPUT_DIR/shard-0 ... into OUTPUT_DIR/merged once all have ended well. What
# follows -- goes to eval/rollout.py. A member that is preempted is requeued and resumes.
# sbatch options may be needed for GPUs: --gpus=1. Environment: PYTHON [python].
set -euo pipefail
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}" || exit 2

if [ "${1:-}" = "--help" ] || [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' scripts/slurm_rollout.sh
    [ "${1:-}" = "--help" ]
    exit
fi
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    folder=$1
    shift
    exec "${PYTHON:-python}" eval/rollout.py "$@" --output_dir "$folder/shard-$SLURM_ARRAY_TASK_ID" \
        --num_shards "$SLURM_ARRAY_TASK_COUNT" --shard "$SLURM_ARRAY_TASK_ID"
fi

n_members=$1 folder=$2
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    options+=("$1")
    shift
done
shift || { echo "found no --; expected it before the arguments of eval/rollout.py" >&2; exit 2; }
mkdir -p "$folder"
shards=()
for ((i = 0; i < n_members; i++)); do
    shards+=("$folder/shard-$i")
done
logs=(--output "$folder/slurm-%A_%a.log")
members=$(sbatch --parsable --array="0-$((n_members - 1))" "${logs[@]}" ${options[@]+"${options[@]}"} \
    scripts/slurm_rollout.sh "$folder" "$@")
merge=$(printf '%q ' "${PYTHON:-python}" eval/score.py merge "$folder/merged" "${shards[@]}")
merging=$(sbatch --parsable --job-name=merge --dependency="afterok:$members" --output "$folder/slurm-merge.log" \
    ${options[@]+"${options[@]}"} --wrap "$merge")
echo "submitted rollout $members and merge $merging"
