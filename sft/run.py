"""Fine-tune a vision-language model on recorded trajectories.

accelerate launch sft/run.py RECIPE.yaml [--key value ...]
python sft/run.py --plan RECIPE.yaml [--card_gb 40]
python sft/run.py RECIPE.yaml --sweep FILE.yaml --output_dir FOLDER [--launch "accelerate launch ..."]

`--resume auto` resumes from the newest whole checkpoint of output_dir, or starts at step 0 if there
is none. After SIGTERM or SIGUSR1 the training finishes its step, saves a checkpoint and ends with
exit code 75: give the same command, with `--resume auto`, to resume it.

`--plan` prints what the training will take (tokens, packing, GPU memory) and ends. It needs the
base model's config, tokenizer and processor files, but no weights and no GPU.

`--sweep FILE.yaml` trains the recipe with each of several combinations of values, one after the
other, and ends with a table; give the same command to resume it. docs/training.md explains it.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sft.batches.examples import StepRows, build_step_rows
from sft.data.boxes import count_points, describe_missing_points
from sft.data.problems import describe_quarantine
from sft.data.train_val import TaskSplit, load_task_split
from sft.errors import UserError, print_text, run_command
from sft.models.hub import find_base_model
from sft.recipe.launch import check_support, read_launch
from sft.recipe.recipe import Recipe, parse_recipe
from sft.recipe.training_keys import find_value
from sft.training.checkpoint_folder import read_run
from sft.training.outputs import publish, save_model, save_run_files
from sft.training.processes import do_in_first_process, training_processes, unwrap_worker_errors
from sft.training.resume import choose_checkpoint, describe_run
from sft.training.signals import watch_for_preemption
from sft.verbs import as_started

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig

    from sft.batches.encoder import StepEncoder
    from sft.compute.recorder import RunRecorder

log = logging.getLogger("sft")


def main(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        from sft.recipe.key_reference import format_help

        print_text(f"{as_started(__doc__ or '')}\n{format_help()}")
        return
    if "--plan" in argv:
        print_plan([argument for argument in argv if argument != "--plan"])
        return
    if any(argument.partition("=")[0] == "--sweep" for argument in argv):
        from sft.sweep.runs import sweep

        sweep(argv, check_inputs)
        return
    recipe = parse_recipe(argv)
    launch = read_launch(os.environ)
    check_support(
        launch,
        recipe.model,
        checkpointing=find_value(recipe.training, "gradient_checkpointing"),
        optim=find_value(recipe.training, "optim"),
        keeps_vision=bool(recipe.data.vision_cache_gb),
    )
    split = check_inputs(recipe)

    from sft.compute.tracking import record_training

    with training_processes(recipe, launch) as training:
        with record_training(recipe, split, training) as recorder:
            train_and_save(recipe, split, training, recorder)
        if training.process_index == 0:
            publish(recipe, Path(cast(str, training.output_dir)))


def check_inputs(recipe: Recipe, needs_weights: bool = True) -> TaskSplit:
    """Check data and base model together, before torch is imported; all problems are told at once."""
    problems: list[str] = []
    try:
        find_base_model(recipe.model.model_name_or_path, recipe.model.model_revision, needs_weights)
    except UserError as error:
        problems.append(str(error))
    try:
        split = load_task_split(recipe.data, recipe.agent, seed=find_value(recipe.training, "seed"))
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return split


def train_and_save(recipe: Recipe, split: TaskSplit, training: "SFTConfig", recorder: "RunRecorder") -> None:
    """Load the model, train it from step 0 or a checkpoint, save what a rollout needs; `recorder` notes the cost."""
    from eval.rollouts.validation import build_validation_rollout
    from sft.trainer import build_trainer, load_encoder

    encoder = load_encoder(recipe)
    train = build_step_rows(split.train, recipe.data.train_csv, encoder)
    val = build_step_rows(split.val, recipe.data.val_csv or recipe.data.train_csv, encoder) if split.val else None
    log_data(split, train, encoder)
    folder, val_rows = Path(cast(str, training.output_dir)), val.dataset if val else None
    run = describe_run(recipe, read_launch(os.environ), train.dataset, val_rows)
    checkpoint = do_in_first_process(lambda: choose_checkpoint(recipe, folder, run))
    rollout = build_validation_rollout(recipe, split.val, encoder)
    settled = settle_checkpointing(recipe, encoder, train.dataset, training, run, checkpoint)
    recorder.note(gradient_checkpointing=settled.training["gradient_checkpointing"])
    trainer = build_trainer(settled, encoder, train.dataset, val_rows, training, run, rollout, recorder)
    save_run_files(recipe, split, folder, encoder.processor)
    with unwrap_worker_errors():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_model(trainer, folder)


def settle_checkpointing(
    recipe: Recipe,
    encoder: "StepEncoder",
    rows: "Dataset",
    training: "SFTConfig",
    run: dict[str, dict[str, Any]],
    checkpoint: Path | None,
) -> Recipe:
    """Return the recipe with `gradient_checkpointing: auto` decided, alike in every process, and noted in `run`.

    The smallest card of all decides. A training that resumes takes what it began with.
    """
    import torch
    from accelerate.utils import gather_object

    from sft import plan
    from sft.batches.examples import read_step_sizes
    from sft.models.model import build_empty_model

    form = find_value(recipe.training, "gradient_checkpointing")
    if form == "auto":
        on_gpu = training.device.type == "cuda"
        own_gb = torch.cuda.get_device_properties(training.device).total_memory / plan.GB if on_gpu else None
        cards_gb = gather_object([own_gb])

        def choose() -> bool | str:
            earlier = read_run(checkpoint).get("checkpointing") if checkpoint else None
            if earlier is not None:
                log.info("gradient_checkpointing: %s, as this training began", earlier["form"])
                return earlier["form"]
            if None in cards_gb:
                return False
            tokens = plan.plan_tokens(recipe, read_step_sizes(rows), n_ranks=1)
            details = build_empty_model(recipe.model), tokens, encoder.layout.patches_a_token
            forms = plan.estimate_forms(recipe, *details, read_launch(os.environ))
            log.info(plan.describe_forms(forms, min(cards_gb)))
            return plan.choose_form(recipe, forms, min(cards_gb))

        form = do_in_first_process(choose)
        run["checkpointing"] = {"form": form}
    training.gradient_checkpointing = training.activation_checkpointing = bool(form)
    return plan.set_form(recipe, form)


def log_data(split: TaskSplit, train: StepRows, encoder: "StepEncoder") -> None:
    """Say how much is trained on, the first text that is learned, and what of the data was left out or shortened."""
    from sft.batches.collator import check_answer_only_labels
    from sft.batches.examples import find_tight_answer_limit

    rows = train.dataset
    supervised = check_answer_only_labels(encoder, [rows[i] for i in range(min(2, len(rows)))])
    log.info("train: %d tasks, %d steps; val: %d tasks", len(split.train), len(rows), len(split.val))
    if split.quarantined:
        log.warning("quarantine: %s", describe_quarantine(split.quarantined)["summary"])
    if encoder.agent.points:
        n_pointing, without = count_points((s for t in split.train for s in t.steps), encoder.agent.actions)
        if without:
            log.warning("%s", describe_missing_points(n_pointing, len(without), without))
    if train.n_left_out:
        log.warning(
            "detected elements: %d left out, in %d of %d prompts (max_elements %d, max_element_tokens %d)",
            train.n_left_out,
            train.n_with_left_out,
            len(rows),
            encoder.agent.max_elements,
            encoder.agent.max_element_tokens,
        )
    if tight := find_tight_answer_limit(zip(rows["completion"], rows["n_answer_tokens"]), encoder.agent):
        log.warning("%s", tight)
    log.info("prompts whose memory was shortened: %d; first supervised text: %s", train.n_shortened, supervised)


def print_plan(argv: list[str]) -> None:
    """Print what a run will take, from configs and data alone."""
    from sft.plan import build_plan

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--card_gb", type=float, default=40.0)
    try:
        own, others = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError("--card_gb: expected the card's memory in GB, e.g. --card_gb 40") from error
    recipe = parse_recipe(others)
    print(build_plan(recipe, check_inputs(recipe, needs_weights=False), own.card_gb))


if __name__ == "__main__":
    watch_for_preemption()
    run_command(main)
