"""Where a LoRA adapter's experts are in the base's files, and their merge. A part of `sft.export.merge`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sft.errors import UserError
from sft.models.experts import find_pieces, is_transposed


@dataclass(frozen=True)
class ExpertChange:
    """What an adapter's weight `name` changes of one tensor of the base.

    That is the matrix of the expert at `index`, or all of a tensor that is one expert's alone (None); by all rows of
    the update, or by the `part`-th of `n_parts` equal parts of them.
    """

    name: str
    index: int | None
    part: int
    n_parts: int


def find_expert_changes(names: Iterable[str], in_base: Mapping[str, Path]) -> dict[str, list[ExpertChange]]:
    """Return for each tensor of the base that holds experts what of the adapter's weights changes it."""
    found: dict[str, list[ExpertChange]] = {}
    for name in sorted(names):
        if ".experts." not in name or name in in_base:
            continue
        pieces = find_pieces(name.removesuffix(".weight"), in_base)
        for i, piece in enumerate(pieces):
            found.setdefault(piece.name, []).append(ExpertChange(name, piece.index, i, len(pieces)))
    return found


def merge_experts(
    weight: torch.Tensor,
    changes: Iterable[ExpertChange],
    deltas: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    dtype: torch.dtype,
    model_type: str,
    base: Path,
) -> torch.Tensor:
    """Return a tensor of one or many experts in `dtype`, scale * B @ A added; one expert is in fp32 at a time.

    Raises:
        UserError: the base's experts have another shape than the adapter's.
    """
    merged = weight.to(dtype, copy=True)
    for change in changes:
        place = ... if change.index is None else change.index
        a, b = deltas[change.name]
        update = b.chunk(change.n_parts)[change.part].float() @ a.float()
        if change.index is not None and is_transposed(weight[place].shape, update.shape, model_type):
            update = update.T
        if update.shape != weight[place].shape:
            found = f"found {tuple(weight[place].shape)} in the base and {tuple(update.shape)} in the adapter"
            raise UserError(f"{base}: {change.name}: {found}; expected the base model the adapter was trained on")
        merged[place] = update.mul_(scale).add_(weight[place].float()).to(dtype)
    return merged
