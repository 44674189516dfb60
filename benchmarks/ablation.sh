#!/usr/bin/env bash
# What memory and detected elements are worth on the demo, and how a model does on a program it was not trained on: the
# tables of docs/evaluation.md. Takes hours on 2 CPU cores; run again, it goes on where it stopped. Needs the extra ocr.
# bash benchmarks/ablation.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=outputs/ablation
recipe=benchmarks/ablation.yaml

mkdir -p $folder/recorded
cp demo/data/*.csv $folder/recorded
{ cat demo/data/train.csv; tail -qn +2 demo/data/val.csv demo/data/test.csv; } > $folder/recorded/all.csv
for part in train val test all; do
    [ -e $folder/elements/$part.csv ] || python -m sft.elements $folder/recorded/$part.csv --image_root demo/data \
        --to $folder/elements/$part.csv --cache_dir $folder/elements/cache --workers 2
done

python eval/ablate.py $recipe --test_csv $folder/elements/test.csv --image_root demo/data --output_dir $folder/parts \
    --variants full no_short_term no_long_term no_elements --seeds 1 2 3 --batch_size 32

# Divided by program: all recorded tasks of one are for the test.
for application in "OHIF Viewer" "Orthanc Explorer"; do
    split="$folder/without ${application}"
    python -m sft.split $folder/elements/all.csv --image_root demo/data --hold_out_application "$application" \
        --parts train=0.8,test=0.2 --output_dir "$split"
    for use_grounding in true false; do
        out="$split/elements $use_grounding"
        python sft/run.py $recipe --train_csv "$split/train.csv" --use_grounding $use_grounding --output_dir "$out/model" \
            --resume auto
        python eval/rollout.py --model_path "$out/model" --test_csv "$split/test.csv" --image_root demo/data \
            --output_dir "$out/rollout" --batch_size 32
    done
done
python benchmarks/ablation.py $folder --json benchmarks/results/ablation.json
