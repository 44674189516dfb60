"""Fine-tune a vision-language model on recorded trajectories.

accelerate launch sft/run.py RECIPE.yaml [--key value ...]
python sft/run.py RECIPE.yaml --plan [--card_gb 40]

Every key of a recipe can be given on the command line too. `--resume auto` goes on from the newest whole checkpoint
in the output folder, and starts at step 0 where there is none. After SIGTERM or SIGUSR1 the step is finished, a
checkpoint saved, and the exit code is 75: start the same command again.

`--plan` prints what the run will take (tokens, packing, GPU memory) and ends; it needs the base model's config,
tokenizer and processor files, but no weights and no GPU.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sft.batches.examples import TaskSplit, build_step_rows, load_task_split, read_step_sizes
from sft.batches.sampler import PackSampler, PaddedSampler
from sft.data.problems import describe_quarantine
from sft.errors import UserError, run_command
from sft.models.hub import find_base_model
from sft.recipe.config import Recipe, build_training_arguments, parse_recipe
from sft.recipe.support import check_support, read_launch
from sft.training.first_process import do_in_first_process
from sft.training.outputs import save_run_files
from sft.training.preemption import watch_for_preemption
from sft.training.resume import choose_checkpoint, describe_run

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig

    from sft.compute.recorder import RunRecorder
    from sft.trainer import TrajectoryTrainer

log = logging.getLogger("sft")


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    if "--plan" in argv:
        print_plan([argument for argument in argv if argument != "--plan"])
        return
    recipe = parse_recipe(argv)
    launch = read_launch(os.environ)
    check_support(
        launch,
        recipe.model,
        has_checkpointing=recipe.training.get("gradient_checkpointing", True),
        optim=recipe.training.get("optim", "adamw_torch_fused"),
    )
    if launch.engine.startswith("zero"):
        from sft.training.build_lock import use_build_lock

        use_build_lock()
    split = check_inputs(recipe)

    from sft.compute.tracking import record_training
    from sft.training.watch import explain_lost_process, limit_waiting, log_process

    limit_waiting(recipe.training.get("ddp_timeout", 1800))  # before the processes meet, in the next line
    training = build_training_arguments(recipe)
    logs = Path(cast(str, training.output_dir)) / "logs"
    with log_process(logs, training.process_index), explain_lost_process(training, logs):
        with record_training(recipe, split, training) as recorder:
            train_and_save(recipe, split, training, recorder)
        if training.process_index == 0:
            publish(recipe, logs.parent)


def train_and_save(recipe: Recipe, split: TaskSplit, training: "SFTConfig", recorder: "RunRecorder") -> None:
    """Load the model, train it from step 0 or a checkpoint, save what a rollout needs; `recorder` notes the cost."""
    import torch

    from eval.rollouts.validation import build_validation_rollout
    from sft.batches.collator import PackingCollator, PaddingCollator, check_answer_only_labels
    from sft.batches.encoding import StepEncoder, find_tight_answer_limit
    from sft.compute.step_meter import StepMeter
    from sft.models.model import (
        build_lora_config,
        check_saved_modules,
        check_sequence_lengths,
        count_parameters,
        find_family,
        load_model,
    )
    from sft.models.processors import load_processor
    from sft.trainer import TrajectoryTrainer
    from sft.training.watch import unwrap_worker_errors

    family = find_family(recipe.model.model_name_or_path, recipe.model.model_revision)
    check_sequence_lengths(recipe.model, recipe.longest_sequences())
    check_saved_modules(recipe.model)
    budget = (recipe.agent.min_pixels, recipe.agent.max_pixels)
    processor = load_processor(recipe.model.model_name_or_path, *budget, recipe.model.model_revision)
    cache_dir = Path(recipe.data.screenshot_cache) if recipe.data.screenshot_cache else None
    encoder = StepEncoder(processor, recipe.agent, cache_dir)
    train = build_step_rows(split.train, recipe.data.train_csv, encoder)
    val = build_step_rows(split.val, recipe.data.val_csv or recipe.data.train_csv, encoder) if split.val else None
    sample = [train.dataset[i] for i in range(min(2, len(train.dataset)))]
    collator_class = PaddingCollator if recipe.batch.packing == "none" else PackingCollator
    pixel_dtype = torch.bfloat16 if recipe.computes_in_bf16 else torch.float32
    collator = collator_class(encoder, recipe.batch.loss_weights, pixel_dtype)
    supervised = check_answer_only_labels(encoder, sample)
    log.info("train: %d tasks, %d steps; val: %d tasks", len(split.train), len(train.dataset), len(split.val))
    if split.quarantined:
        log.warning("quarantine: %s", describe_quarantine(split.quarantined)["summary"])
    answers = zip(train.dataset["completion"], train.dataset["n_answer_tokens"])
    if tight := find_tight_answer_limit(answers, recipe.agent):
        log.warning("%s", tight)
    log.info("prompts whose memory was shortened: %d; first supervised text: %s", train.n_shortened, supervised)

    folder = Path(cast(str, training.output_dir))
    run = describe_run(recipe, read_launch(os.environ), train.dataset, val.dataset if val else None)
    checkpoint = do_in_first_process(lambda: choose_checkpoint(recipe, folder, run))
    accumulation = training.gradient_accumulation_steps
    sampler = build_sampler(recipe, train.dataset, training, training.per_device_train_batch_size, accumulation)
    log.info("%d steps in %d batches an epoch", len(train.dataset), len(sampler))
    if isinstance(sampler, PackSampler):
        log.info("packing: %.2f times fewer tokens", sampler.packing_factor)
    recorder.note(packing_factor=sampler.packing_factor if isinstance(sampler, PackSampler) else 1.0)
    trainer = TrajectoryTrainer(
        model=load_model(recipe.model, family),
        args=training,
        train_dataset=train.dataset,
        eval_dataset=val.dataset if val else None,
        processing_class=processor,
        data_collator=collator,
        pack_sampler=sampler,
        eval_sampler=build_sampler(recipe, val.dataset, training, training.per_device_eval_batch_size)
        if val
        else None,
        run=run,
        peft_config=build_lora_config(recipe.model, family),
        validation_rollout=build_validation_rollout(recipe, split.val, encoder),
        step_meter=StepMeter(recorder),
    )
    add_early_stopping(trainer, recipe)
    log_parameters(count_parameters(trainer.model))
    save_run_files(recipe, split, folder, processor)
    with unwrap_worker_errors():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if training.load_best_model_at_end and trainer.state.best_global_step is None:
        log.warning("load_best_model_at_end: no evaluation gave a metric to choose by; the last weights are saved")
    save(trainer, folder)


def publish(recipe: Recipe, folder: Path) -> None:
    """Write the model card, once the ledger has the run's last figures, and upload where the recipe says so."""
    from sft.training.card import write_card

    write_card(folder)
    if recipe.training.get("push_to_hub"):
        from sft.training.push import push_trained

        log.info("uploaded to %s", push_trained(folder, recipe.training))


