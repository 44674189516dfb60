"""Policies: what answers a step. Model, replay of the recording, or nothing. Knows nothing of scoring."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sft.collator import pad
from sft.encoding import StepEncoder
from sft.memory import Memory
from sft.prompts import AgentConfig, format_answer
from sft.trajectory import Trajectory


@dataclass(frozen=True)
class StepRequest:
    """One step to answer. `task_id` and `index` name it for the replay policy; they never reach a prompt."""

    task_id: str
    index: int
    instruction: str
    memory: Memory
    image_path: Path
    elements: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class RawAnswer:
    """What a policy said. `finish_reason` is "stop", or "length" where the token limit cut the answer."""

    text: str
    finish_reason: str = "stop"
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    latency_s: float = 0.0
    prompt_text: str = field(default="", repr=False)


class Policy(Protocol):
    """Answers a batch of steps, one `RawAnswer` a request, in order."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]: ...


class ModelPolicy:
    """Greedy answers of a vision-language model; one `generate` call a batch, padded on the left."""

    def __init__(self, model: Any, encoder: StepEncoder):
        self.model, self.encoder = model, encoder

    @torch.inference_mode()
    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        started = time.perf_counter()
        prompts = [self.encoder.build_prompt(r.instruction, r.memory, r.image_path, r.elements).text for r in requests]
        batch, lengths = self._build_batch(prompts, [r.image_path for r in requests])
        limit, tokenizer = self.encoder.agent.max_answer_tokens, self.encoder.tokenizer
        output = self.model.generate(
            **batch,
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        latency_s = (time.perf_counter() - started) / len(requests)
        results = []
        for ids, prompt, n_prompt in zip(answers, prompts, lengths):
            is_ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if is_ended else ids
            text = tokenizer.decode(ids, skip_special_tokens=True)
            reason = "stop" if is_ended else "length"
            results.append(RawAnswer(text, reason, n_prompt, len(ids) + is_ended, latency_s, prompt))
        return results

    def _build_batch(self, prompts: list[str], image_paths: list[Path]) -> tuple[dict[str, Any], list[int]]:
        batch = self.encoder.encode_screenshots(image_paths)
        encoded = [self.encoder.encode_prompt(p, g) for p, g in zip(prompts, batch["image_grid_thw"].tolist())]
        ids, types = [e[0] for e in encoded], [e[1] for e in encoded]
        batch["attention_mask"] = pad([[1] * len(i) for i in ids], 0, side="left")
        batch["mm_token_type_ids"] = pad(types, 0, side="left")
        batch["input_ids"] = pad(ids, self.encoder.tokenizer.pad_token_id, side="left")
        device, dtype = self.model.device, self.model.dtype
        moved = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in batch.items()}
        return moved, [len(i) for i in ids]


class ReplayPolicy:
    """Answers with the recording's own right answers: must score 100 %."""

    def __init__(self, trajectories: Iterable[Trajectory], agent: AgentConfig):
        self._answers = {
            (t.task_id, step.index): format_answer(step.gold, agent) for t in trajectories for step in t.steps
        }

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer(self._answers[r.task_id, r.index]) for r in requests]


class EmptyPolicy:
    """Answers nothing: must score 0, every step unparsable."""

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        return [RawAnswer("") for _ in requests]
