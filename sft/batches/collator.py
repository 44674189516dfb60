"""Training rows to batches with answer-only labels, padded or packed. The trainer knows nothing of how one is made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sft.batches.encoder import StepEncoder
from sft.batches.packing import IGNORED_LABEL, TokenSequence, pack_sequences
from sft.data.screenshots import ScreenshotError
from sft.errors import UserError
from sft.models.images import Layout
from sft.models.tree_attention import build_mask

Row = Mapping[str, Any]


class _Collator:
    """What both collators are built of; `pixel_dtype` is that of `pixel_values`."""

    def __init__(
        self,
        encoder: StepEncoder,
        loss_weights: Mapping[Any, float] | None = None,
        pixel_dtype: torch.dtype = torch.float32,
    ):
        self.encoder, self.loss_weights, self.pixel_dtype = encoder, loss_weights or {}, pixel_dtype


class PaddingCollator(_Collator):
    """Collates rows of `build_step_rows` into one right-padded batch, each row with its own screenshot."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Build a batch of B rows, T tokens the longest.

        Returns:
            `input_ids`, `attention_mask`, `labels`, `mm_token_type_ids`: (B, T) int64, labels -100 outside the answer
            and its end-of-turn token; `pixel_values`: (sum of patches, patch dim); `image_grid_thw`: (B, 3);
            `loss_weights`: (B, T) float32 where there are any. Llama-4 takes neither types nor grids.
        """
        images = encode_row_screenshots(self.encoder, rows, [Path(row["image"]) for row in rows])
        layout = self.encoder.layout
        grids = images[layout.grid_name].tolist()
        encoded = [encode_row(self.encoder, row, grid, 0, self.loss_weights) for row, grid in zip(rows, grids)]
        weights = {"loss_weights": pad([e.weights for e in encoded], 1.0)} if self.loss_weights else {}
        return {
            "input_ids": pad([e.ids for e in encoded], self.encoder.tokenizer.pad_token_id),
            "attention_mask": pad([np.ones_like(e.ids) for e in encoded], 0),
            "labels": pad([e.labels for e in encoded], IGNORED_LABEL),
            **({"mm_token_type_ids": pad([e.types for e in encoded], 0)} if layout.has_token_types else {}),
            **weights,
            **pick_inputs(layout, images, self.pixel_dtype),
        }


class PackingCollator(_Collator):
    """Collates rows into one packed sequence: a screenshot that several rows share is in it once.

    The batch carries `subtree_end` (see `sft.batches.packing`), which the trainer gives to the model as its mask.
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Build one sequence of T tokens.

        Returns:
            `input_ids`, `labels`, `mm_token_type_ids`, `subtree_end`: (1, T) int64; `position_ids`: (3, 1, T);
            `pixel_values`: (sum of patches, patch dim); `image_grid_thw`: (n distinct screenshots, 3);
            `loss_weights`: (1, T) float32 where there are any.
        """
        paths = {row["image_sha256"]: Path(row["image"]) for row in rows}
        image_keys = {key: i for i, key in enumerate(paths)}
        images = encode_row_screenshots(self.encoder, rows, list(paths.values()))
        layout = self.encoder.layout
        grids = images[layout.grid_name].tolist()
        keys = [image_keys[row["image_sha256"]] for row in rows]
        packed = pack_sequences(
            [encode_row(self.encoder, row, grids[k], k, self.loss_weights) for row, k in zip(rows, keys)]
        )
        weights = {"loss_weights": torch.from_numpy(packed.weights)[None]} if self.loss_weights else {}
        order = [keys[i] for i in packed.image_sources]
        pixels = torch.split(images["pixel_values"], [layout.count_rows(grid) for grid in grids])
        chosen = {
            "pixel_values": torch.cat([pixels[k] for k in order]),
            layout.grid_name: images[layout.grid_name][order],
        }
        return {
            "input_ids": torch.from_numpy(packed.ids)[None],
            "labels": torch.from_numpy(packed.labels)[None],
            **({"mm_token_type_ids": torch.from_numpy(packed.types)[None]} if layout.has_token_types else {}),
            "subtree_end": torch.from_numpy(packed.subtree_end)[None],
            "position_ids": as_position_ids(torch.from_numpy(packed.positions)[:, None]),
            **weights,
            **pick_inputs(layout, chosen, self.pixel_dtype),
        }


def encode_row_screenshots(encoder: StepEncoder, rows: Sequence[Row], paths: Sequence[Path]) -> dict[str, Any]:
    """Prepare the screenshots of rows.

    Raises:
        UserError: one went bad after the data was checked; the text names the data file and the row.
    """
    try:
        return encoder.encode_screenshots(paths)
    except ScreenshotError as error:
        place = next(row["place"] for row in rows if Path(row["image"]) == error.path)
        raise UserError(
            f"{place}: Image_id: {error}; it was whole when the data was checked: restore it and resume with "
            "--resume auto"
        ) from error


def pick_inputs(layout: Layout, images: Mapping[str, Any], pixel_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what of encoded screenshots the model takes, `pixel_values` in `pixel_dtype`.

    A vision tower that computes in bf16 rounds them before anything else: handed over so, they take half the memory
    of workers, transfer and card.
    """
    inputs = layout.pick_inputs(images)
    return {**inputs, "pixel_values": inputs["pixel_values"].to(pixel_dtype)}


