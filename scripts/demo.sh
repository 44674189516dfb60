#!/usr/bin/env bash
# The whole job on this machine's CPU: installs, fine-tunes the tiny base model on recorded OHIF and Orthanc tasks with
# QLoRA, rolls it out on unseen tasks with the memory it writes itself, and opens with a table and a report.
# bash scripts/demo.sh [--setup_only]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install.sh
if [ "${1:-}" = "--setup_only" ]; then
    exit 0
fi
started=$SECONDS
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore::FutureWarning

echo "1/2 Fine-tuning the tiny base model (QLoRA)"
rm -rf outputs/demo results/demo
# A thread per core, as accelerate would choose, but without its notice that nobody had said so.
threads=${OMP_NUM_THREADS:-$(python -c 'import psutil; print(psutil.cpu_count(logical=False) or 1)')}
OMP_NUM_THREADS=$threads accelerate launch --quiet --config_file accelerate_configs/cpu.yaml sft/run.py recipes/demo.yaml

echo "2/2 Rolling out the fine-tuned model on the test tasks"
python eval/rollout.py --model_path outputs/demo --test_csv demo/data/test.csv --output_dir results/demo --batch_size 32
echo "Took $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s after installation."
