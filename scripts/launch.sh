#!/usr/bin/env bash
# Starts the training processes of this machine, and on SIGTERM or SIGUSR1 lets them finish the step and save.
#
#   bash scripts/launch.sh CONFIG RECIPE.yaml [--key value ...]
#
# CONFIG is a file of accelerate_configs/. The training resumes from the newest whole checkpoint of output_dir.
# Environment: LAUNCH_OPTIONS, more options of `accelerate launch`, e.g. "--num_processes 4"; PYTHON [python].
# Exit codes: 0 finished; 75 preempted and saved: start the same command again; anything else is a failure.
set -uo pipefail

if [ "${1:-}" = "--help" ] || [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    [ "${1:-}" = "--help" ]
    exit
fi
config=$1 recipe=$2
shift 2
read -ra options <<<"${LAUNCH_OPTIONS:-}"

# Signals the processes of sft/run.py below $1. The launcher itself would end them within seconds: it is left alone.
signal_training() {
    local child
    while read -r -d ' ' child; do
        signal_training "$child"
        if grep -q 'sft/run\.py' "/proc/$child/cmdline" 2>/dev/null; then
            kill -USR1 "$child" 2>/dev/null
        fi
    done < <(cat "/proc/$1/task"/*/children 2>/dev/null) # pgrep is not in every container
}

(
    trap '' TERM USR1 # the training processes set handlers of their own; the launcher ignores what it is not told of
    exec "${PYTHON:-python}" -m accelerate.commands.accelerate_cli launch --quiet --config_file "$config" \
        ${options[@]+"${options[@]}"} sft/run.py "$recipe" --resume auto "$@"
) &
launcher=$!
preempted=
trap 'preempted=1' TERM USR1
trap 'kill -INT "$launcher"; exit 130' INT

while kill -0 "$launcher" 2>/dev/null; do
    if [ -n "$preempted" ]; then # again and again: a process that has just started does not listen yet
        signal_training "$launcher"
        sleep 2
    else
        wait "$launcher"
    fi
done
wait "$launcher"
code=$?
if [ -n "$preempted" ] && [ "$code" -ne 0 ]; then
    exit 75
fi
exit "$code"
