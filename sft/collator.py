"""Training rows to padded batches with answer-only labels. The trainer knows nothing of how a batch is made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sft.encoding import StepEncoder

IGNORED_LABEL = -100


class StepCollator:
    """Collates rows of `sft.data.build_step_rows` into one right-padded batch.

    The prompt is encoded exactly as in a rollout and the answer's ids are appended: no token crosses the border.
    """

    def __init__(self, encoder: StepEncoder):
        self.encoder = encoder

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Build a batch of B rows, T tokens the longest.

        Returns:
            `input_ids`, `attention_mask`, `labels`, `mm_token_type_ids`: (B, T) int64, labels -100 outside the answer
            and its end-of-turn token; `pixel_values`: (sum of patches, patch dim); `image_grid_thw`: (B, 3).
        """
        batch = self.encoder.encode_prompts([r["prompt"] for r in rows], [Path(r["image"]) for r in rows])
        prompts, types = batch.pop("input_ids"), batch.pop("mm_token_type_ids")
        answers = [self.encoder.encode_completion(r["completion"]) for r in rows]
        batch.pop("attention_mask", None)
        batch["input_ids"] = pad([p + a for p, a in zip(prompts, answers)], self.encoder.tokenizer.pad_token_id)
        batch["attention_mask"] = pad([[1] * (len(p) + len(a)) for p, a in zip(prompts, answers)], 0)
        batch["labels"] = pad([[IGNORED_LABEL] * len(p) + a for p, a in zip(prompts, answers)], IGNORED_LABEL)
        batch["mm_token_type_ids"] = pad([t + [0] * len(a) for t, a in zip(types, answers)], 0)
        return batch


def pad(sequences: Sequence[Sequence[int]], value: int, side: str = "right") -> torch.Tensor:
    """Stack sequences of ints into (B, longest) int64, filled with `value` on the given side."""
    tensors = [torch.tensor(s, dtype=torch.long) for s in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def check_answer_only_labels(
    batch: Mapping[str, torch.Tensor], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> str:
    """Assert that what is trained on decodes to exactly the answer and the end of the turn.

    Returns:
        The first row's supervised text, for the log.

    Raises:
        AssertionError: the labels of a row are anything else.
    """
    texts = [tokenizer.decode(labels[labels != IGNORED_LABEL]) for labels in batch["labels"]]
    for text, row in zip(texts, rows):
        expected = row["completion"] + tokenizer.eos_token
        assert text == expected, f"supervised text {text!r} is not the answer {expected!r}"
    return texts[0]
