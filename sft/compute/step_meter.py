"""Counts what training steps take: tokens, operations, memory, time. Hands it to the compute ledger's recorder."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.batches.packing import IGNORED_LABEL
from sft.compute.flops import BatchSize, FlopCounter, FlopFormula, build_formula
from sft.compute.recorder import RunRecorder, resident_gb
from sft.models.model import count_parameters, count_quantised
from sft.models.scored_tokens import find_scored_tokens
from sft.models.tree_attention import count_pairs

log = logging.getLogger("sft")


class StepMeter(TrainerCallback):
    """Measures every batch, its operations once, and reports at each log. A rank counts its own batches.

    Sums that need a batch's values stay on its device until a log is due anyway. What is read of a batch at once is a
    packed sequence's `subtree_end` and the places of its labels, which attention has to read before it starts.
    """

    def __init__(self, recorder: RunRecorder):
        self.recorder = recorder
        self.formula: FlopFormula | None = None
        self._flops_ratio = 0.0
        self._sizes, self._counts = BatchSize(), _Counts()
        self._first_step = 0
        self._marked_at = time.perf_counter()
        self._busy_s = self._wait_s = self._waited_of_s = 0.0

    @contextmanager
    def measure(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        *,
        is_checkpointed: bool,
        is_sharded: bool,
        scores_alone: bool,
        cuts_last_layer: bool,
    ) -> Iterator[None]:
        """Count one batch of a training step; the first one's operations are counted as they run.

        Where one of them cannot be counted the formula stands alone, as it does where DeepSpeed shards the model:
        counting under its hooks was never tried.
        """
        self._counts.add(inputs, model.config.image_token_id)
        self._sizes += _fixed_size(inputs, model.config.vision_config.patch_size)
        if cuts_last_layer:
            self._sizes += BatchSize(attended_by_trained=_count_scored_pairs(inputs))
        if self.formula is not None:
            yield
            return
        self.formula = build_formula(model, is_checkpointed, scores_alone, cuts_last_layer)
        if is_sharded:
            self._flops_ratio = 1.0
            yield
            return
        forward: list[int | None] = []
        # nothing is compiled meanwhile: functions first called under such a mode would stay uncompiled for good
        with torch.compiler.set_stance("force_eager"), FlopCounter() as counter:
            hook = model.register_forward_hook(lambda *_: forward.append(counter.total))
            try:
                yield
            finally:
                hook.remove()
        expected = self.formula.step(self._total_size())
        if counter.total is None:
            self._flops_ratio = 1.0
            log.warning("FLOPs of this run are those of the closed formula")
            return
        self._flops_ratio = counter.total / expected
        self.recorder.note(
            flops_batch_measured=counter.total,
            flops_batch_formula=expected,
            flops_forward_measured=forward[0] if forward else None,
            flops_batch_samples=self._counts.read()["samples"],
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what is trained; a resumed run counts its own steps only."""
        self._first_step, self._marked_at = state.global_step, time.perf_counter()
        model = kwargs["model"]
        self.recorder.note(
            parameters=count_parameters(model),
            quantised_parameters=count_quantised(model),
            resumed_at_step=self._first_step,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the time since the step before; that of evaluations and checkpoints is left out."""
        now = time.perf_counter()
        self._busy_s += now - self._marked_at
        self._marked_at = now

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._marked_at = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._marked_at = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand over what was counted so far, and one line for the plots."""
        logs = logs or {}
        if "data_wait_share" in logs:
            self._wait_s += logs["data_wait_share"] * (self._busy_s - self._waited_of_s)
            self._waited_of_s = self._busy_s
        figures = self._describe(state)
        self.recorder.note(**figures)
        kept = {k: logs[k] for k in ("loss", "eval_loss", "eval_swa", "learning_rate") if k in logs}
        if kept:
            shown = {k: figures[k] for k in ("samples", "tokens_text", "tokens_image", "busy_s")}
            self.recorder.log(step=state.global_step, gpu_gb=_gpu_gb(), **shown, **kept)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.note(**self._describe(state))

    def _describe(self, state: TrainerState) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "steps": state.global_step - self._first_step,
            "last_step": state.global_step,
            "busy_s": round(self._busy_s, 3),
            **self._counts.read(),
        }
        if self._waited_of_s:
            figures["data_wait_share"] = self._wait_s / self._waited_of_s
        if self.formula is not None:
            figures["flops"] = self._flops_ratio * self.formula.step(self._total_size())
        if torch.cuda.is_available():
            figures["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
            figures["peak_gpu_reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        return figures

    def _total_size(self) -> BatchSize:
        counts = self._counts.read()
        return self._sizes + BatchSize(trained=counts["tokens_trained"], patches_attended=counts["patches_attended"])


class _Counts:
    """Sums over batches of what only their values tell; kept on the device until read."""

    NAMES = ("tokens_text", "tokens_image", "tokens_trained", "samples", "patches_attended")

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None

    def add(self, inputs: Mapping[str, Any], image_token_id: int) -> None:
        labels = inputs["labels"] != IGNORED_LABEL
        n_image = (inputs["input_ids"] == image_token_id).sum()
        mask = inputs.get("attention_mask")
        n_tokens = labels.numel() if mask is None else mask.sum()
        starts = (labels[:, 1:] & ~labels[:, :-1]).sum()  # every answer follows a prompt
        grids = inputs.get("image_grid_thw")  # families that cut tiles have none: see `_fixed_size`
        if grids is not None and "screenshots" in inputs:
            grids = grids[inputs["screenshots"].new]  # what is kept of the others was computed before
        pairs = torch.zeros_like(n_image) if grids is None else grids.prod(dim=1).square().sum().to(n_image.device)
        sums = torch.stack([n_tokens - n_image, n_image, labels.sum(), starts, pairs])
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self) -> dict[str, int]:
        values = [0] * len(self.NAMES) if self._sums is None else self._sums.tolist()
        return dict(zip(self.NAMES, values))


def _fixed_size(inputs: Mapping[str, Any], patch_size: int) -> BatchSize:
    """Return what the shapes of a batch tell; padding is computed too, so it counts."""
    n_rows, length = inputs["input_ids"].shape
    pixels = inputs["pixel_values"]
    end = inputs.get("subtree_end")
    attended = n_rows * length**2 if end is None else count_pairs(end)
    size = BatchSize(tokens=n_rows * length, attended=attended)
    if pixels.dim() == 2:  # one row a patch
        return size + BatchSize(patches=pixels.shape[0])
    n_patches = pixels[0, 0].numel() // patch_size**2 + 1  # tiles of equal size, and a class token in each
    return size + BatchSize(patches=pixels.shape[0] * n_patches, patches_attended=pixels.shape[0] * n_patches**2)


def _count_scored_pairs(inputs: Mapping[str, Any]) -> int:
    """Return how many pairs of tokens the last layer attends to."""
    scored, end = find_scored_tokens(inputs["labels"], IGNORED_LABEL), inputs.get("subtree_end")
    if scored is None:
        return 0
    return scored.places.numel() * inputs["input_ids"].shape[1] if end is None else count_pairs(end, scored.places)


def _gpu_gb() -> float | None:
    return torch.cuda.memory_allocated() / 1e9 if torch.cuda.is_available() else None


def read_memory() -> dict[str, float]:
    """Return the memory that this process takes now, and on a GPU what it took at most."""
    memory = {"host_gb": resident_gb()}
    if torch.cuda.is_available():
        memory["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return memory
