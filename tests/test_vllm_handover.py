"""What is handed to vLLM: no adapter that it takes in part only, and a process that its engine can be started from."""

import argparse
import importlib.util
import json
import logging
import os
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from eval.policies.vllm_engine import VllmPolicy, find_left_out
from eval.rollout import main
from eval.rollouts.metering import _read_gpu_memory, record_rollout
from eval.rollouts.run_info import RunInfo
from sft.agent import AgentConfig
from sft.errors import UserError

MODEL = "base_model.model.model"
LANGUAGE = f"{MODEL}.language_model.layers.0.self_attn.q_proj.lora_A.weight"
HAS_VLLM = importlib.util.find_spec("vllm") is not None


def write_adapter(folder, *names):
    """Write an adapter's files with tensors of these names."""
    folder.mkdir()
    save_file({name: torch.ones(1) for name in (LANGUAGE, *names)}, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "base", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "agent_config.json").write_text(json.dumps(asdict(TINY_AGENT)))
    return folder


LEFT_OUT = {
    "merger": (f"{MODEL}.visual.merger.linear_fc1.lora_B.weight", r"LoRA on merger"),
    "deepstack": (f"{MODEL}.visual.deepstack_merger_list.0.linear_fc2.lora_A.weight", "LoRA on merger"),
    "vision": (f"{MODEL}.visual.blocks.3.attn.qkv.lora_A.weight", r"LoRA on vision"),
    "experts": (f"{MODEL}.language_model.layers.0.feed_forward.experts.1.down_proj.lora_A.weight", "LoRA on experts"),
    "embeddings": (f"{MODEL}.language_model.embed_tokens.weight", r"weights saved in full \(embed_tokens\)"),
    "head": ("base_model.model.lm_head.weight", r"weights saved in full \(lm_head\)"),
}


@pytest.mark.parametrize(("name", "found"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_adapter_that_vllm_takes_in_part_is_refused_with_the_way_out(tmp_path, name, found):
    folder = write_adapter(tmp_path / "out", name)
    with pytest.raises(UserError, match=rf"found {found}, which vLLM leaves .*sft.export --model_path .*out --to DIR"):
        VllmPolicy(str(folder), None, AgentConfig(), False)


def test_every_part_that_is_left_out_is_named(tmp_path):
    names = [LEFT_OUT[part][0] for part in ("vision", "merger", "embeddings", "head")]
    assert find_left_out(write_adapter(tmp_path / "out", *names)) == [
        "LoRA on merger and vision",
        "weights saved in full (embed_tokens, lm_head)",
    ]
    assert find_left_out(write_adapter(tmp_path / "language")) == find_left_out(tmp_path) == []


def test_served_adapter_that_lies_here_is_warned_of(tmp_path, caplog):
    folder = write_adapter(tmp_path / "out", LEFT_OUT["merger"][0])
    csv = write_trajectories(tmp_path / "data", build_tasks(1))
    engine = ["--engine", "openai", "--api_url", "nowhere", "--model_path", "m"]
    arguments = ["--agent_config", str(folder / "agent_config.json"), "--test_csv", str(csv)]
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="--api_url: found 'nowhere'"):
        main([*engine, *arguments, "--output_dir", str(tmp_path / "run")])
    assert "found LoRA on merger, which vLLM leaves out if it serves this adapter" in caplog.text


@pytest.mark.skipif(HAS_VLLM, reason="a package in vLLM's place is looked at")
@pytest.mark.parametrize(("before", "expected"), [(None, "spawn"), ("fork", "fork")])
def test_engine_of_vllm_is_spawned_unless_the_user_says_otherwise(tmp_path, monkeypatch, before, expected):
    """A package in vLLM's place notes how a process would be started when it is imported."""
    note = f"import os; open({str(tmp_path / 'method')!r}, 'w').write(os.environ['VLLM_WORKER_MULTIPROC_METHOD'])"
    (tmp_path / "vllm.py").write_text(note)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr("os.environ", {**os.environ})
    os.environ.pop("VLLM_WORKER_MULTIPROC_METHOD", None)
    if before:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = before
    with pytest.raises(UserError, match="found no vllm"):
        VllmPolicy(str(write_adapter(tmp_path / "out")), None, AgentConfig(), False)
    assert (tmp_path / "method").read_text() == expected


@pytest.mark.parametrize("engine", ["vllm", "hf"])
def test_metering_asks_cuda_nothing_before_a_model_is_loaded(tmp_path, monkeypatch, engine):
    """A process that has asked CUDA for its devices can no longer be forked into one that uses them."""

    def ask(*_):
        raise AssertionError("CUDA was asked")

    for name in ("is_available", "device_count", "max_memory_allocated", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, ask)
    arguments = argparse.Namespace(
        policy="model",
        model_path=None,
        engine=engine,
        run_purpose="inference",
        country_iso_code=None,
        output_dir=tmp_path,
        mode="own",
    )
    info = RunInfo(mode="own", engine=engine, model_path="m", test_csv="t.csv", image_root=None, n_tasks=1, n_steps=1)
    recorder = record_rollout(arguments, info)
    assert recorder.n_gpus in (0, 1)
    assert _read_gpu_memory() == {}
