"""Greedy answers to many prompts at once, what they share computed once. Knows nothing of tasks, memory or files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sft.collator import pad

Screenshot = tuple[torch.Tensor, torch.Tensor]  # (patches, patch dim) pixels and the (1, 3) grid of one image


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as tokens. `ids`: (T,); `positions`: (3, T); its first `n_prefix` tokens end with the screenshot.

    `image_key` says which screenshot: prompts with equal keys and equal prefix ids have equal prefixes.
    """

    ids: list[int]
    positions: np.ndarray
    n_prefix: int
    image_key: Any
    screenshot: Screenshot


@dataclass(frozen=True)
class GeneratedAnswer:
    """The answer's tokens, its end-of-turn token included; `is_ended` is False where the token limit cut it."""

    ids: list[int]
    is_ended: bool


class Constraint(Protocol):
    """Restricts what each answer of a batch may go on with."""

    def mask_logits(self, logits: torch.Tensor, rows: Sequence[int]) -> None: ...

    def accept(self, row: int, token: int) -> None: ...


class AnswerEnd:
    """Finds where an answer is complete: at the end-of-turn token, or where its JSON object closes."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._closing = {i for token, i in tokenizer.get_vocab().items() if "}" in token}

    def is_reached(self, ids: Sequence[int]) -> bool:
        """Say whether the last token completes the answer; nothing that follows would be read."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        if ids[-1] not in self._closing:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        try:
            json.JSONDecoder().raw_decode(text, text.index("{"))
        except ValueError:
            return False
        return True


@torch.inference_mode()
def generate_greedy(
    model: Any, prompts: Sequence[EncodedPrompt], end: AnswerEnd, limit: int, constraint: Constraint | None = None
) -> list[GeneratedAnswer]:
    """Answer prompts greedily, each with at most `limit` tokens.

    Prompts that begin with the same system message and screenshot share the keys and values of that prefix, which is
    run once. An answer that is complete leaves the batch, so that the others go on in a smaller one.
    """
    cache, mask, logits = _read_prompts(model, prompts)
    position = torch.tensor([int(p.positions.max()) + 1 for p in prompts], device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows = list(range(len(prompts)))
    while rows:
        if constraint is not None:
            logits = logits.float()
            constraint.mask_logits(logits, rows)
        tokens = logits.argmax(dim=-1)
        for row, token in zip(rows, tokens.tolist()):
            answers[row].append(token)
            ended[row] = end.is_reached(answers[row])
            if constraint is not None and not ended[row]:
                constraint.accept(row, token)
        stay = [i for i, row in enumerate(rows) if not ended[row] and len(answers[row]) < limit]
        if not stay:
            break
        if len(stay) < len(rows):
            rows = [rows[i] for i in stay]
            index = torch.tensor(stay, device=model.device)
            cache.batch_select_indices(index)
            tokens, mask, position = tokens[index], mask[index], position[index]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = _forward(model, cache, tokens[:, None], mask, position.expand(3, -1)[..., None])
        logits, position = output.logits[:, -1], position + 1
    return [GeneratedAnswer(ids, is_ended) for ids, is_ended in zip(answers, ended)]


def _read_prompts(model: Any, prompts: Sequence[EncodedPrompt]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Run the prompts: distinct prefixes first, then each prompt's own tokens on a copy of its prefix's cache.

    Both parts are padded on the left, so the columns are [padding, prefix, padding, own tokens].

    Returns:
        The cache of B rows, its (B, T) attention mask, and the (B, vocabulary) logits after each prompt.
    """
    groups: dict[Any, int] = {}
    group_of = [groups.setdefault((p.image_key, tuple(p.ids[: p.n_prefix])), len(groups)) for p in prompts]
    firsts = [prompts[group_of.index(g)] for g in range(len(groups))]
    ids, mask, positions = _pad_left(model, [(p.ids[: p.n_prefix], p.positions[:, : p.n_prefix]) for p in firsts])
    output = _forward(
        model,
        None,
        ids,
        mask,
        positions,
        pixel_values=torch.cat([p.screenshot[0] for p in firsts]).to(model.device, model.dtype),
        image_grid_thw=torch.cat([p.screenshot[1] for p in firsts]).to(model.device),
    )
    cache = output.past_key_values
    index = torch.tensor(group_of, device=model.device)
    if group_of != list(range(len(prompts))):
        cache.batch_select_indices(index)
    ids, own_mask, positions = _pad_left(model, [(p.ids[p.n_prefix :], p.positions[:, p.n_prefix :]) for p in prompts])
    mask = torch.cat([mask[index], own_mask], dim=1)
    output = _forward(model, cache, ids, mask, positions)
    return output.past_key_values, mask, output.logits[:, -1]


def _pad_left(
    model: Any, parts: Sequence[tuple[list[int], np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (B, T), attention mask (B, T) and positions (3, B, T); what a pad token is does not matter."""
    ids = pad([ids for ids, _ in parts], 0, side="left")
    mask = pad([[1] * len(ids) for ids, _ in parts], 0, side="left")
    positions = torch.stack([pad([p[axis] for _, p in parts], 0, side="left") for axis in range(3)])
    return ids.to(model.device), mask.to(model.device), positions.to(model.device)


def _forward(
    model: Any, cache: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **images: torch.Tensor
) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **images,
    )
