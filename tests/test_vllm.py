"""The exported model and the adapter in vLLM: the answers of `hf`. Needs an environment of its own.

docs/serving.md says how to make one; VLLM_PYTHON names its interpreter.
"""

import json
import os
import subprocess

import pytest
from conftest import ROOT
from test_training import _write_recipe

from eval import rollout
from sft import run
from sft.export import merge

VLLM_PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = pytest.mark.skipif(
    not VLLM_PYTHON, reason="VLLM_PYTHON is not set; expected the Python of an environment with vLLM (docs/serving.md)"
)
# fp32 on both sides: with bf16 two engines round differently, and a tie between two tokens may go either way.
SETTINGS = "--load_in_4bit false --lora_dropout 0 --eval_strategy no --save_strategy no --max_steps 20"


@pytest.fixture(scope="module")
def models(tiny_checkpoints, tmp_path_factory):
    """A folder with an adapter trained on an unquantised base, and with the model it was merged into."""
    folder = tmp_path_factory.mktemp("vllm")
    run.main([str(_write_recipe(folder, tiny_checkpoints["qwen3_vl"])), *SETTINGS.split()])
    merge(folder / "out", tiny_checkpoints["qwen3_vl"], folder / "merged", "float32")
    return folder


def _command(models, name, output_dir):
    model = ["--model_path", str(models / name), "--test_csv", str(models / "val/tasks.csv")]
    return [*model, "--mode", "teacher", "--allow_overlap", "--output_dir", str(output_dir)]


def _read_answers(folder):
    return [json.loads(line)["raw_text"] for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["out", "merged"], ids=["base and LoRA adapter", "merged model"])
def test_vllm_gives_the_greedy_answers_of_hf(models, tmp_path, name):
    rollout.main(_command(models, name, tmp_path / "hf"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    command = [VLLM_PYTHON, "eval/rollout.py", "--engine", "vllm", *_command(models, name, tmp_path / "vllm")]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr[-3000:]
    answers = _read_answers(tmp_path / "hf")
    assert len(answers) == 6 and all(answers)
    assert _read_answers(tmp_path / "vllm") == answers
