#!/usr/bin/env bash
#SBATCH --job-name=sft
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# Trains on the GPUs of several nodes with ZeRO-3 as a Slurm job; output_dir must be on a shared file system.
#
#   sbatch [sbatch options] scripts/slurm_multi_node.sh RECIPE.yaml [--key value ...]
#
# Partition, account, time, GPUs and CPUs are options of sbatch or its variables (SBATCH_PARTITION, SBATCH_TIMELIMIT).
# Submit from the repository, with the environment that has the package active. 300 s before the time limit, and on
# preemption, the step is finished, a checkpoint saved and the job requeued; it goes on from there.
# One process is started for each GPU that Slurm gives a node, or as many as PROCESSES_PER_NODE says.
# Environment: CONFIG, the accelerate configuration [accelerate_configs/multi_node_zero3.yaml];
# LAUNCH_OPTIONS, more options of `accelerate launch`, e.g. "--num_processes 4"; REPOSITORY [where sbatch was called].
set -uo pipefail
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}" || exit 2
source scripts/slurm_common.sh

if [ "${1:-}" = "--help" ] || [ $# -lt 1 ]; then
    show_help scripts/slurm_multi_node.sh
    [ "${1:-}" = "--help" ]
    exit
fi
train "${CONFIG:-accelerate_configs/multi_node_zero3.yaml}" "$@"
