"""What a rollout takes, for the compute ledger: steps, tokens, time, operations of its first batch."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eval.rollouts.run_info import RunInfo
from sft.compute.hardware import has_gpu
from sft.compute.recorder import RunRecorder
from sft.compute.tracking import read_compute_settings, shorten_path
from sft.recipe.settings import ComputeSettings, Purpose

if TYPE_CHECKING:
    from eval.policies.policy import Policy, RawAnswer, StepRequest


class MeteredPolicy:
    """A policy whose answers are counted; the operations of a model's first batch are counted as they run."""

    def __init__(self, policy: "Policy", recorder: RunRecorder):
        self.policy, self.recorder = policy, recorder
        self._n_steps = self._n_prompt = self._n_answer = 0
        self._busy_s = 0.0

    def answer(self, requests: "Sequence[StepRequest]") -> "list[RawAnswer]":
        is_first = self._n_steps == 0 and _is_model(self.policy)
        started = time.perf_counter()
        answers = self._answer_counted(requests) if is_first else self.policy.answer(requests)
        self._busy_s += time.perf_counter() - started
        self._n_steps += len(answers)
        self._n_prompt += sum(a.n_prompt_tokens for a in answers)
        self._n_answer += sum(a.n_answer_tokens for a in answers)
        self.recorder.note(
            steps=self._n_steps,
            prompt_tokens=self._n_prompt,
            answer_tokens=self._n_answer,
            busy_s=round(self._busy_s, 3),
            **_read_gpu_memory(),
        )
        return answers

    def _answer_counted(self, requests: "Sequence[StepRequest]") -> "list[RawAnswer]":
        from sft.compute.flops import FlopCounter

        with FlopCounter() as counter:
            answers = self.policy.answer(requests)
        if counter.total is not None:
            n_tokens = sum(a.n_prompt_tokens + a.n_answer_tokens for a in answers)
            self.recorder.note(
                flops_batch_measured=counter.total, flops_batch_steps=len(answers), flops_batch_tokens=n_tokens
            )
        return answers


def record_rollout(arguments: argparse.Namespace, info: RunInfo) -> RunRecorder:
    """Return the recorder of a rollout; the country is that of the model's recipe unless a flag says otherwise."""
    settings = ComputeSettings()
    if arguments.policy == "model" and arguments.model_path and arguments.engine != "openai":
        settings = read_compute_settings(Path(arguments.model_path))
    purpose: Purpose = arguments.run_purpose
    uses_gpu = False
    if arguments.policy == "model" and arguments.engine != "openai":
        import torch

        uses_gpu = torch.version.cuda is not None and has_gpu()  # torch.cuda would spoil a fork of vLLM's
    return RunRecorder(
        arguments.output_dir,
        "rollout",
        purpose,
        country=arguments.country_iso_code or settings.country_iso_code,
        about={
            "model": shorten_path(info.model_path) if info.model_path else info.policy,
            "engine": info.engine,
            "mode": info.mode,
            "data": {
                "csv": shorten_path(info.test_csv),
                "sha256": info.test_csv_sha256,
                "n_tasks": info.n_tasks,
                "n_steps": info.n_steps,
            },
        },
        uses_gpu=uses_gpu,
    )


def meter(build: "Callable[[], Policy]", recorder: RunRecorder) -> "Callable[[], Policy]":
    """Return a builder of the same policy, metered; it is built once."""
    return cache(lambda: MeteredPolicy(build(), recorder))


def _is_model(policy: "Policy") -> bool:
    """Say whether a model of this process answers; a replay need not import torch to know."""
    hf = sys.modules.get("eval.policies.hf")
    return hf is not None and isinstance(policy, hf.ModelPolicy)


def _read_gpu_memory() -> dict[str, float]:
    """Return the memory of this process; an engine in a process of its own (vLLM) is not seen."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9}
