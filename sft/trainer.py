"""TRL's SFTTrainer with what it lacks: packed batches, fp32 adapters, a validation rollout, a gradient check."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sft.collator import build_tree_mask
from sft.errors import UserError
from sft.model import parts_with_gradient, trained_parts
from sft.sampler import PackSampler

ValidationRollout = Callable[[torch.nn.Module], dict[str, float]]


class TrajectoryTrainer(SFTTrainer):
    """`SFTTrainer` whose evaluation also rolls the model out; `validation_rollout(model)` gives the extra metrics."""

    model: PreTrainedModel | PeftModel

    def __init__(
        self,
        *args: Any,
        pack_sampler: PackSampler | None = None,
        validation_rollout: ValidationRollout | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.pack_sampler = pack_sampler
        self.validation_rollout = validation_rollout
        self._wait_s, self._logged_at = 0.0, time.perf_counter()
        # Qwen-VL says it takes no `num_items_in_batch`, whereupon the loss would be averaged per micro-batch. TRL's
        # loss never asks the model: with this it is normalised over all answer tokens of the global batch.
        self.model_accepts_loss_kwargs = True
        if not self.is_deepspeed_enabled:  # it keeps gradients in its own buffers
            self.add_callback(GradientCheck())
        if self.model.dtype == torch.float32:
            # TRL casts a QLoRA adapter to bf16 whatever the base computes in; with an fp32 base that costs precision,
            # and on a CPU without bf16 arithmetic 20 to 40 times the time.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader whose batches are packs, or the stock one where nothing is packed."""
        if self.pack_sampler is None:
            return super().get_train_dataloader()
        loader = self.accelerator.prepare(
            DataLoader(
                cast(Dataset[Any], self.train_dataset),
                batch_sampler=self.pack_sampler,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
            )
        )
        if loader.batch_sampler is not self.pack_sampler:
            loader.batch_sampler.set_epoch = self.pack_sampler.set_epoch  # accelerate's shard does not pass it on
        return loader

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute TRL's loss; a packed batch gets its mask here, on the device, where it costs no transfer."""
        subtree_end, weights = inputs.pop("subtree_end", None), inputs.pop("loss_weights", None)
        n_tokens_before = self._total_train_tokens
        if subtree_end is not None:
            implementation = self.model.config._attn_implementation
            inputs["attention_mask"] = build_tree_mask(subtree_end, implementation, self.model.dtype)
        with contextlib.nullcontext() if weights is None else weighted_log_probs(model, weights):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if subtree_end is not None and self.model.training:  # TRL takes the mask's sum for the number of tokens
            n_tokens = self.accelerator.gather(torch.tensor(subtree_end.numel(), device=subtree_end.device)).sum()
            self._total_train_tokens = n_tokens_before + int(n_tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one optimiser step and note how long that kept the model waiting."""
        started = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self._wait_s += time.perf_counter() - started
        return samples

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a training line also says which share of the time since the last one was spent waiting for data."""
        if "loss" in logs:
            now = time.perf_counter()
            logs["data_wait_share"] = round(self._wait_s / (now - self._logged_at), 4)
            self._wait_s, self._logged_at = 0.0, now
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the loss and roll out; both are logged and can choose the best checkpoint or stop the run early.

        Here and not in `evaluate`, which tells its callbacks (early stopping among them) before it returns.
        """
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.validation_rollout is not None and output.metrics is not None:
            was_training = self.model.training
            self.model.eval()
            rollout = self.validation_rollout(self.accelerator.unwrap_model(self.model))
            self.model.train(was_training)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in rollout.items()})
        return output


@contextlib.contextmanager
def weighted_log_probs(model: torch.nn.Module, weights: torch.Tensor) -> Iterator[None]:
    """Multiply the log-probabilities the model returns by the weight, (B, T) as the labels, of the token predicted.

    The loss TRL computes from them is then weighted; it is still divided by the number of answer tokens.
    """

    def scale(module: torch.nn.Module, args: Any, output: Any) -> Any:
        output.log_probs = output.log_probs * weights[:, 1:]
        return output

    handle = model.register_forward_hook(scale)
    try:
        yield
    finally:
        handle.remove()


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
