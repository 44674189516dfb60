"""How are user, machine and command line kept from the trackers of a training? Each adds them on its own.

transformers' callbacks start them, so that what they offer is used: settings, a context, another writer.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

# wandb's settings as it reads them: no command line, folder, machine, user and repository.
_UNNAMED_WANDB = {
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_HOST": "",
}
_COMMAND = "sft/run.py"


def keep_names_out(callbacks: Sequence[TrainerCallback], training: TrainingArguments) -> None:
    """Have the trackers among a trainer's callbacks leave out user, machine, folders above and the command line."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            _unname_tensorboard(callback, training)
        elif isinstance(callback, WandbCallback):
            os.environ |= _UNNAMED_WANDB
        elif isinstance(callback, MLflowCallback):
            _unname_mlflow()


def _unname_tensorboard(callback: TensorBoardCallback, training: TrainingArguments) -> None:
    """Have the folder and the files of events be named without the machine."""
    from torch.utils.tensorboard import SummaryWriter

    class Writer(SummaryWriter):
        def _get_file_writer(self) -> Any:
            with _host_unnamed():
                return super()._get_file_writer()

    callback._SummaryWriter = Writer
    if callback.logging_dir is None:
        started = datetime.now().strftime("%b%d_%H-%M-%S")  # as transformers names it, but for the machine
        callback.logging_dir = str(Path(str(training.output_dir)) / "runs" / started)


@contextmanager
def _host_unnamed() -> Iterator[None]:
    """Have TensorBoard's writer take another name for the machine's; it offers no other way."""
    from tensorboard.summary.writer import event_file_writer as module

    known = module.socket
    module.socket = SimpleNamespace(gethostname=lambda: "host")
    try:
        yield
    finally:
        module.socket = known


def _unname_mlflow() -> None:
    """Answer last what mlflow asks of the place of a run, which its own answers are replaced by."""
    from mlflow.tracking.context.registry import RunContextProvider, _run_context_provider_registry

    class Unnamed(RunContextProvider):
        def in_context(self) -> bool:
            return True

        def tags(self) -> dict[str, str]:
            return {"mlflow.user": "", "mlflow.source.name": _COMMAND}

    _run_context_provider_registry.register(Unnamed)
