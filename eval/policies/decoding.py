"""Greedy answers to many prompts at once, what they share computed once. Knows nothing of tasks, memory or files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Protocol

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from eval.policies.answer_store import AnswerStore
from eval.policies.prefix_store import PrefixStore
from sft.batches.collator import as_position_ids
from sft.json_text import find_object
from sft.models.llama4 import longest_sequence

N_DRAFTED = 12  # tokens guessed at once, at most: more cost a CPU more than they save, and a GPU nothing

Part = tuple[list[int], np.ndarray]  # some tokens of one row, and their positions (axes, T)
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
    """Restricts the next token of each answer of a batch, and the tokens after it along a draft."""

    def start(self, n_answers: int) -> Any: ...

    def mask_logits(self, logits: torch.Tensor, rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> None: ...

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
    model: Any,
    prompts: Sequence[EncodedPrompt],
    end: AnswerEnd,
    limit: int,
    store: AnswerStore,
    prefixes: PrefixStore,
    constraint: Constraint | None = None,
) -> list[GeneratedAnswer]:
    """Answer prompts greedily, each with at most `limit` tokens, and hold the answers in `store`.

    The system message is run once, and a screenshot that several prompts show, or that `prefixes` holds, is run once:
    keys and values are copied. One call of the model checks what `store` guesses of each answer's next tokens: those
    that the model would have chosen are kept, with the one it chooses after them. An answer that is complete leaves
    the batch, so that the others continue in a smaller one.
    """
    if len(prompts) > 1 and _is_too_wide(model, prompts, limit):
        half = len(prompts) // 2
        return [
            *generate_greedy(model, prompts[:half], end, limit, store, prefixes, constraint),
            *generate_greedy(model, prompts[half:], end, limit, store, prefixes, constraint),
        ]
    if constraint is not None:
        constraint.start(len(prompts))
    cache, mask = _read_prefixes(model, prompts, prefixes)
    own = [_cut(p, p.n_prefix, len(p.ids)) for p in prompts]  # each prompt's tokens after the screenshot
    starts = [int(p.positions.max()) + 1 for p in prompts]  # the position of each answer's first token
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows, unread = list(range(len(prompts))), own  # `unread`: the tokens of each row that the cache does not hold yet
    n_guessed = N_DRAFTED
    while rows:
        n_left = [limit - len(answers[row]) for row in rows]
        n_most = min(n_guessed, _count_room(model, cache, mask, unread, max(n_left)))
        drafts = [store.draft(own[row][0], answers[row], min(n - 1, n_most)) for row, n in zip(rows, n_left)]
        places = [starts[row] + len(answers[row]) for row in rows]
        cache, mask, logits = _check_drafts(model, cache, mask, unread, drafts, places)
        if constraint is not None:
            logits = logits.float()
            constraint.mask_logits(logits, rows, drafts)
        stay, n_right, n_kept = [], 0, [0] * len(rows)
        for i, (row, draft, chosen) in enumerate(zip(rows, drafts, logits.argmax(dim=-1).tolist())):
            n_equal = next((n for n, token in enumerate(draft) if token != chosen[n]), len(draft))
            n_right += n_equal
            for token in chosen[: n_equal + 1]:
                answers[row].append(token)
                ended[row] = end.is_reached(answers[row])
                if ended[row]:
                    break
                if constraint is not None:
                    constraint.accept(row, token)
            if not ended[row] and len(answers[row]) < limit:
                stay.append(i)
                n_kept[i] = n_equal
        if not stay:
            break
        n_guessed = min(N_DRAFTED, 2 + 2 * n_right // len(rows))  # few where the last guesses were wrong
        cache, mask = _forget_rejected(cache, mask, drafts, n_kept)
        cache, mask = _select(cache, mask, stay)
        rows, places = [rows[i] for i in stay], [starts[rows[i]] + len(answers[rows[i]]) - 1 for i in stay]
        unread = [(answers[row][-1:], np.full((len(own[row][1]), 1), place)) for row, place in zip(rows, places)]
    for answer in answers:
        store.add(answer)
    return [GeneratedAnswer(ids, is_ended) for ids, is_ended in zip(answers, ended)]


def _is_too_wide(model: Any, prompts: Sequence[EncodedPrompt], limit: int) -> bool:
    """Say whether padding might push a prompt across a border of the model's attention (see `longest_sequence`)."""
    widths = [[p.n_system, p.n_prefix - p.n_system, len(p.ids) - p.n_prefix] for p in prompts]
    longest = longest_sequence(model.config)
    return longest is not None and sum(map(max, zip(*widths))) + limit > longest


def _read_prefixes(model: Any, prompts: Sequence[EncodedPrompt], prefixes: PrefixStore) -> tuple[Any, torch.Tensor]:
    """Run the prompts up to the end of their screenshots, each distinct one that is not kept already.

    Returns:
        The cache of B rows and its (B, T) attention mask.
    """
    keys = [(p.image_key, tuple(p.ids[: p.n_prefix])) for p in prompts]
    distinct = list(dict.fromkeys(keys))
    may_keep = prefixes.has_room(sum(len(ids) for _, ids in distinct))
    missing = [key for key in distinct if not may_keep or key not in prefixes]
    if missing:
        cache, mask = _run_prefixes(model, [prompts[keys.index(key)] for key in missing], prefixes)
        if may_keep:
            prefixes.add(missing, cache, mask)
    if len(missing) < len(distinct):
        cache, mask = prefixes.build_cache(distinct)
    prefixes.shrink(distinct)
    return _select(cache, mask, [distinct.index(key) for key in keys])


