#!/usr/bin/env bash
# What the Slurm jobs share: their --help, the way to the repository, and a training that is requeued on preemption.
# Sourced by scripts/slurm_*.sh, not run.

# Prints the comment at the top of a script without the #SBATCH lines.
show_help() {
    sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' "$1"
}

# Starts scripts/launch.sh once on every node of the job: train CONFIG RECIPE.yaml [--key value ...]
# Processes are started for the GPUs that Slurm gave each node, or PROCESSES_PER_NODE; without either as CONFIG says.
# Slurm's warning (SIGUSR1 before the time limit) and preemption (SIGTERM) go on to it; on its exit code 75 the job is
# put into the queue again under its own number.
train() {
    local config=$1 n_nodes=${SLURM_JOB_NUM_NODES:-1} per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    local options step code preempted=
    shift
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
    trap 'preempted=1' USR1 TERM
    # shellcheck disable=SC2016 # expanded on each node
    srun --export=ALL --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
        export LAUNCH_OPTIONS="--machine_rank $SLURM_NODEID $LAUNCH_OPTIONS"
        exec bash scripts/launch.sh "$@"' bash "$config" "$@" &
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
    return "$code"
}
