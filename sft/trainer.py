"""TRL's SFTTrainer with what it lacks: packed batches, fp32 adapters, checked gradients, a validation rollout."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset as HubDataset
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig

from sft.batches.collator import PackingCollator, PaddingCollator, build_dense_mask
from sft.batches.encoder import StepEncoder
from sft.batches.examples import read_step_sizes
from sft.batches.packing import IGNORED_LABEL
from sft.batches.sampler import PackSampler, PaddedSampler
from sft.batches.vision_cache import build_vision_cache
from sft.compute.recorder import RunRecorder
from sft.compute.step_meter import StepMeter, read_memory
from sft.models.checkpointing import keep_products
from sft.models.fused_lora import fuse_lora
from sft.models.model import (
    build_lora_config,
    check_saved_modules,
    check_sequence_lengths,
    count_parameters,
    find_family,
    load_model,
    trained_parts,
)
from sft.models.processors import load_processor
from sft.models.scored_tokens import find_scored_tokens, prepare_last_layer, scored_alone
from sft.models.tree_attention import use_tree_attention
from sft.models.vision_features import FrozenTower
from sft.recipe.recipe import Recipe
from sft.recipe.training_keys import find_value
from sft.training.checkpoint_trainer import CheckpointTrainer
from sft.training.signals import leave_signals_to_parent
from sft.training.trackers import keep_names_out
from sft.training.watch import GradientCheck, StopWhenPreempted, check_batch, check_loss, refuse_gradient

log = logging.getLogger("sft")

ValidationRollout = Callable[[torch.nn.Module], dict[str, float]]


class TrajectoryTrainer(CheckpointTrainer):
    """`SFTTrainer` whose evaluation also rolls the model out; `validation_rollout(model)` gives the extra metrics."""

    def __init__(
        self,
        *args: Any,
        pack_sampler: PackSampler | PaddedSampler | None = None,
        eval_sampler: PackSampler | PaddedSampler | None = None,
        validation_rollout: ValidationRollout | None = None,
        step_meter: StepMeter | None = None,
        frozen_tower: FrozenTower | None = None,
        keeps_products: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.keeps_products = keeps_products  # where gradients are checkpointed
        self.pack_sampler = pack_sampler
        self.eval_sampler = eval_sampler
        self._eval_tokens_a_batch: float | None = None
        self.validation_rollout = validation_rollout
        self.step_meter, self.frozen_tower = step_meter, frozen_tower
        if step_meter is not None:
            self.add_callback(step_meter)
        self._wait_s, self._logged_at, self._has_logged = 0.0, time.perf_counter(), False
        # Qwen-VL says it takes no `num_items_in_batch`, whereupon the loss would be averaged per micro-batch. TRL's
        # loss never asks the model: with this it is normalised over all answer tokens of the global batch.
        self.model_accepts_loss_kwargs = True
        self._last_loss = torch.zeros(())
        self.gradients = GradientCheck()
        self.add_callback(self.gradients)
        self.add_callback(StopWhenPreempted())
        if self.model.config._attn_implementation == "sdpa":
            use_tree_attention(self.model.config)
        fuse_lora(self.model)
        # The logits of all tokens are asked for where labels are smoothed; the router's of a whole layer by its loss.
        self.scores_alone = self.label_smoother is None and self.compute_loss_func is None
        self.cuts_last_layer = self.scores_alone and not self.aux_loss_enabled and prepare_last_layer(self.model)
        if self.model.dtype == torch.float32 or not self.is_deepspeed_enabled:
            # TRL casts a QLoRA adapter to bf16, in which an update below 1/256 of a weight is lost: LoRA's A hardly
            # moves at a learning rate of 3e-5. PEFT keeps an adapter of an unquantised base in fp32 for that reason,
            # and DeepSpeed a copy of its own. On a CPU without bf16 arithmetic it would also take 20 times the time.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; an error that ends it is told below the progress bars, not on the line of one."""
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback):
                    for bar in (callback.prediction_bar, callback.training_bar):
                        if bar is not None:
                            bar.close()
            raise

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader whose batches the sampler chose, or the stock one without a sampler."""
        if self.pack_sampler is None:
            return super().get_train_dataloader()
        persistent = self.args.dataloader_persistent_workers
        loader = self._build_loader(self.train_dataset, self.pack_sampler, is_persistent=persistent)
        if loader.batch_sampler is not self.pack_sampler:
            loader.batch_sampler.set_epoch = self.pack_sampler.set_epoch  # accelerate's shard does not pass it on
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of the same validation batches at every evaluation, or the stock one without a sampler.

        The stock one would put `per_device_eval_batch_size` steps into one sequence, whatever `tokens_per_batch` is.
        """
        if self.eval_sampler is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = cast(Any, self.eval_dataset)
        n_tokens = sum(rows["n_answer_tokens"])
        self._eval_tokens_a_batch = n_tokens / len(self.eval_sampler)
        return self._build_loader(rows, self.eval_sampler, is_persistent=False)  # a new one at every evaluation

    def _build_loader(self, dataset: Any, sampler: PackSampler | PaddedSampler, is_persistent: bool) -> Any:
        return self.accelerator.prepare(
            DataLoader(
                cast(Dataset[Any], dataset),
                batch_sampler=sampler,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=is_persistent,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                worker_init_fn=leave_signals_to_parent,
            )
        )

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Compute gradients as TRL does, measured; stop where nothing is to be learned or the loss is no number."""
        check_batch(inputs["labels"], self.state.global_step)
        with self._measure(inputs):
            loss = super().training_step(model, inputs, num_items_in_batch)
        check_loss(loss, self.state.global_step)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm, which transformers asks for once a step; stop where it is no number.

        DeepSpeed has used the gradients by now: see `_prepare_for_training`.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        is_checked = self._checks_gradients and not self.is_deepspeed_enabled
        if is_checked and not math.isfinite(grad_norm):  # the step's one look at what is on the device
            refuse_gradient(self._find_not_finite(), self.state.global_step)
        return grad_norm

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap the model as transformers does; DeepSpeed, which steps within the backward pass, checks before it."""
        if self.keeps_products:
            peft_config = getattr(self.model, "peft_config", {})
            keep_products(self.model, max((adapter.r for adapter in peft_config.values()), default=0))
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self._checks_gradients and self.is_deepspeed_enabled:
            engine = cast(Any, self.model_wrapped)

            def step(*args: Any, step: Callable[..., Any] = engine.step, **kwargs: Any) -> Any:
                if engine.is_gradient_accumulation_boundary() and (parts := self._find_not_finite()):
                    check_loss(self._last_loss, self.state.global_step)
                    refuse_gradient(parts, self.state.global_step)
                return step(*args, **kwargs)

            engine.step = step
        return prepared

    @property
    def _checks_gradients(self) -> bool:
        """In fp16 the loss is scaled until gradients are finite, and steps in which they are not are left out."""
        return self.accelerator.mixed_precision != "fp16"

    def _find_not_finite(self) -> list[str]:
        return self.gradients.find_not_finite(sorted(trained_parts(self.model)), self.args)

    def _measure(self, inputs: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
        if self.step_meter is None:
            return contextlib.nullcontext()
        return self.step_meter.measure(
            self.model,
            inputs,
            is_checkpointed=bool(self.args.gradient_checkpointing) and not self.keeps_products,
            is_sharded=bool(self.is_deepspeed_enabled),
            scores_alone=self.scores_alone,
            cuts_last_layer=self.cuts_last_layer,
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: `sft.training.card` writes the model card, once the weights are saved."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute TRL's loss; a packed batch gets its mask here.

        The mean over validation batches is the loss per answer token of the whole file: each batch's sum is divided
        by what the batches hold on average, where TRL would divide by the batch's own number.
        """
        if not self.model.training and self._eval_tokens_a_batch is not None:
            n_tokens = self._eval_tokens_a_batch
            if self.args.average_tokens_across_devices:
                n_tokens *= self.accelerator.num_processes  # TRL multiplies by it
            num_items_in_batch = torch.tensor(n_tokens, device=self.args.device)
        subtree_end, weights = inputs.pop("subtree_end", None), inputs.pop("loss_weights", None)
        screenshots = inputs.pop("screenshots", None)
        weights = None if weights is None else weights[:, 1:]  # of the tokens before
        n_tokens_before = self._total_train_tokens
        if subtree_end is not None:
            is_dense = self.model.config._attn_implementation == "eager"
            inputs["attention_mask"] = (
                build_dense_mask(subtree_end, self.model.dtype) if is_dense else subtree_end[:, None, None]
            )
        with contextlib.ExitStack() as changes:
            if (
                self.scores_alone
                and not return_outputs
                and (found := find_scored_tokens(inputs["labels"], IGNORED_LABEL))
            ):
                changes.enter_context(scored_alone(self.model, found, self.cuts_last_layer))
                inputs["shift_labels"] = found.labels
                weights = None if weights is None else found.take(weights)
            if weights is not None:
                changes.enter_context(weighted_log_probs(model, weights))
            if screenshots is not None:
                changes.enter_context(cast(FrozenTower, self.frozen_tower).show(screenshots))
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            self._last_loss = loss.detach()
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
        """Log; a training line also says how long data was waited for and what memory is taken, the first one more.

        `data_wait_share` is a share of the time since the last line. docs/trackers.md has these names.
        """
        if "loss" in logs:
            now = time.perf_counter()
            logs["data_wait_share"] = round(self._wait_s / (now - self._logged_at), 4)
            self._wait_s, self._logged_at = 0.0, now
            logs |= read_memory()
            if not self._has_logged and isinstance(self.pack_sampler, PackSampler):
                logs["packing_factor"] = round(self.pack_sampler.packing_factor, 3)
            self._has_logged = True
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


def load_encoder(recipe: Recipe) -> StepEncoder:
    """Load what turns steps into tokens and pixels; a model that cannot take the recipe's sequences is refused.

    Raises:
        UserError: what was found, expected and the way out.
    """
    settings, agent = recipe.model, recipe.agent
    find_family(settings.model_name_or_path, settings.model_revision)  # refuses one that is not supported
    check_sequence_lengths(settings, recipe.longest_sequences())
    check_saved_modules(settings)
    budget = (agent.min_pixels, agent.max_pixels)
    processor = load_processor(settings.model_name_or_path, *budget, settings.model_revision)
    return StepEncoder(processor, agent, Path(recipe.data.screenshot_cache) if recipe.data.screenshot_cache else None)


def build_trainer(
    recipe: Recipe,
    encoder: StepEncoder,
    train: HubDataset,
    val: HubDataset | None,
    training: SFTConfig,
    run: Mapping[str, Any],
    validation_rollout: ValidationRollout | None,
    recorder: RunRecorder,
) -> TrajectoryTrainer:
    """Load the model and set up its training on the rows of `build_step_rows`; `run` is `describe_run`'s."""
    family = find_family(recipe.model.model_name_or_path, recipe.model.model_revision)
    collator_class = PaddingCollator if recipe.batch.packing == "none" else PackingCollator
    pixel_dtype = torch.bfloat16 if recipe.computes_in_bf16 else torch.float32
    accumulation = training.gradient_accumulation_steps
    sampler = build_sampler(recipe, train, training, training.per_device_train_batch_size, accumulation)
    log.info("%d steps in %d batches per epoch", len(train), len(sampler))
    packing_factor = 1.0
    if isinstance(sampler, PackSampler):
        packing_factor = sampler.packing_factor
        log.info("packing: %.2f times fewer tokens", packing_factor)
    recorder.note(packing_factor=packing_factor)
    model = load_model(recipe.model, family)
    vision_cache = build_vision_cache(recipe, encoder, model)
    trainer = TrajectoryTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=val,
        processing_class=encoder.processor,
        data_collator=collator_class(encoder, recipe.batch.loss_weights, pixel_dtype, vision_cache),
        pack_sampler=sampler,
        eval_sampler=build_sampler(recipe, val, training, training.per_device_eval_batch_size) if val else None,
        run=run,
        peft_config=build_lora_config(recipe.model, family),
        validation_rollout=validation_rollout,
        step_meter=StepMeter(recorder),
        frozen_tower=FrozenTower(model, vision_cache.keep) if vision_cache else None,
        keeps_products=find_value(recipe.training, "gradient_checkpointing") == "selective",
    )
    if recipe.validation.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.validation.early_stopping_patience))
    keep_names_out(trainer.callback_handler.callbacks, training)
    log_parameters(count_parameters(trainer.model))
    return trainer


