#!/usr/bin/env bash
#SBATCH --job-name=sft
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
# Trains as a Slurm job: on one GPU unless told otherwise, on the GPUs of a node, or on those of several nodes.
#
#   sbatch [sbatch options] scripts/slurm_train.sh CONFIG RECIPE.yaml [--key value ...]
#
# e.g. sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_train.sh accelerate_configs/multi_node_zero3.yaml RECIPE.yaml
# CONFIG is a file of accelerate_configs/. On several nodes output_dir must be on a shared file system.
# Partition, account, time, GPUs and CPUs are options of sbatch or its variables (SBATCH_PARTITION, SBATCH_TIMELIMIT).
# Submit from the repository, with the environment that has the package active. 300 s before the time limit, and on
# preemption, the step is finished, a checkpoint saved and the job requeued; it resumes from there.
# One process is started for each GPU that Slurm gives a node, or as many as PROCESSES_PER_NODE says; without either as
# CONFIG says. Environment: LAUNCH_OPTIONS, more options of `accelerate launch`, e.g. "--num_processes 4"; PYTHON
# [python]; REPOSITORY [where sbatch was called].
set -uo pipefail
cd "${REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}" || exit 2

if [ "${1:-}" = "--help" ] || [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' scripts/slurm_train.sh
    [ "${1:-}" = "--help" ]
    exit
fi
n_nodes=${SLURM_JOB_NUM_NODES:-1} per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
# below 32768, where the kernel begins to give ports to connections
options="--main_process_port $((20000 + SLURM_JOB_ID % 12000))"
if [ "$n_nodes" -gt 1 ]; then
    : "${per_node:?found no GPUs in this job; set PROCESSES_PER_NODE}"
    options+=" --num_machines $n_nodes --deepspeed_multinode_launcher standard"
    options+=" --main_process_ip $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
fi
if [ -n "$per_node" ]; then
    options+=" --num_processes $((n_nodes * per_node))"
    if [ "${SLURM_CPUS_ON_NODE:-$per_node}" -lt "$per_node" ]; then
        echo "found $SLURM_CPUS_ON_NODE CPU for $per_node processes; sbatch --cpus-per-task=N gives more" >&2
    fi
fi
export LAUNCH_OPTIONS="$options ${LAUNCH_OPTIONS:-}"

preempted=
trap 'preempted=1' USR1 TERM # the warning before the time limit, and preemption
# shellcheck disable=SC2016 # expanded on each node
srun --export=ALL --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
    export LAUNCH_OPTIONS="--machine_rank $SLURM_NODEID $LAUNCH_OPTIONS"
    exec bash scripts/launch.sh "$@"' bash "$@" &
step=$!
while kill -0 "$step" 2>/dev/null; do
    if [ -n "$preempted" ]; then
        kill -USR1 "$step" # which srun hands on to its tasks
        sleep 2
    else
        wait "$step"
    fi
done
wait "$step"
code=$?
if [ "$code" -eq 75 ] || { [ -n "$preempted" ] && [ "$code" -ne 0 ]; }; then
    echo "preempted: job $SLURM_JOB_ID goes into the queue again"
    scontrol requeue "$SLURM_JOB_ID" # ends this script; refused where Slurm has requeued the job already
    exit 75
fi
exit "$code"
