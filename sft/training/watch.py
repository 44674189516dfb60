"""Training's watch over itself: stops a run that learns nothing, diverges or was preempted, and says why."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.batches.packing import IGNORED_LABEL
from sft.errors import UserError
from sft.models.families import part_of
from sft.models.model import trained_parts
from sft.training.signals import REQUEUE_EXIT_CODE, is_preempted

log = logging.getLogger("sft")


class GradientCheck(TrainerCallback):
    """Watches the gradients of every trained part of the model, by hooks, as they are computed.

    Stops a run in which some part has had none in its first steps: a LoRA on the vision tower gets none under
    reentrant checkpointing, and nothing else would say so. And tells which parts had one that is no number.
    DeepSpeed keeps gradients nowhere else that could be read.
    """

    N_STEPS = 3

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._is_waiting = False
        self._hooks: list[Any] = []
        self._sums: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch every trained parameter; a run resumed behind its first steps waits for no part."""
        self._is_waiting = state.global_step < self.N_STEPS
        trained = [(name, p) for name, p in kwargs["model"].named_parameters() if p.requires_grad]
        self._hooks = [p.register_hook(partial(self._note, part_of(name))) for name, p in trained]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After `N_STEPS` steps all trained parts must have had a gradient."""
        self._sums.clear()
        if not self._is_waiting or state.global_step < self.N_STEPS:
            return
        self._is_waiting = False
        if silent := trained_parts(kwargs["model"]) - self._seen:
            raise UserError(
                f"found no gradient in the {' and '.join(sorted(silent))} part after {self.N_STEPS} steps; "
                "with lora_parts vision set gradient_checkpointing_kwargs: {use_reentrant: false}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def find_not_finite(self, parts: Sequence[str], args: TrainingArguments) -> list[str]:
        """Return the parts that have had a gradient which is no number since the last step, in any process.

        All processes call it together. Reads from the device once.
        """
        zero = torch.zeros((), device=args.device)
        sums = torch.stack([self._sums.get(part, zero).to(args.device) for part in parts])
        flags = (~torch.isfinite(sums)).int()
        if args.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return [part for part, flag in zip(parts, flags.tolist()) if flag]

    def _note(self, part: str, gradient: torch.Tensor) -> None:
        if self._is_waiting and part not in self._seen and bool(gradient.any()):
            self._seen.add(part)
        total = gradient.detach().sum(dtype=torch.float32)  # one that is no number stays so in every sum
        self._sums[part] = self._sums[part] + total if part in self._sums else total


class StopWhenPreempted(TrainerCallback):
    """After SIGTERM or SIGUSR1 in any process: the step is finished, a checkpoint saved, all end with exit code 75."""

    def __init__(self) -> None:
        self._is_stopping = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Agree with the other processes, so that all save the same step."""
        log.debug("step %d done", state.global_step)
        self._is_stopping = is_preempted()
        if args.world_size > 1:
            flag = torch.tensor(int(self._is_stopping), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self._is_stopping = bool(flag.item())
        control.should_save = control.should_save or self._is_stopping
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the process once the checkpoint has its name."""
        if self._is_stopping:
            level = logging.WARNING if state.is_world_process_zero else logging.DEBUG
            log.log(level, "preempted: saved step %d; resume with --resume auto", state.global_step)
            raise SystemExit(REQUEUE_EXIT_CODE)


def check_batch(labels: torch.Tensor, step: int) -> None:
    """Refuse a batch without a single token to learn from."""
    if not bool((labels != IGNORED_LABEL).any()):
        raise UserError(
            f"step {step + 1}: found a batch in which all {labels.numel()} labels are masked; expected the answers' "
            "tokens: check the collator"
        )


def check_loss(loss: torch.Tensor, step: int) -> None:
    """Refuse to continue with a loss that is no number; the optimiser has not used it yet."""
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"step {step + 1}: found a loss of {loss.item()}; expected a finite number: training has diverged: lower "
            "learning_rate or max_grad_norm; the checkpoints before it are intact"
        )


def refuse_gradient(parts: Sequence[str], step: int) -> NoReturn:
    """Refuse to continue with gradients that are no finite numbers; the optimiser has not used them yet.

    `parts` are those that had some; none where each number is finite and only the norm of all is not.
    """
    what = f"gradients in the {' and '.join(parts)} part that are" if parts else "a gradient norm that is"
    raise UserError(
        f"step {step + 1}: found {what} not finite; expected finite numbers. The optimiser has not used them: the "
        "checkpoints are intact, resume with --resume auto. Where it stops at the same step again, "
        "an operation overflows: try attn_implementation: eager, or dtype: float32 with bf16: false. Where grad_norm "
        "in the log grew before it, training diverges: lower learning_rate"
    )
