"""A short training on a tiny model, and what starts it in real processes that can be disturbed."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from trajectory_samples import build_tasks, write_trajectories

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
model_name_or_path: {base}
train_csv: {folder}/tasks.csv
dtype: float32
lora_r: 4
lora_dropout: 0.1
min_pixels: 16384
max_pixels: 32768
memory_budget_chars: 400
max_prompt_tokens: 2048
max_answer_tokens: 160
tokens_per_batch: 700
use_cpu: true
bf16: false
max_steps: 12
learning_rate: 1.0e-2
logging_steps: 1
save_strategy: steps
save_steps: 3
save_total_limit: 2
report_to: none
gradient_checkpointing: false
seed: 7
"""
PREEMPTED = 75
SECRETS = {
    "HF_TOKEN": "hf_mayNeverBeWritten",
    "WANDB_API_KEY": "0123mayNeverBeWritten",
    "OPENAI_API_KEY": "sk-mayNeverBeWritten",
}


USER, HOST = "user-mayNeverBeWritten", "host-mayNeverBeWritten"
NAMES_HOST = f"""
import platform, socket
socket.gethostname = socket.getfqdn = platform.node = lambda *_: "{HOST}"
"""


def name_user_and_host(folder):
    """Return the variables of a process whose user and machine are called `USER` and `HOST`, for what Python asks."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(NAMES_HOST)
    names = {"USER": USER, "LOGNAME": USER, "USERNAME": USER, "HOSTNAME": HOST, "HOME": str(folder / USER)}
    return {**os.environ, **SECRETS, **names, "PYTHONPATH": f"{ROOT}:{folder}", "HF_HUB_OFFLINE": "1"}


def write_recipe(folder, base):
    """Write the recipe and its five tasks of three steps; return the recipe's path."""
    write_trajectories(folder, build_tasks(5))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, folder=folder))
    return path


@contextmanager
def start_attempts(recipe):
    """Give a function that runs attempts (see training_server.py) one after the other on one folder: their exit codes.

    The arguments of an attempt follow the recipe and --output_dir; without any they are `--resume auto`. `recipe`
    takes the place of the common one.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **SECRETS}
    command = [sys.executable, str(ROOT / "tests/training_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as server:

        def attempt(output_dir, *attempts, recipe=recipe):
            first = [str(recipe), "--output_dir", str(output_dir)]
            attempts = [{**a, "arguments": [*first, *a.get("arguments", ["--resume", "auto"])]} for a in attempts]
            print(json.dumps(attempts), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield attempt
        server.stdin.close()


def printed(folder, number=0):
    """Return what an attempt's processes printed."""
    return (folder / f"attempt-{number}.log").read_text()


def find_secrets(folder, *texts):
    """Return where the secrets of the environment stand: files below the folder, texts by their number."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {number: text.encode() for number, text in enumerate(texts)}
    return [place for place, content in contents.items() if any(s.encode() in content for s in SECRETS.values())]


def load_adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def read_losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def assert_same_bits(folder, other):
    first, second = load_adapter(folder), load_adapter(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
