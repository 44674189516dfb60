"""The exported model and the adapter in vLLM, in the process and served: the answers of `hf`.

Needs an environment of its own, which scripts/test_vllm.sh makes; VLLM_PYTHON names its interpreter.
"""

import csv
import json
import os
import shutil
import subprocess
from functools import cache

import pytest
import torch
from conftest import ROOT, load_demo
from vllm_server import build_environment, serve

from eval import rollout
from eval.policies.openai_server import OpenAIPolicy
from eval.policies.policy import StepRequest
from sft import run
from sft.batches.encoding import StepEncoder
from sft.data.load import gold_memories
from sft.errors import UserError
from sft.export.__main__ import merge
from sft.export.merge import merge_weights
from sft.models.processors import load_processor
from sft.recipe.recipe import load_agent_config

VLLM_PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not VLLM_PYTHON,
        reason="VLLM_PYTHON is not set; bash scripts/test_vllm.sh makes an environment with vLLM and runs this",
    ),
]
BASE, DATA = ROOT / "demo/base", ROOT / "demo/data/val.csv"
# The demo's recipe, but for what vLLM serves only merged (weights trained in full, LoRA on the merger). fp32 on both
# sides: with bf16 two engines round differently, and a tie between two tokens may go either way.
SETTINGS = """
    --load_in_4bit false --lora_parts [language] --lora_modules_to_save [] --task_end 20 --max_steps 20
    --eval_strategy no --save_strategy no --load_best_model_at_end false --report_to none
"""
FORMS = pytest.mark.parametrize("name", ["merged", "out"], ids=["merged model", "base and LoRA adapter"])
KEY = "a key that no file may hold"
# What the models of the family are published with; a server samples by it unless it is told not to.
PUBLISHED_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Keep torch from waiting for a core that another program has: measured ten times as slow."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def models(one_thread, tmp_path_factory):
    """A folder with a demo adapter of the unquantised base, the model it was merged into, and the base in fp32."""
    folder = tmp_path_factory.mktemp("vllm")
    data = [word for key in ("train", "val") for word in (f"--{key}_csv", f"{ROOT}/demo/data/{key}.csv")]
    paths = ["--model_name_or_path", str(BASE), "--output_dir", f"{folder}/out", "--screenshot_cache", f"{folder}/px"]
    run.main([str(ROOT / "recipes/demo.yaml"), *SETTINGS.split(), *data, *paths])
    (folder / "merged").mkdir()
    merge(folder / "out", BASE, folder / "merged", "float32")
    _write_steps(folder / "steps.csv")
    shutil.copytree(BASE, folder / "base")
    merge_weights(BASE, None, folder / "base", torch.float32)
    for name in ("merged", "base"):
        path = folder / name / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **PUBLISHED_SAMPLING}))
    return folder


def _write_steps(path):
    """Write the first four steps of 12 tasks, each of another workflow, so that 12 prompts are answered at a time."""
    with DATA.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        tasks = {}
        for row in reader:
            tasks.setdefault(row["Task_id"], []).append(row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames)
        writer.writeheader()
        writer.writerows(row for task in list(tasks)[:34:3] for row in tasks[task][:4])


def _command(models, model, output_dir):
    """Roll out steps whose prompts do not depend on the answers before: one difference stays one."""
    agent = ["--agent_config", str(models / "out/agent_config.json")]
    data = ["--test_csv", str(models / "steps.csv"), "--image_root", str(DATA.parent), "--mode", "teacher"]
    return ["--model_path", str(model), *agent, *data, "--output_dir", str(output_dir)]


def _read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def hf_steps(models):
    """The steps that `--engine hf` answers, rolled out once a model."""

    @cache
    def roll_out(name):
        rollout.main(_command(models, models / name, models / f"hf_{name}"))
        return _read_steps(models / f"hf_{name}")

    return roll_out


def _compare(name, steps, served):
    """Hold every prompt's length and every answer to those of `hf`; say how many were compared."""
    answers = [step["raw_text"] for step in steps]
    n_equal = sum(a == s["raw_text"] for a, s in zip(answers, served, strict=True))
    print(f"{name}: {n_equal} of {len(answers)} answers equal, {len(set(answers))} of them distinct")
    assert len(answers) == 48
    assert [step["n_prompt_tokens"] for step in served] == [step["n_prompt_tokens"] for step in steps]
    assert [step["raw_text"] for step in served] == answers


