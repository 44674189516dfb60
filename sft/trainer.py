"""TRL's SFTTrainer with the three things it lacks here: fp32 adapters, a validation rollout, a gradient check."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from sft.errors import UserError
from sft.model import parts_with_gradient, trained_parts

ValidationRollout = Callable[[torch.nn.Module], dict[str, float]]


class TrajectoryTrainer(SFTTrainer):
    """`SFTTrainer` whose evaluation also rolls the model out; `validation_rollout(model)` gives the extra metrics."""

    model: PreTrainedModel | PeftModel

    def __init__(self, *args: Any, validation_rollout: ValidationRollout | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.validation_rollout = validation_rollout
        self.add_callback(GradientCheck())
        if self.model.dtype == torch.float32:
            # TRL casts a QLoRA adapter to bf16 whatever the base computes in; with an fp32 base that costs precision,
            # and on a CPU without bf16 arithmetic 20 to 40 times the time.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compute the loss and roll out; both are logged and can choose the best checkpoint."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.validation_rollout is not None:
            was_training = self.model.training
            self.model.eval()
            rollout = self.validation_rollout(self.accelerator.unwrap_model(self.model))
            self.model.train(was_training)
            scores = {f"{metric_key_prefix}_{name}": value for name, value in rollout.items()}
            self.log(scores)
            metrics.update(scores)
        return metrics


class GradientCheck(TrainerCallback):
    """Stops a run in which some trained part of the model has had no gradient in its first steps.

    A LoRA on the vision tower gets none under reentrant checkpointing, and nothing else would say so.
    """

    N_STEPS = 3

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note which parts have a gradient; after `N_STEPS` steps all trained ones must have had one."""
        if args.deepspeed or state.global_step >= self.N_STEPS:  # DeepSpeed keeps gradients in its own buffers
            return
        model = kwargs["model"]
        self._seen |= parts_with_gradient(model.named_parameters())
        if state.global_step == self.N_STEPS - 1 and (silent := trained_parts(model) - self._seen):
            raise UserError(
                f"found no gradient in the {' and '.join(sorted(silent))} part after {self.N_STEPS} steps; "
                "with lora_parts vision set gradient_checkpointing_kwargs: {use_reentrant: false}"
            )
