#!/usr/bin/env bash
# What a model does in the running programs of the demo, and what their checks say of the recordings, of a model that
# says nothing, and of other patients: the figures of docs/live.md. About an hour on 2 CPU cores; run again, it goes on
# where it stopped. Needs what demo/clinic/start.sh installs.
# bash benchmarks/live.sh [MODEL [OFFLINE_ROLLOUT]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

model=${1:-outputs/demo}
offline=${2:-results/demo}
folder=outputs/live
tasks="--tasks demo/data/test.csv --environment demo.clinic"

mkdir -p $folder
# shellcheck disable=SC2086 # several words
python eval/live.py --model_path "$model" $tasks --offline "$offline" --film --output_dir $folder/model
# shellcheck disable=SC2086
python eval/live.py --policy replay $tasks --output_dir $folder/replay
# shellcheck disable=SC2086
python eval/live.py --policy empty $tasks --output_dir $folder/empty
for part in test val; do
    grep -qs " proved, " $folder/proved_$part.txt ||
        python -m demo.clinic.prove --data demo/data/$part.csv >$folder/proved_$part.txt || true
done
python -m benchmarks.live $folder --json benchmarks/results/live.json
