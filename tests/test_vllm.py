"""The exported model and the adapter in vLLM: the answers of `hf`. Needs an environment of its own.

docs/serving.md says how to make one; VLLM_PYTHON names its interpreter.
"""

import json
import os
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT

from eval import rollout
from sft import run
from sft.export import merge
from sft.merge import merge_weights

VLLM_PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = pytest.mark.skipif(
    not VLLM_PYTHON, reason="VLLM_PYTHON is not set; expected the Python of an environment with vLLM (docs/serving.md)"
)
BASE = ROOT / "demo/base"
# The demo's recipe, but for what vLLM serves only merged (weights trained in full, LoRA on the merger). fp32 on both
# sides: with bf16 two engines round differently, and a tie between two tokens may go either way.
SETTINGS = """
    --load_in_4bit false --lora_parts [language] --lora_modules_to_save [] --task_end 20 --max_steps 20
    --eval_strategy no --save_strategy no --load_best_model_at_end false --report_to none
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a demo adapter of the unquantised base, the model it was merged into, and the base in fp32."""
    folder = tmp_path_factory.mktemp("vllm")
    data = [word for key in ("train", "val") for word in (f"--{key}_csv", f"{ROOT}/demo/data/{key}.csv")]
    paths = ["--model_name_or_path", str(BASE), "--output_dir", f"{folder}/out", "--screenshot_cache", f"{folder}/px"]
    run.main([str(ROOT / "recipes/demo.yaml"), *SETTINGS.split(), *data, *paths])
    merge(folder / "out", BASE, folder / "merged", "float32")
    shutil.copytree(BASE, folder / "base")
    merge_weights(BASE, None, folder / "base", torch.float32)
    return folder


def _command(models, name, output_dir):
    """Roll out steps whose prompts do not depend on the answers before: one difference stays one."""
    data = ["--test_csv", f"{ROOT}/demo/data/val.csv", "--max_tasks", "4", "--mode", "teacher"]
    model = ["--model_path", str(models / name), "--agent_config", str(models / "out/agent_config.json")]
    return [*model, *data, "--output_dir", str(output_dir)]


def _read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def _read_answers(folder):
    return [step["raw_text"] for step in _read_steps(folder)]


@pytest.fixture(scope="module")
def base_answers(models):
    rollout.main(_command(models, "base", models / "hf_base"))
    return _read_answers(models / "hf_base")


@pytest.mark.parametrize("name", ["merged", "out"], ids=["merged model", "base and LoRA adapter"])
def test_vllm_gives_the_greedy_answers_of_hf(models, base_answers, name):
    rollout.main(_command(models, name, models / f"hf_{name}"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    rolled_out = _command(models, name, models / f"vllm_{name}")
    finished = subprocess.run(
        [VLLM_PYTHON, "eval/rollout.py", "--engine", "vllm", *rolled_out],
        cwd=ROOT,
        env={**environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    steps, served = _read_steps(models / f"hf_{name}"), _read_answers(models / f"vllm_{name}")
    answers = [step["raw_text"] for step in steps]
    n_equal = sum(a == b for a, b in zip(answers, served, strict=True))
    n_read, n_trained = sum(s["parse_status"] == "ok" for s in steps), sum(map(str.__ne__, answers, base_answers))
    print(
        f"{name}: {n_equal} of {len(answers)} answers equal, {len(set(answers))} of them distinct, {n_read} of them "
        f"actions; {n_trained} are not the untrained base's"
    )
    assert len(set(answers)) > len(answers) // 2 and n_read > 0.8 * len(answers), "answers that mean something"
    assert n_trained > len(answers) // 2, "the adapter is what answers"
    assert served == answers