def build_sampler(
    recipe: Recipe, rows: HubDataset, training: SFTConfig, batch_size: int, accumulation: int = 1
) -> PackSampler | PaddedSampler:
    """Return what decides which steps are one batch, the same for any number of processes with one global batch."""
    processes = (training.world_size, accumulation)
    if recipe.batch.packing == "none":
        return PaddedSampler(len(rows), batch_size, recipe.data_seed, *processes)
    return PackSampler(read_step_sizes(rows), recipe.batch.tokens_per_batch, recipe.data_seed, *processes)


def log_parameters(counts: dict[str, dict[str, int]]) -> None:
    """Log trainable and total parameters by part."""
    for part, count in counts.items():
        share = 100 * count["trainable"] / max(count["total"], 1)
        log.info("%-8s %13d parameters, %12d trainable (%.2f %%)", part, count["total"], count["trainable"], share)


@contextlib.contextmanager
def weighted_log_probs(model: torch.nn.Module, weights: torch.Tensor) -> Iterator[None]:
    """Multiply the log-probabilities the model returns by the weights of the tokens predicted, of the same shape.

    The loss TRL computes from them is then weighted; it is still divided by the number of answer tokens.
    """

    def scale(module: torch.nn.Module, args: Any, output: Any) -> Any:
        output.log_probs = output.log_probs * weights
        return output

    handle = model.register_forward_hook(scale)
    try:
        yield
    finally:
        handle.remove()