@FORMS
def test_answers_are_the_adapters_and_mean_something(hf_steps, name):
    steps, base = hf_steps(name), hf_steps("base")
    answers = [step["raw_text"] for step in steps]
    n_read = sum(step["parse_status"] == "ok" for step in steps)
    n_trained = sum(answer != step["raw_text"] for answer, step in zip(answers, base, strict=True))
    print(f"{name}: {n_read} of {len(answers)} answers are actions, {n_trained} are not the untrained base's")
    assert len(set(answers)) > len(answers) // 2
    assert n_read > 0.8 * len(answers)
    assert n_trained > len(answers) // 2


@FORMS
def test_vllm_gives_the_greedy_answers_of_hf(models, hf_steps, name):
    finished = subprocess.run(
        [
            VLLM_PYTHON,
            "eval/rollout.py",
            "--engine",
            "vllm",
            *_command(models, models / name, models / f"vllm_{name}"),
        ],
        cwd=ROOT,
        env=build_environment(ROOT, VLLM_ENABLE_V1_MULTIPROCESSING="0"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    _compare(f"vLLM, {name}", hf_steps(name), _read_steps(models / f"vllm_{name}"))


def _serving_options(models, name):
    """The options of docs/serving.md, in fp32 and without compiling."""
    agent = load_agent_config(models / "out")
    n_tokens = agent.max_prompt_tokens + agent.max_answer_tokens
    common = f"--dtype float32 --enforce-eager --max-model-len {n_tokens} --generation-config vllm".split()
    common += ["--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0})]
    if name == "merged":
        return ["--model", str(models / "merged"), "--served-model-name", "agent", *common]
    pixels = json.dumps({"min_pixels": agent.min_pixels, "max_pixels": agent.max_pixels})
    lora = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"agent={models / 'out'}"]
    return ["--model", str(models / "base"), *lora, "--mm-processor-kwargs", pixels, *common]


@FORMS
def test_served_model_gives_the_greedy_answers_of_hf(models, hf_steps, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    log, output_dir = models / f"server_{name}.log", models / f"served_{name}"
    environment = build_environment(ROOT, VLLM_API_KEY=KEY)
    with serve(VLLM_PYTHON, _serving_options(models, name), log, environment) as url:
        assert _ask_for_prompt_ids(models, url) == _encode_first_prompts(models)
        engine = ["--engine", "openai", "--api_url", url]
        rollout.main([*engine, *_command(models, "agent", output_dir)])
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        with pytest.raises(UserError, match="HTTP 401"):
            rollout.main([*engine, *_command(models, "agent", models / f"refused_{name}")])
    _compare(f"vLLM's server, {name}", hf_steps(name), _read_steps(output_dir))
    written = [path for folder in (output_dir, models / f"refused_{name}") for path in folder.rglob("*")]
    assert not [path for path in [log, *written] if path.is_file() and KEY.encode() in path.read_bytes()]


def _first_requests(models):
    task, agent = load_demo(DATA)[0], load_agent_config(models / "out")
    memories = gold_memories(task, agent.memory_writer, agent.memory_budget_chars)
    return [
        StepRequest(task.task_id, step.index, task.instruction, memories[step.index], step.image_path)
        for step in task.steps[:6]
    ]


def _ask_for_prompt_ids(models, url):
    """Return the tokens that the server makes of a task's messages and screenshots; vLLM tells them if asked."""
    policy = OpenAIPolicy(url, "agent", load_agent_config(models / "out"), is_constrained=False)
    bodies = [policy._build_body(request) for request in _first_requests(models)]
    return [policy._post({**b, "return_token_ids": True, "max_tokens": 1})["prompt_token_ids"] for b in bodies]


def _encode_first_prompts(models):
    """Return the tokens that `hf` makes of the same steps."""
    agent = load_agent_config(models / "out")
    encoder = StepEncoder(load_processor(models / "out", agent.min_pixels, agent.max_pixels), agent)
    prompts = [(r, encoder.build_prompt(r.instruction, r.memory, r.image_path)) for r in _first_requests(models)]
    grid = encoder.layout.grid_name
    return [
        encoder.encode_prompt(prompt.text, encoder.encode_screenshots([request.image_path])[grid][0].tolist())[0]
        for request, prompt in prompts
    ]