def print_plan(argv: list[str]) -> None:
    """Print what a run will take, from configs and data alone."""
    from sft.batches.encoding import StepEncoder
    from sft.models.model import build_empty_model, find_family_of
    from sft.models.processors import load_processor
    from sft.plan import estimate_memory, format_plan, plan_tokens
    from sft.plan_zero3 import CARDS_GB, format_zero3, measure_largest_layer

    card_gb = 40.0
    if "--card_gb" in argv:
        at = argv.index("--card_gb")
        try:
            card_gb = float(argv[at + 1])
        except (IndexError, ValueError) as error:
            raise UserError("--card_gb: expected the card's memory in GB, e.g. --card_gb 40") from error
        argv = argv[:at] + argv[at + 2 :]
    recipe = parse_recipe(argv)
    split = check_inputs(recipe, needs_weights=False)
    agent = recipe.agent
    budget = (agent.min_pixels, agent.max_pixels)
    processor = load_processor(recipe.model.model_name_or_path, *budget, recipe.model.model_revision)
    encoder = StepEncoder(processor, agent)
    rows = build_step_rows(split.train, recipe.data.train_csv, encoder).dataset
    sizes = read_step_sizes(rows)
    tokens = plan_tokens(recipe, sizes, n_ranks=1)
    model = build_empty_model(recipe.model)
    memory = estimate_memory(recipe, model, tokens, encoder.layout.patches_a_token)
    print(format_plan(recipe, tokens, memory, card_gb))
    if sum(memory.values()) > min(CARDS_GB):
        largest_gb = measure_largest_layer(model, recipe.model, find_family_of(model.config.model_type))
        memory = estimate_memory(recipe, model, tokens, encoder.layout.patches_a_token, has_deepspeed=True)
        print(format_zero3(memory, largest_gb))


def check_inputs(recipe: Recipe, needs_weights: bool = True) -> TaskSplit:
    """Check data and base model together, before torch is imported; all problems are told at once."""
    problems: list[str] = []
    try:
        find_base_model(recipe.model.model_name_or_path, recipe.model.model_revision, needs_weights)
    except UserError as error:
        problems.append(str(error))
    try:
        split = load_task_split(recipe.data, recipe.agent, seed=recipe.training.get("seed", 42))
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return split


def build_sampler(
    recipe: Recipe, rows: "Dataset", training: "SFTConfig", batch_size: int, accumulation: int = 1
) -> PackSampler | PaddedSampler:
    """Return what decides which steps are one batch, the same for any number of processes with one global batch."""
    processes = (training.world_size, accumulation)
    if recipe.batch.packing == "none":
        return PaddedSampler(len(rows), batch_size, recipe.data_seed, *processes)
    return PackSampler(read_step_sizes(rows), recipe.batch.tokens_per_batch, recipe.data_seed, *processes)


def add_early_stopping(trainer: "TrajectoryTrainer", recipe: Recipe) -> None:
    from transformers import EarlyStoppingCallback

    if recipe.validation.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.validation.early_stopping_patience))


def log_parameters(counts: dict[str, dict[str, int]]) -> None:
    """Log trainable and total parameters by part."""
    for part, count in counts.items():
        share = 100 * count["trainable"] / max(count["total"], 1)
        log.info("%-8s %13d parameters, %12d trainable (%.2f %%)", part, count["total"], count["trainable"], share)


def save(trainer: "TrajectoryTrainer", folder: Path) -> None:
    """Save the weights, reopen and check them, and draw the curves."""
    from sft.compute.curves import plot_curves
    from sft.models.model import check_adapter

    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    if (folder / "adapter_config.json").is_file():
        model, needs_update = trainer.accelerator.unwrap_model(trainer.model), trainer.has_rate_by(trainer.final_step)
        n_tensors = check_adapter(folder, model, needs_update)
        if not needs_update:
            log.warning("nothing was learned: every step up to %d had a learning rate of 0", trainer.final_step)
        log.info("adapter reopened: %d tensors, as trained", n_tensors)
    plot_curves(trainer.state.log_history, folder / "training_curves.png")
    log.info("saved to %s", folder)


if __name__ == "__main__":
    watch_for_preemption()
    run_command(main)
