"""Greedy answers to many prompts at once, what they share computed once. Knows nothing of tasks, memory or files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Protocol

import numpy as np
import torch

from sft.batches.collator import as_position_ids, pad
from sft.json_text import find_object
from sft.models.llama4 import longest_sequence

Screenshot = dict[str, torch.Tensor]  # what the model takes of one image: `pixel_values` and, with Qwen-VL, its grid


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as tokens. `ids`: (T,); `positions`: (3, T), or (1, T) where the model has one axis.

    The first `n_system` tokens come before the screenshot, the first `n_prefix` end with it or with its elements.
    `image_key` says which screenshot: prompts with equal keys and equal prefix ids have equal prefixes.
    """

    ids: list[int]
    positions: np.ndarray
    n_system: int
    n_prefix: int
    image_key: Any
    screenshot: Screenshot


@dataclass(frozen=True)
class GeneratedAnswer:
    """The answer's tokens, its end-of-turn token included; `is_ended` is False where the token limit cut it."""

    ids: list[int]
    is_ended: bool


class Constraint(Protocol):
    """Restricts the next token of each answer of a batch."""

    def start(self, n_answers: int) -> Any: ...

    def mask_logits(self, logits: torch.Tensor, rows: Sequence[int]) -> None: ...

    def accept(self, row: int, token: int) -> None: ...


class AnswerEnd:
    """Finds where an answer is complete: at a token that ends it, or where the object that will be read closes.

    `end_ids` are the model's own ends, in addition to the tokenizer's end of turn (`read_end_ids`).
    """

    def __init__(self, tokenizer: Any, end_ids: Collection[int] = ()):
        self.tokenizer = tokenizer
        self._end_ids = {tokenizer.eos_token_id, *end_ids}
        self._closing = {i for token, i in tokenizer.get_vocab().items() if "}" in token}

    def is_reached(self, ids: Sequence[int]) -> bool:
        """Say whether the last token completes the answer; nothing that follows would be read."""
        if ids[-1] in self._end_ids:
            return True
        if ids[-1] not in self._closing:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return find_object(text, is_whole=False).fields is not None


def read_end_ids(model: Any) -> list[int]:
    """Return the tokens that a model's generation config says end its answers; nothing else in it is used.

    The published Qwen models name `<|endoftext|>` as well as `<|im_end|>`, and sampling defaults, which greedy
    decoding does not use.
    """
    config = getattr(model, "generation_config", None)
    ids = config.eos_token_id if config is not None else None
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


@torch.inference_mode()
def generate_greedy(
    model: Any, prompts: Sequence[EncodedPrompt], end: AnswerEnd, limit: int, constraint: Constraint | None = None
) -> list[GeneratedAnswer]:
    """Answer prompts greedily, each with at most `limit` tokens.

    The system message is run once, a screenshot that several prompts show is run once, and their keys and values
    are copied. An answer that is complete leaves the batch, so that the others continue in a smaller one.
    """
    if len(prompts) > 1 and _is_too_wide(model, prompts, limit):
        half = len(prompts) // 2
        return [
            *generate_greedy(model, prompts[:half], end, limit, constraint),
            *generate_greedy(model, prompts[half:], end, limit, constraint),
        ]
    if constraint is not None:
        constraint.start(len(prompts))
    cache, mask, logits = _read_prompts(model, prompts)
    position = torch.tensor([int(p.positions.max()) + 1 for p in prompts], device=model.device)
    n_axes = len(prompts[0].positions)
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
            cache, mask = _select(cache, mask, stay)
            tokens, position = tokens[stay], position[stay]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = _forward(model, cache, tokens[:, None], mask, position.expand(n_axes, -1)[..., None])
        logits, position = output.logits[:, -1], position + 1
    return [GeneratedAnswer(ids, is_ended) for ids, is_ended in zip(answers, ended)]


def _is_too_wide(model: Any, prompts: Sequence[EncodedPrompt], limit: int) -> bool:
    """Say whether padding might push a prompt across a border of the model's attention (see `longest_sequence`)."""
    widths = [[p.n_system, p.n_prefix - p.n_system, len(p.ids) - p.n_prefix] for p in prompts]
    longest = longest_sequence(model.config)
    return longest is not None and sum(map(max, zip(*widths))) + limit > longest


def _read_prompts(model: Any, prompts: Sequence[EncodedPrompt]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Run the prompts: the system message once, each distinct screenshot once, then each prompt's own tokens.

    Each part is padded on the left, so the columns are [system, padding, screenshot, padding, own tokens].

    Returns:
        The cache of B rows, its (B, T) attention mask, and the (B, vocabulary) logits after each prompt.
    """
    groups: dict[Any, int] = {}
    group_of = [groups.setdefault((p.image_key, tuple(p.ids[: p.n_prefix])), len(groups)) for p in prompts]
    firsts = [prompts[group_of.index(g)] for g in range(len(groups))]
    n_system = len(commonprefix([p.ids[: p.n_system] for p in prompts]))
    cache, mask, logits = None, torch.ones(len(firsts), 0, dtype=torch.long, device=model.device), torch.empty(0)
    if n_system:
        cache, mask, logits = _extend(model, None, mask[:1], [_cut(prompts[0], 0, n_system)])
        cache, mask = _select(cache, mask, [0] * len(firsts))
    images = {name: torch.cat([p.screenshot[name] for p in firsts]).to(model.device) for name in firsts[0].screenshot}
    images["pixel_values"] = images["pixel_values"].to(model.dtype)
    cache, mask, logits = _extend(model, cache, mask, [_cut(p, n_system, p.n_prefix) for p in firsts], **images)
    cache, mask = _select(cache, mask, group_of)
    return _extend(model, cache, mask, [_cut(p, p.n_prefix, len(p.ids)) for p in prompts])


def _cut(prompt: EncodedPrompt, start: int, end: int) -> tuple[list[int], np.ndarray]:
    return prompt.ids[start:end], prompt.positions[:, start:end]


def _select(cache: Any, mask: torch.Tensor, rows: list[int]) -> tuple[Any, torch.Tensor]:
    """Return cache and mask with the given rows, a row as often as it is named."""
    if rows == list(range(len(mask))):
        return cache, mask
    index = torch.tensor(rows, device=mask.device)
    cache.reorder_cache(index)  # which, unlike `batch_select_indices`, linear attention's states know too
    return cache, mask[index]


def _extend(
    model: Any,
    cache: Any,
    mask: torch.Tensor,
    parts: Sequence[tuple[list[int], np.ndarray]],
    **images: torch.Tensor,
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Run the next part of every row; return the cache, the mask over all columns and the last logits."""
    ids, new_mask, positions = _pad_left(model, parts)
    mask = torch.cat([mask, new_mask], dim=1)
    output = _forward(model, cache, ids, mask, positions, **images)
    return output.past_key_values, mask, output.logits[:, -1]


def _pad_left(
    model: Any, parts: Sequence[tuple[list[int], np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (B, T), attention mask (B, T) and positions (axes, B, T); what a pad token is does not matter."""
    ids = pad([ids for ids, _ in parts], 0, side="left")
    mask = pad([[1] * len(ids) for ids, _ in parts], 0, side="left")
    axes = range(len(parts[0][1]))
    positions = torch.stack([pad([p[axis] for _, p in parts], 0, side="left") for axis in axes])
    return ids.to(model.device), mask.to(model.device), positions.to(model.device)


def _forward(
    model: Any, cache: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **images: torch.Tensor
) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=as_position_ids(positions),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **images,
    )
