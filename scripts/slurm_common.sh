#!/usr/bin/env bash
# What the Slurm jobs share: their --help, the way to the repository, and a training that is requeued on preemption.
# Sourced by scripts/slurm_*.sh, not run.

# Prints the comment at the top of a script without the #SBATCH lines.
show_help() {
    sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' "$1"
}

# Starts scripts/launch.sh once on every node of the job: train CONFIG RECIPE.yaml [--key value ...]
# Slurm's warning (SIGUSR1 before the time limit) and preemption (SIGTERM) go on to it; on its exit code 75 the job is
# put into the queue again under its own number.
train() {
    local config=$1 step code preempted=
    shift
    if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
        export MASTER_ADDR MASTER_PORT
    fi
    # shellcheck disable=SC2016 # expanded on each node
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
        if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
            n_processes=$((SLURM_JOB_NUM_NODES * ${GPUS_PER_NODE:?set it to the number of GPUs on each node}))
            LAUNCH_OPTIONS="--num_machines $SLURM_JOB_NUM_NODES --machine_rank $SLURM_NODEID ${LAUNCH_OPTIONS:-}"
            LAUNCH_OPTIONS="--main_process_ip $MASTER_ADDR --main_process_port $MASTER_PORT $LAUNCH_OPTIONS"
            export LAUNCH_OPTIONS="--num_processes $n_processes $LAUNCH_OPTIONS"
        fi
        exec bash scripts/launch.sh "$@"' bash "$config" "$@" &
    step=$!
    trap 'preempted=1' USR1 TERM
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
    return "$code"
}
