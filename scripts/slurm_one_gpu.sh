#!/usr/bin/env bash
#SBATCH --job-name=sft
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --gpus=1
# Trains on one GPU as a Slurm job.
#
#   sbatch [sbatch options] scripts/slurm_one_gpu.sh RECIPE.yaml [--key value ...]
#
# Partition, account, time, GPUs and CPUs are options of sbatch or its variables (SBATCH_PARTITION, SBATCH_TIMELIMIT).
# Submit from the repository, with the environment that has the package active. 300 s before the time limit, and on
# preemption, the step is finished, a checkpoint saved and the job requeued; it goes on from there.
# Environment: CONFIG, the accelerate configuration [accelerate_configs/single_gpu.yaml];
# LAUNCH_OPTIONS, more options of `accelerate launch`, e.g. "--num_processes 4"; REPOSITORY [where sbatch was called].
set -uo pipefail
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}" || exit 2
source scripts/slurm_common.sh

if [ "${1:-}" = "--help" ] || [ $# -lt 1 ]; then
    show_help scripts/slurm_one_gpu.sh
    [ "${1:-}" = "--help" ]
    exit
fi
train "${CONFIG:-accelerate_configs/single_gpu.yaml}" "$@"
