"""How a run saves and resumes: TRL's SFTTrainer with whole checkpoints, whose best one is known by its step."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.scheduler import AcceleratedScheduler
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from trl import SFTTrainer

from sft.errors import UserError
from sft.files import share_as_usual
from sft.models.model import check_adapter
from sft.models.model_folder import ADAPTER_FILE
from sft.training.checkpoint_folder import (
    UNFINISHED_NAME,
    check_disk_space,
    clear_unfinished,
    find_damage,
    finish_checkpoint,
    list_checkpoints,
    name_checkpoint,
    prepare_unfinished,
    prune_checkpoints,
    read_size,
)
from sft.training.outputs import RUN_FILES
from sft.training.processes import do_in_first_process


class CheckpointTrainer(SFTTrainer):
    """`SFTTrainer` whose checkpoints are whole; `run` says which recipe and data they belong to."""

    model: PreTrainedModel | PeftModel

    def __init__(self, *args: Any, run: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run = run or {}
        # transformers would remove the newest checkpoint at the end where one alone is kept
        self._n_kept, self.args.save_total_limit = self.args.save_total_limit, None
        self._has_ended = False
        self._unfinished: Path | None = None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Take up the state of the checkpoint resumed from, if any: places are not part of it, and no end is passed.

        The best checkpoint is found in `output_dir` by its step. A run that was over stays so: transformers would
        train a step more where it ended within an epoch, or by early stopping.
        """
        patience = {c: c.early_stopping_patience for c in self._find_early_stopping()}
        position = super()._init_training_state(*args, **kwargs)
        if self.state.global_step:
            self.args.eval_on_start = False  # was done when the run began
        if self.state.best_global_step:
            best = self._place_checkpoint(self.state.best_global_step)
            is_there = best.is_dir()
            self.state.best_model_checkpoint = str(best) if is_there else None
            if not is_there:  # sft.training.resume has said so
                self.state.best_global_step = self.state.best_metric = None
        stops = self._find_early_stopping()
        for stop, given in zip(stops, patience.values()):
            stop.early_stopping_patience = given
        self._has_ended = self.state.global_step >= self.state.max_steps or any(
            stop.early_stopping_patience_counter >= stop.early_stopping_patience for stop in stops
        )
        return position

    def _find_early_stopping(self) -> list[EarlyStoppingCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._has_ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note whether this evaluation is the best one; if the best is kept, its weights are saved now."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _load_best_model(self) -> None:
        """Load the best checkpoint, or stop where it is no longer whole, rather than pass off the last weights."""
        best = Path(cast(str, self.state.best_model_checkpoint))

        def check() -> None:
            if damage := find_damage(best) if best.is_dir() else "there is no such folder":
                raise UserError(
                    f"{best}: {damage}; expected the best checkpoint, which is to be the model: copy it back, then "
                    "--resume auto saves it without another step"
                )

        do_in_first_process(check)
        super()._load_best_model()

    @property
    def final_step(self) -> int:
        """The step whose weights are the model: the best checkpoint's where that is loaded, or else the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best or self.state.global_step

    def has_rate_by(self, step: int) -> bool:
        """Say whether a learning rate above 0 was in use by a step, so that something should have been learned.

        That of a warm-up's first step is 0. In fp16 steps are left out until the loss, scaled by 2**16 at first and by
        half of that after each of them, has finite gradients.
        """
        n_used = step - (16 if self.accelerator.mixed_precision == "fp16" else 0)
        wrapped = self.lr_scheduler
        scheduler = (
            wrapped.scheduler if isinstance(wrapped, AcceleratedScheduler) else wrapped
        )  # by DeepSpeed's offload
        if not isinstance(scheduler, LambdaLR):
            return n_used > 0
        return any(rate(i) > 0 for rate in scheduler.lr_lambdas for i in range(n_used))

    def save_state(self) -> None:
        """Save the state beside the weights."""
        if self.args.should_save:
            self._write_state(Path(cast(str, self.args.output_dir)))

    def _write_state(self, folder: Path) -> None:
        """Write the state as it is to be read anywhere: the best checkpoint by its name, without a place."""
        best = self.state.best_global_step
        state = dataclasses.replace(self.state, best_model_checkpoint=name_checkpoint(best) if best else None)
        state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _place_checkpoint(self, step: int) -> Path:
        return Path(cast(str, self.args.output_dir)) / name_checkpoint(step)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint to `unfinished/` with the run's files, reopen it, and only then give it its name.

        Old ones are removed afterwards, by step and not by a clock as transformers does.
        """
        output_dir = Path(cast(str, self.args.output_dir))
        final = self._place_checkpoint(self.state.global_step)

        def prepare() -> None:
            check_disk_space(output_dir, self._expected_checkpoint_bytes(output_dir))
            prepare_unfinished(output_dir)

        def finish() -> None:
            written = output_dir / UNFINISHED_NAME / final.name
            self._write_state(written)
            if (written / ADAPTER_FILE).is_file():
                should_differ = self.has_rate_by(self.state.global_step)
                check_adapter(written, self.accelerator.unwrap_model(self.model), needs_update=should_differ)
            for file in RUN_FILES:  # a checkpoint can be rolled out as it is, and is known to have seen its tasks
                if (output_dir / file).is_file():
                    shutil.copyfile(output_dir / file, written / file)
            finish_checkpoint(written, final, self.run)
            best = self.state.best_global_step
            prune_checkpoints(output_dir, self._n_kept, self._place_checkpoint(best) if best else None)
            clear_unfinished(output_dir)

        do_in_first_process(prepare)
        self._unfinished = output_dir / UNFINISHED_NAME
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._place_checkpoint(self.state.best_global_step))
        do_in_first_process(finish)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the weights, readable by whom the other files are, without transformers' pickle of its arguments."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or cast(str, self.args.output_dir))
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            for weights in folder.glob("*.safetensors"):
                share_as_usual(weights)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def _expected_checkpoint_bytes(self, output_dir: Path) -> int:
        """Return the size of the newest checkpoint, or else of weights and Adam's state, and a tenth more."""
        if checkpoints := list_checkpoints(output_dir):
            return int(1.1 * read_size(checkpoints[-1]))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return int(1.1 * sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 12) for p in trained))