def encode_row(
    encoder: StepEncoder, row: Row, grid: Sequence[int], image_key: int, loss_weights: Mapping[Any, float]
) -> TokenSequence:
    """Encode one step: the prompt exactly as in a rollout, the answer's ids appended; no token crosses the border."""
    prompt, types = encoder.encode_prompt(row["prompt"], grid)
    answer = encoder.encode_completion(row["completion"])
    types_array = np.array(types + [0] * len(answer), dtype=np.int64)
    weights = encoder.weigh_completion(row["completion"], loss_weights) if loss_weights else [1.0] * len(answer)
    return TokenSequence(
        ids=np.array(prompt + answer, dtype=np.int64),
        labels=np.array([IGNORED_LABEL] * len(prompt) + answer, dtype=np.int64),
        types=types_array,
        weights=np.array([1.0] * len(prompt) + weights, dtype=np.float32),
        positions=encoder.layout.place(types_array, grid),
        n_prompt=len(prompt),
        image_key=image_key,
    )


def pad(sequences: Sequence[Any], value: float, side: str = "right") -> torch.Tensor:
    """Stack sequences of numbers into (B, longest), filled with `value` on the given side."""
    tensors = [torch.as_tensor(s) for s in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def as_position_ids(positions: torch.Tensor) -> torch.Tensor:
    """Turn (axes, B, T) positions into what the model takes: all three axes of Qwen-VL, (B, T) where there is one."""
    return positions[0] if len(positions) == 1 else positions


def build_dense_mask(subtree_end: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spread `subtree_end` (1, T) out into the (1, 1, T, T) additive mask that eager attention takes."""
    may_see = build_mask(subtree_end[:, None, None])
    return torch.zeros_like(may_see, dtype=dtype).masked_fill(~may_see, torch.finfo(dtype).min)


def check_answer_only_labels(encoder: StepEncoder, rows: Sequence[Row]) -> str:
    """Assert that what is trained on decodes to exactly the answers and their ends of turn, padded and packed.

    Returns:
        The first row's supervised text, for the log.

    Raises:
        AssertionError: the labels are anything else.
    """
    tokenizer = encoder.tokenizer
    expected = [row["completion"] + tokenizer.eos_token for row in rows]
    padded = [tokenizer.decode(labels[labels != IGNORED_LABEL]) for labels in PaddingCollator(encoder)(rows)["labels"]]
    assert padded == expected, f"supervised texts {padded!r} are not the answers {expected!r}"
    labels = PackingCollator(encoder)(rows)["labels"][0]
    packed = tokenizer.decode(labels[labels != IGNORED_LABEL]).split(tokenizer.eos_token)[:-1]
    assert sorted(packed) == sorted(row["completion"] for row in rows), f"packed answers are {packed!r}"
    return padded[0]
