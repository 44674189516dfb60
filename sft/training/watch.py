"""Training's watch over itself: stops a run that learns nothing, was preempted or lost a process, and says why."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed import distributed_c10d
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.batches.packing import IGNORED_LABEL
from sft.errors import UserError
from sft.models.model import part_of, trained_parts
from sft.training.processes import REQUEUE_EXIT_CODE, is_preempted

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
        """Watch every trained parameter; a run that goes on behind its first steps waits for no part."""
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
            log.log(level, "preempted: saved step %d; go on with --resume auto", state.global_step)
            raise SystemExit(REQUEUE_EXIT_CODE)


def check_batch(labels: torch.Tensor, step: int) -> None:
    """Refuse a batch without a single token to learn from."""
    if not bool((labels != IGNORED_LABEL).any()):
        raise UserError(
            f"step {step + 1}: found a batch in which all {labels.numel()} labels are masked; expected the answers' "
            "tokens: check the collator"
        )


def check_loss(loss: torch.Tensor, step: int) -> None:
    """Refuse to go on with a loss that is no number; the optimiser has not used it yet."""
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"step {step + 1}: found a loss of {loss.item()}; expected a finite number: training has diverged: lower "
            "learning_rate or max_grad_norm; the checkpoints before it are intact"
        )


def refuse_gradient(parts: Sequence[str], step: int) -> NoReturn:
    """Refuse to go on with gradients that are no finite numbers; the optimiser has not used them yet.

    `parts` are those that had some; none where each number is finite and only the norm of all is not.
    """
    what = f"gradients in the {' and '.join(parts)} part that are" if parts else "a gradient norm that is"
    raise UserError(
        f"step {step + 1}: found {what} not finite; expected finite numbers. The optimiser has not used them: the "
        "checkpoints are intact, go on with --resume auto. Where it stops at the same step again, "
        "an operation overflows: try attn_implementation: eager, or dtype: float32 with bf16: false. Where grad_norm "
        "in the log grew before it, training diverges: lower learning_rate"
    )


def limit_waiting(ddp_timeout_s: int) -> None:
    """Have every group of processes that is built from now on wait for its slowest so long, and then fail.

    `ddp_timeout` alone reaches one group on GPUs: transformers (5.23) passes it on where `use_cpu` is false, and
    DeepSpeed builds groups of its own with torch's default, which is half an hour with gloo and 10 minutes with NCCL.
    """
    timeout = timedelta(seconds=ddp_timeout_s)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout


@contextlib.contextmanager
def explain_lost_process(training: TrainingArguments, logs: Path) -> Iterator[None]:
    """End with one clear line instead of a library's where another process died or no longer answers."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if training.world_size == 1 or not any(word in text for word in ("gloo", "NCCL", "Connection", "Timed out")):
            raise
        log.debug("lost another process", exc_info=True)
        raise SystemExit(
            f"rank {training.process_index}: another process has died, or did not answer for ddp_timeout="
            f"{training.ddp_timeout} s ({text.splitlines()[0][:200]}). What each process did last is in "
            f"{logs}; go on with --resume auto"
        ) from error


@contextlib.contextmanager
def unwrap_worker_errors() -> Iterator[None]:
    """Pass on what a data worker says is wrong with the data without the traceback that torch puts around it."""
    try:
        yield
    except UserError as error:
        _, marker, text = str(error).rpartition(f"\n{UserError.__module__}.{UserError.__qualname__}: ")
        if not marker:
            raise
        raise UserError(text.strip()) from None


@contextlib.contextmanager
def log_process(folder: Path, rank: int) -> Iterator[None]:
    """Show what the first process logs, and of the others what is wrong; append all of it to `rank-N.log` in `folder`.

    The error that ends the process is in the file too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    console, file = (
        logging.StreamHandler(),
        logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8", errors="replace"),
    )
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.DEBUG)
    log.addHandler(console)
    log.addHandler(file)
    try:
        yield
    except BaseException as error:
        file.handle(log.makeRecord("sft", logging.ERROR, "", 0, "ended by %r", (error,), None))
        raise
    finally:
        log.removeHandler(console)
        log.removeHandler(file)
        file.close()