def _run_prefixes(model: Any, prompts: Sequence[EncodedPrompt], prefixes: PrefixStore) -> tuple[Any, torch.Tensor]:
    """Run the beginnings of prompts, all different: the system message once and for all, then the screenshots.

    Each part is padded on the left, so the columns are [system, padding, screenshot].
    """
    system = tuple(commonprefix([p.ids[: p.n_system] for p in prompts]))
    n_system = len(system)
    cache, mask = None, torch.ones(len(prompts), 0, dtype=torch.long, device=model.device)
    if n_system:
        if system in prefixes:
            cache, mask = prefixes.build_cache([system])
        else:
            cache, mask = _extend(model, None, mask[:1], [_cut(prompts[0], 0, n_system)])
            prefixes.add([system], cache, mask)
        cache, mask = _select(cache, mask, [0] * len(prompts))
    images = {
        name: torch.cat([p.screenshot[name] for p in prompts]).to(model.device) for name in prompts[0].screenshot
    }
    images["pixel_values"] = images["pixel_values"].to(model.dtype)
    return _extend(model, cache, mask, [_cut(p, n_system, p.n_prefix) for p in prompts], **images)


def _cut(prompt: EncodedPrompt, start: int, end: int) -> Part:
    return prompt.ids[start:end], prompt.positions[:, start:end]


def _select(cache: Any, mask: torch.Tensor, rows: list[int]) -> tuple[Any, torch.Tensor]:
    """Return cache and mask with the given rows, a row as often as it is named."""
    if rows == list(range(len(mask))):
        return cache, mask
    index = torch.tensor(rows, device=mask.device)
    cache.reorder_cache(index)  # which, unlike `batch_select_indices`, linear attention's states know too
    return cache, mask[index]


def _extend(
    model: Any, cache: Any, mask: torch.Tensor, parts: Sequence[Part], **images: torch.Tensor
) -> tuple[Any, torch.Tensor]:
    """Run the next part of every row; return the cache and the mask over all columns."""
    ids, new_mask, positions = _pad(model, parts, "left")
    mask = torch.cat([mask, new_mask], dim=1)
    return _forward(model, cache, ids, mask, positions, 1, **images).past_key_values, mask


def _count_room(model: Any, cache: Any, mask: torch.Tensor, unread: Sequence[Part], n_left: int) -> int:
    """Count the tokens that may be guessed: none, where the cache could not forget those that are rejected.

    That is so with states (linear attention) and with windows. Llama-4's windows do nothing before its first border;
    `n_left` more tokens, one a column, must have room before it (see `longest_sequence`).
    """
    longest = longest_sequence(model.config)
    kinds = {DynamicLayer} if longest is None else {DynamicLayer, DynamicSlidingWindowLayer}
    if not {type(layer) for layer in cache.layers} <= kinds:
        return 0
    if longest is None:
        return N_DRAFTED
    return longest - mask.shape[1] - max(len(ids) for ids, _ in unread) - n_left + 1


def _check_drafts(
    model: Any, cache: Any, mask: torch.Tensor, unread: Sequence[Part], drafts: Sequence[list[int]], places: list[int]
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Run each row's unread tokens, padded on the left, and behind them its draft, padded on the right.

    `places` are the positions of the drafts' first tokens.

    Returns:
        The cache, the mask over all columns, and the (B, 1 + longest draft, vocabulary) logits that follow the last
        unread token and each drafted one.
    """
    n_axes, width = len(unread[0][1]), max(map(len, drafts))
    guessed = [(d, np.tile(np.arange(place, place + len(d)), (n_axes, 1))) for d, place in zip(drafts, places)]
    halves = zip(_pad(model, unread, "left"), _pad(model, guessed, "right"))
    ids, new_mask, positions = (torch.cat(pair, dim=-1) for pair in halves)
    mask = torch.cat([mask, new_mask], dim=1)
    output = _forward(model, cache, ids, mask, positions, 1 + width)
    return output.past_key_values, mask, output.logits


def _forget_rejected(
    cache: Any, mask: torch.Tensor, drafts: Sequence[list[int]], n_kept: list[int]
) -> tuple[Any, torch.Tensor]:
    """Drop the columns of drafts that no row keeps, and mask those that only others keep."""
    width, n_columns = max(map(len, drafts)), max(n_kept)
    if n_columns < width:
        cache.crop(n_columns - width)
        mask = mask[:, : n_columns - width]
    if n_columns:
        kept = torch.tensor(n_kept, device=mask.device)[:, None] > torch.arange(n_columns, device=mask.device)
        mask = torch.cat([mask[:, :-n_columns], kept.to(mask.dtype)], dim=1)
    return cache, mask


def _pad(model: Any, parts: Sequence[Part], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (B, T), attention mask (B, T) and positions (axes, B, T); what a pad token is does not matter."""
    width = max(len(ids) for ids, _ in parts)
    block = np.zeros((2 + len(parts[0][1]), len(parts), width), dtype=np.int64)
    for row, (ids, positions) in enumerate(parts):
        columns = slice(width - len(ids), width) if side == "left" else slice(len(ids))
        block[0, row, columns], block[1, row, columns], block[2:, row, columns] = ids, 1, positions
    on_device = torch.from_numpy(block).to(model.device)  # in one transfer
    return on_device[0], on_device[1], on_device[2:]


def _forward(
    model: Any,
    cache: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    n_logits: int,
    **images: torch.Tensor,
) -> Any:
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=as_position_ids(positions),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=n_logits,
        **images,
    )
