"""Training rows to batches with answer-only labels, padded or packed. The trainer knows nothing of how one is made."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sft.batches.encoder import StepEncoder
from sft.batches.packing import IGNORED_LABEL, TokenSequence, pack_sequences
from sft.batches.vision_cache import VisionCache
from sft.data.screenshots import ScreenshotError, hash_screenshot, read_version
from sft.errors import UserError
from sft.models.tree_attention import build_mask
from sft.models.vision_features import ShownScreenshots

Row = Mapping[str, Any]


class Picture(NamedTuple):
    """One screenshot for the model: its pixels, or what the vision tower made of them before.

    `grid` is its row of the layout's `grid_name`, `content_hash` is "" where nothing is kept.
    """

    grid: list[int]
    pixels: torch.Tensor | None = None
    features: torch.Tensor | None = None
    content_hash: str = ""


class _Collator:
    """What both collators are built of.

    `pixel_dtype` is that of `pixel_values`. Screenshots whose features `vision_cache` has are not opened; the batch
    carries `screenshots`, which says what stands for each, and `pixel_values` holds the others.
    """

    def __init__(
        self,
        encoder: StepEncoder,
        loss_weights: Mapping[Any, float] | None = None,
        pixel_dtype: torch.dtype = torch.float32,
        vision_cache: VisionCache | None = None,
    ):
        self.encoder, self.loss_weights, self.pixel_dtype = encoder, loss_weights or {}, pixel_dtype
        self.vision_cache = vision_cache

    @property
    def _has_types(self) -> bool:
        return self.encoder.layout.has_token_types

    def _load_pictures(self, rows: Sequence[Row], paths: Sequence[Path]) -> list[Picture]:
        """Prepare the screenshots of rows.

        Raises:
            UserError: one went bad after the data was checked; the text names the data file and the row.
        """
        try:
            if self.vision_cache is None:
                return load_pixels(self.encoder, paths)
            hashes = [_hash(path, read_version(path)) for path in paths]
            kept = [self.vision_cache.load(content_hash) for content_hash in hashes]
            pixels = iter(load_pixels(self.encoder, [path for path, found in zip(paths, kept) if found is None]))
            return [
                next(pixels)._replace(content_hash=content_hash)
                if found is None
                else Picture(grid=found[1], features=found[0], content_hash=content_hash)
                for found, content_hash in zip(kept, hashes)
            ]
        except ScreenshotError as error:
            place = next(row["place"] for row in rows if Path(row["image"]) == error.path)
            raise UserError(
                f"{place}: Image_id: {error}; it was whole when the data was checked: restore it and resume with "
                "--resume auto"
            ) from error

    def _build_inputs(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """Return what of screenshots the model takes, `pixel_values` in `pixel_dtype`.

        A vision tower that computes in bf16 rounds them before anything else: handed over so, they take half the
        memory of workers, transfer and card.
        """
        layout, pixels = self.encoder.layout, [p.pixels for p in pictures if p.pixels is not None]
        values = torch.cat(pixels).to(self.pixel_dtype) if pixels else torch.empty(0, 0, dtype=self.pixel_dtype)
        grids = [picture.grid for picture in pictures]
        inputs = layout.pick_inputs({"pixel_values": values, layout.grid_name: torch.tensor(grids)})
        if self.vision_cache is None:
            return inputs
        hashes, features = [p.content_hash for p in pictures], [p.features for p in pictures]
        n_rows = [layout.count_rows(grid) for grid in grids]
        return {**inputs, "screenshots": ShownScreenshots(hashes, grids, n_rows, features)}


class PaddingCollator(_Collator):
    """Collates rows of `build_step_rows` into one right-padded batch, each row with its own screenshot."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Build a batch of B rows, T tokens the longest.

        Returns:
            `input_ids`, `attention_mask`, `labels`, `mm_token_type_ids`: (B, T) int64, labels -100 outside the answer
            and its end-of-turn token; `pixel_values`: (sum of patches, patch dim); `image_grid_thw`: (B, 3);
            `loss_weights`: (B, T) float32 where there are any. Llama-4 takes neither types nor grids.
        """
        pictures = self._load_pictures(rows, [Path(row["image"]) for row in rows])
        encoded = [encode_row(self.encoder, row, p.grid, 0, self.loss_weights) for row, p in zip(rows, pictures)]
        weights = {"loss_weights": pad([e.weights for e in encoded], 1.0)} if self.loss_weights else {}
        return {
            "input_ids": pad([e.ids for e in encoded], self.encoder.tokenizer.pad_token_id),
            "attention_mask": pad([np.ones_like(e.ids) for e in encoded], 0),
            "labels": pad([e.labels for e in encoded], IGNORED_LABEL),
            **({"mm_token_type_ids": pad([e.types for e in encoded], 0)} if self._has_types else {}),
            **weights,
            **self._build_inputs(pictures),
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
        pictures = self._load_pictures(rows, list(paths.values()))
        keys = [image_keys[row["image_sha256"]] for row in rows]
        packed = pack_sequences(
            [encode_row(self.encoder, row, pictures[k].grid, k, self.loss_weights) for row, k in zip(rows, keys)]
        )
        weights = {"loss_weights": torch.from_numpy(packed.weights)[None]} if self.loss_weights else {}
        return {
            "input_ids": torch.from_numpy(packed.ids)[None],
            "labels": torch.from_numpy(packed.labels)[None],
            **({"mm_token_type_ids": torch.from_numpy(packed.types)[None]} if self._has_types else {}),
            "subtree_end": torch.from_numpy(packed.subtree_end)[None],
            "position_ids": as_position_ids(torch.from_numpy(packed.positions)[:, None]),
            **weights,
            **self._build_inputs([pictures[keys[i]] for i in packed.image_sources]),
        }


def load_pixels(encoder: StepEncoder, paths: Sequence[Path]) -> list[Picture]:
    """Open screenshots and prepare them for the vision tower.

    Raises:
        ScreenshotError: one is missing or damaged.
    """
    if not paths:
        return []
    images, layout = encoder.encode_screenshots(paths), encoder.layout
    grids = images[layout.grid_name].tolist()
    pixels = torch.split(images["pixel_values"], [layout.count_rows(grid) for grid in grids])
    return [Picture(grid, rows) for grid, rows in zip(grids, pixels)]


@lru_cache(maxsize=65_536)
def _hash(path: Path, version: tuple[int, int]) -> str:
    """Remember the content of files as they are: `version` changes with the file."""
    return hash_screenshot(path)


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
