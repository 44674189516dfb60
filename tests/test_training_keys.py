"""Every key of TRL's SFTConfig acts here or is refused with the way out; none is taken and ignored."""

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from test_config import MINIMAL, ROOT
from training_runs import load_adapter, read_losses, write_recipe
from trajectory_samples import build_tasks, write_trajectories
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTConfig

from sft import run
from sft.recipe.launch import build_training_arguments
from sft.recipe.recipe import RecipeError, parse_recipe
from sft.recipe.settings import find_default
from sft.recipe.training_keys import ACTING_KEYS, REFUSED_KEYS, TRAINING_KEYS
from sft.recipe.unknown_keys import KNOWN_SPELLINGS
from sft.trainer import TrajectoryTrainer

FIELDS = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
ACTING = set(TRAINING_KEYS)


@pytest.fixture
def problems(tmp_path):
    """Return the problems of a recipe with the given line, those of TRL's configuration included."""

    def find(line, text=MINIMAL):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{text}output_dir: {tmp_path}/out\nuse_cpu: true\n{line}\n")
        try:
            build_training_arguments(parse_recipe([str(path)]))
        except RecipeError as error:
            return list(error.problems)
        return []

    return find


def test_no_field_of_the_installed_config_is_unclassified():
    """A new version of trl has new ones: say in sft/recipe/training_keys.py what becomes of them."""
    assert ACTING & set(REFUSED_KEYS) == set()
    assert FIELDS - ACTING - set(REFUSED_KEYS) == {"packing"}, "a key of ours has this name"
    assert (ACTING | set(REFUSED_KEYS)) - FIELDS == set()
    assert sum(len(keys) for keys in ACTING_KEYS.values()) == len(ACTING)


def test_types_and_defaults_of_the_keys_are_those_of_the_installed_config():
    """Enumerations of transformers stand in the table as text, which is what a recipe can hold.

    gradient_checkpointing takes two words beside a bool.
    """
    types = get_type_hints(SFTConfig)
    enumerated = {"lr_scheduler_type", "optim", "debug", "logging_strategy", "eval_strategy", "save_strategy"}
    other = {name for name, key in TRAINING_KEYS.items() if key.type != types[name]}
    assert other == {*enumerated, "gradient_checkpointing"}
    fields = [field for field in dataclasses.fields(SFTConfig) if field.name in ACTING]
    assert {field.name: find_default(field) for field in fields} == {n: k.default for n, k in TRAINING_KEYS.items()}
    assert set(TRAINING_KEYS["eval_strategy"].among) == {member.value for member in IntervalStrategy}
    assert set(TRAINING_KEYS["save_strategy"].among) == {member.value for member in SaveStrategy}


@pytest.mark.parametrize("key", sorted(REFUSED_KEYS))
def test_refused_key_says_why_and_what_to_do(problems, key):
    (problem,) = problems(f"{key}: not_its_default")
    assert problem == f"{key}: found a key that does not apply here; {REFUSED_KEYS[key]}"


@pytest.mark.parametrize(
    "line",
    [
        "dataloader_drop_last: false",
        "train_sampling_strategy: random",
        "torch_compile: false",
        "use_liger_kernel: false",
        "fsdp: null",
        "auto_find_batch_size: false",
        "pad_to_multiple_of: auto",
        "max_length: null",
        "remove_unused_columns: false",
        "dataset_kwargs: {skip_prepare_dataset: true}",
        "prediction_loss_only: true",
        "router_aux_loss_coef: 0",
    ],
)
def test_refused_key_that_asks_for_what_is_done_anyway_is_taken(problems, line):
    assert problems(line) == []


def test_key_of_a_newer_trl_is_refused(problems, monkeypatch):
    fewer = {name: key for name, key in TRAINING_KEYS.items() if name != "loss_type"}
    monkeypatch.setattr("sft.recipe.recipe.TRAINING_KEYS", fewer)
    assert problems("loss_type: dft")[0].startswith("loss_type: found a key of TRL's that was not tried")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("report_to: swanlab", "report_to: found swanlab, whose package swanlab is missing"),
        ("report_to: [tensorboard, clearml]", "report_to: found clearml, whose package clearml is missing"),
        ("report_to: codecarbon", "report_to: found codecarbon (which all stands for too)"),
        ("report_to: all", "report_to: found codecarbon (which all stands for too)"),
        ("report_to: wandbb", "report_to: found wandbb; expected some of azure_ml, clearml"),
        ("project: mine", "project: found without report_to trackio"),
        ("optim: galore_adamw", "optim: found galore_adamw, whose package is missing; expected `pip install galore-"),
        ("optim: apollo_adamw", "optim: found apollo_adamw, whose package is missing; expected `pip install apollo-"),
        (
            "optim: schedule_free_adamw",
            "optim: found schedule_free_adamw, which cannot be built here (You need to ins",
        ),
        ("optim: stable_adamw", "optim: found stable_adamw, which cannot be built here (You need to install"),
        ("optim: grokadamw", "optim: found grokadamw, which cannot be built here (Please install"),
        ("optim: adamw_torch_4bit", "optim: found adamw_torch_4bit, which cannot be built here (You need to have"),
        ("optim: lomo", "optim: found lomo, which updates weights within the backward pass"),
        ("optim: galore_adamw_layerwise", "optim: found galore_adamw_layerwise, which updates weights within the"),
        ("optim_target_modules: all-linear", "optim_target_modules: found with optim adamw_torch_fused"),
        ("optim_args: momentum", "optim_args: found 'momentum'; expected key=value"),
        ("optim_args: rank=3", "optim_args: found rank=3, which optim adamw_torch_fused does not read"),
        ("optim: sgd\nadam_beta1: 0.5", "adam_beta1: found 0.5, which optim sgd does not read"),
        ("optim: adafactor\nadam_epsilon: 0.1", "adam_epsilon: found 0.1, which optim adafactor does not read"),
        (
            "lr_scheduler_type: cosine_with_min_lr",
            "lr_scheduler_kwargs: found None with lr_scheduler_type cosine_with",
        ),
        (
            "lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: many}",
            "lr_scheduler_kwargs: found {'num_cycles': 'many'} with lr_scheduler_type cosine, which cannot be built",
        ),
        (
            "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: [2]}",
            "lr_scheduler_kwargs: found {'power': [2]} with lr_scheduler_type polynomial, which cannot be built",
        ),
        (
            "lr_scheduler_type: polynomial\nlearning_rate: 1e-5\nlr_scheduler_kwargs: {lr_end: 0.1}",
            "lr_scheduler_kwargs: found {'lr_end': 0.1} with lr_scheduler_type polynomial, which cannot be built of "
            "it (lr_end (0.1) must be smaller than initial lr (1e-05))",
        ),
        (
            "lr_scheduler_type: inverse_sqrt\nlr_scheduler_kwargs: {timescale: .nan}",
            "lr_scheduler_kwargs: found nan for timescale; expected a finite number",
        ),
        (
            "val_csv: v\neval_strategy: epoch\nlr_scheduler_type: reduce_lr_on_plateau\nlr_scheduler_kwargs: "
            "{patience: long}",
            "lr_scheduler_kwargs: found {'patience': 'long'} with lr_scheduler_type reduce_lr_on_plateau",
        ),
        ("lr_scheduler_kwargs: steep", "lr_scheduler_kwargs: found steep with lr_scheduler_type linear"),
        ("neftune_noise_alpha: -1", "neftune_noise_alpha: found -1.0; expected more than 0"),
        ("ddp_timeout: 0", "ddp_timeout: found 0; expected at least 1"),
        ("ddp_timeout: 10000000000", "ddp_timeout: found 10000000000; expected at most 1000000000"),
        ("torch_empty_cache_steps: 0", "torch_empty_cache_steps: found 0; expected at least 1"),
        ("debug: [overflow]", "debug: found ['overflow']; expected str or a list of underflow_overflow"),
        ("lr_scheduler_kwargs: {a: 1}", "lr_scheduler_kwargs: found {'a': 1} with lr_scheduler_type linear"),
        ("lr_scheduler_type: constant\nwarmup_steps: 3", "warmup_steps: found with lr_scheduler_type constant"),
        ("fp16: true", "fp16: found with use_cpu, where it does nothing"),
        ("packing: none\nattn_implementation: flash_attention_2", "attn_implementation: found flash_attention_2, who"),
        ("attn_implementation: flash_attention_2", "packing: flash_attention_2 cannot take the mask of a packed"),
        (
            "label_smoothing_factor: 0.1\nloss_weights: {action: 2}",
            "label_smoothing_factor: found together with loss_",
        ),
        ("loss_type: dft\nloss_weights: {action: 2}", "loss_type: found dft together with loss_weights"),
        ("label_smoothing_factor: 0.1\nloss_type: dft", "label_smoothing_factor: found with loss_type dft"),
        (
            "per_device_train_batch_size: 4",
            "per_device_train_batch_size: found together with packing; expected tokens",
        ),
        ("per_device_eval_batch_size: 4", "per_device_eval_batch_size: found together with packing; expected tokens"),
        ("save_total_limit: 0", "save_total_limit: found 0; expected at least 1"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps: found 0; expected at least 1"),
        ("max_steps: 0", "max_steps: found 0; expected at least 1, or -1"),
        ("num_train_epochs: 0", "num_train_epochs: found 0.0; expected more than 0"),
    ],
)
def test_what_cannot_be_used_here_is_refused_before_a_model_is_loaded(problems, line, problem):
    found = problems(line)
    assert len(found) == 1, found
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("torch_dtype: bfloat16", "torch_dtype: found an unknown key; did you mean dtype?"),
        ("evaluation_strategy: epoch", "evaluation_strategy: found an unknown key; did you mean eval_strategy?"),
        (
            "max_seq_length: 4096",
            "max_seq_length: found an unknown key; did you mean max_prompt_tokens? (steps are nev",
        ),
        (
            "per_device_batch_size: 4",
            "per_device_batch_size: found an unknown key; did you mean tokens_per_batch? (to",
        ),
        ("batch_size: 4", "batch_size: found an unknown key; did you mean tokens_per_batch?"),
        ("lora_rank: 8", "lora_rank: found an unknown key; did you mean lora_r?"),
        (
            "lora_target_modules: all-linear",
            "lora_target_modules: found an unknown key; did you mean lora_parts? (LoR",
        ),
        ("target_modules: q_proj", "target_modules: found an unknown key; did you mean lora_parts?"),
        ("quantization_bit: 4", "quantization_bit: found an unknown key; did you mean load_in_4bit?"),
        ("flash_attn: fa2", "flash_attn: found an unknown key; did you mean attn_implementation?"),
        ("num_epochs: 3", "num_epochs: found an unknown key; did you mean num_train_epochs?"),
        ("model_name: a", "model_name: found an unknown key; did you mean model_name_or_path?"),
        ("warmup_ratio: 0.1", "warmup_ratio: found an unknown key; did you mean warmup_steps? (a number of steps, or"),
        ("LR: 0.1", "LR: found an unknown key; did you mean learning_rate?"),
        ("group_by_length: true", "group_by_length: found an unknown key; packing decides which steps are in one"),
        ("use_kernels: true", "use_kernels: found an unknown key; kernels from the Hub were not tried"),
        ("learning_rat: 1", "learning_rat: found an unknown key; did you mean learning_rate?"),
    ],
)
def test_name_of_another_tool_or_version_leads_to_ours(problems, line, problem):
    assert problems(line)[0].startswith(problem)


@pytest.mark.slow
def test_known_spellings_lead_to_keys_that_can_be_set(problems):
    for name, (ours, sentence) in KNOWN_SPELLINGS.items():
        assert name == name.lower() and name not in FIELDS
        assert sentence or ours
        assert problems(f"{name}: x")[0].startswith(f"{name}: found an unknown key")
        if ours:
            assert ours not in REFUSED_KEYS
            assert not any("unknown key" in p for p in problems(f"{ours}: x", text=_without(ours)))


def _without(key):
    return "".join(line + "\n" for line in MINIMAL.splitlines() if not line.startswith(f"{key}:"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "metric_for_best_model: swa_target\nval_rollout_tasks: 0",
            "metric_for_best_model: found swa_target without a",
        ),
        (
            "metric_for_best_model: eval_swa\nval_rollout_tasks: 0",
            "metric_for_best_model: found swa without a rollout",
        ),
        (
            "metric_for_best_model: swa_traget",
            "metric_for_best_model: found swa_traget, which no evaluation gives; expected one of loss, "
            "mean_token_accuracy, entropy, swa, swa_target",
        ),
        ("metric_for_best_model: accuracy", "metric_for_best_model: found accuracy, which no evaluation gives"),
        ("metric_for_best_model: loss\ngreater_is_better: true", "greater_is_better: found true with loss, of which"),
        ("metric_for_best_model: swa\ngreater_is_better: false", "greater_is_better: found false with swa, of which"),
        ("load_best_model_at_end: true\neval_strategy: no", "load_best_model_at_end: found true without evaluations"),
        (
            "load_best_model_at_end: true\nsave_strategy: epoch",
            "load_best_model_at_end: found save_strategy epoch and",
        ),
        ("load_best_model_at_end: true\nsave_strategy: no", "load_best_model_at_end: found save_strategy no and"),
        (
            "load_best_model_at_end: true\nsave_steps: 50\neval_steps: 20",
            "load_best_model_at_end: found save_steps 50 and eval_steps 20; expected save_steps to be a multiple",
        ),
        (
            "load_best_model_at_end: true\nsave_steps: 0.5\neval_steps: 20",
            "load_best_model_at_end: found save_steps 0.5 and eval_steps 20; expected save_steps to be a multiple",
        ),
        ("save_strategy: best", "save_strategy: found best without metric_for_best_model"),
        (
            "save_strategy: best\nmetric_for_best_model: loss\neval_strategy: no",
            "save_strategy: found best without ev",
        ),
        (
            "lr_scheduler_type: reduce_lr_on_plateau\neval_strategy: no",
            "lr_scheduler_type: found reduce_lr_on_plateau",
        ),
        (
            "eval_strategy: daily\nload_best_model_at_end: true",
            "eval_strategy: found daily; expected one of no, steps",
        ),
        ("save_strategy: daily", "save_strategy: found daily; expected one of no, steps, epoch, best"),
        ("metric_for_best_model: ''", "metric_for_best_model: found , which no evaluation gives"),
        (
            "metric_for_best_model: entropy\nload_best_model_at_end: true\nsave_steps: 10",
            "metric_for_best_model: found entropy; expected greater_is_better beside it",
        ),
        ("early_stopping_patience: 2", "early_stopping_patience: found without load_best_model_at_end"),
    ],
)
def test_evaluation_that_cannot_give_what_is_chosen_by_is_refused(problems, line, problem):
    strategy = "" if "eval_strategy" in line else "eval_strategy: steps\n"
    found = problems(f"val_csv: v.csv\n{strategy}{line}")
    assert len(found) == 1, found
    assert found[0].startswith(problem)


@pytest.mark.parametrize("key", ["eval_on_start: true", "eval_strategy: epoch"])
def test_evaluation_without_validation_data_is_refused(problems, key):
    name = key.split(":")[0]
    off = {"eval_on_start": "false", "eval_strategy": "no"}[name]
    assert problems(key) == [
        f"{name}: found no validation data; give val_csv or val_split, or train without: --{name} {off}"
    ]


def test_recipe_whose_validation_data_is_taken_away_names_every_key_that_needs_it():
    with pytest.raises(RecipeError) as error:
        parse_recipe([str(ROOT / "recipes/qwen3vl.yaml"), "--val_csv", "null"])
    without = "--eval_strategy no --eval_on_start false --load_best_model_at_end false"
    assert all(problem.endswith(f"or train without: {without}") for problem in error.value.problems)
    assert not parse_recipe([str(ROOT / "recipes/qwen3vl.yaml"), "--val_csv", "null", *without.split()]).data.val_csv


@pytest.mark.parametrize(
    "line",
    [
        "metric_for_best_model: eval_loss\nload_best_model_at_end: true\nsave_steps: 10",
        "metric_for_best_model: mean_token_accuracy\ngreater_is_better: true",
        "metric_for_best_model: entropy\ngreater_is_better: false",
        "load_best_model_at_end: true\nsave_steps: 0.1\neval_steps: 0.1",
        "load_best_model_at_end: true\nsave_steps: 0.3\neval_steps: 0.1",
        "load_best_model_at_end: true\nsave_strategy: best",
        "lr_scheduler_type: reduce_lr_on_plateau",
    ],
)
def test_evaluation_that_gives_what_is_chosen_by_is_taken(problems, line):
    assert problems(f"val_csv: v.csv\neval_strategy: steps\n{line}") == []


@pytest.fixture(scope="module")
def train(tiny_checkpoints, tmp_path_factory):
    """Train two steps, with what the given lines of the command say besides; return the trainer."""
    folder = tmp_path_factory.mktemp("keys")
    recipe = write_recipe(folder, tiny_checkpoints["qwen3_vl"])
    write_trajectories(folder / "val", build_tasks(1, first=50))
    common = ["--max_steps", "2", "--save_strategy", "no", "--lora_dropout", "0", "--val_rollout_tasks", "0"]
    trainers = []

    def keep(self, *args, build=TrajectoryTrainer.__init__, **kwargs):
        build(self, *args, **kwargs)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryTrainer, "__init__", keep)

        def train(*arguments):
            out = folder / f"out{len(trainers)}"
            run.main([str(recipe), *common, "--output_dir", str(out), *arguments])
            return trainers[-1]

        train.val = ["--val_csv", str(folder / "val/tasks.csv"), "--eval_strategy", "steps", "--eval_steps", "1"]
        yield train


@pytest.fixture(scope="module")
def usual(train):
    return load_adapter(_folder(train()))


def _folder(trainer):
    return Path(trainer.args.output_dir)


def _is_same(adapter, other):
    return all(torch.equal(adapter[name], other[name]) for name in adapter)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "--num_train_epochs 1 --max_steps -1",
        "--max_steps 1",
        "--gradient_accumulation_steps 2",
        "--seed 9",
        "--data_seed 9",
        "--learning_rate 5e-3",
        "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {min_lr_rate:0.9}",
        "--warmup_steps 2",
        "--optim paged_lion_8bit",
        "--optim adafactor",
        "--optim rmsprop --optim_args momentum=0.9",
        "--weight_decay 0.5",
        "--adam_beta1 0.5",
        "--adam_beta2 0.5",
        "--adam_epsilon 0.1",
        "--max_grad_norm 0.01",
        "--label_smoothing_factor 0.1",
        "--loss_type dft",
        "--neftune_noise_alpha 5",
        "--bf16 true",
        "--packing none --per_device_train_batch_size 3",
    ],
)
def test_key_of_the_course_the_optimiser_or_the_loss_changes_the_weights(train, usual, arguments):
    arguments = [a.replace("rate:", "rate: ") for a in arguments.split(" ")]
    assert not _is_same(load_adapter(_folder(train(*arguments))), usual)


@pytest.mark.slow
def test_lr_scheduler_kwargs_and_optim_args_are_read(train):
    for key, arguments in {
        "lr_scheduler_kwargs": ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", "{power: 3}"],
        "optim_args": ["--optim", "rmsprop", "--optim_args", "momentum=0.9"],
    }.items():
        with_key, without = train(*arguments), train(*arguments[: arguments.index(f"--{key}")])
        assert not _is_same(*(load_adapter(_folder(trainer)) for trainer in (with_key, without)))


@pytest.mark.slow
def test_keys_that_change_no_weight_reach_what_reads_them(train, usual, monkeypatch):
    """One run with a key of each other family; what comes of it is looked at where it is used."""
    cleared = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda: cleared.append(1))
    arguments = "--torch_empty_cache_steps 1 --full_determinism true --ddp_bucket_cap_mb 7 --ddp_static_graph true "
    arguments += "--ddp_broadcast_buffers false --ddp_find_unused_parameters true --dataloader_num_workers 1 "
    arguments += "--dataloader_prefetch_factor 3 --dataloader_persistent_workers true --logging_steps 2 "
    arguments += "--logging_first_step true --disable_tqdm true --report_to tensorboard --log_level error "
    arguments += "--debug underflow_overflow --gradient_checkpointing true --eval_delay 2 --eval_on_start true"
    try:
        trainer = train(*arguments.split(), *train.val)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    handler = trainer.accelerator.ddp_handler
    assert (handler.bucket_cap_mb, handler.static_graph) == (7, True)
    assert (handler.broadcast_buffers, handler.find_unused_parameters) == (False, True)
    loader = trainer.callback_handler.train_dataloader
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 3, True)
    assert not trainer.get_eval_dataloader().persistent_workers  # each evaluation has a new one
    history = trainer.state.log_history
    assert [row["step"] for row in history if "loss" in row] == [1, 2]
    assert [row["step"] for row in history if "eval_loss" in row] == [0, 2]
    assert len(cleared) == 2
    assert trainer.model.is_gradient_checkpointing
    assert list(_folder(trainer).rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_average_tokens_across_devices_is_read(attempt, tmp_path):
    """Two processes with different numbers of answer tokens."""
    arguments = ["--max_steps", "1", "--save_strategy", "no", "--lora_dropout", "0", "--load_in_4bit", "false"]
    losses = []
    for i, value in enumerate(("true", "false")):
        settings = {"ranks": 2, "arguments": [*arguments, "--average_tokens_across_devices", value]}
        assert attempt(tmp_path / str(i), settings) == [[0, 0]]
        losses += read_losses(tmp_path / str(i))
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_metrics_that_a_recipe_may_choose_by_are_those_an_evaluation_gives(train):
    arguments = ["--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end", "true"]
    rollout = ["--val_rollout_tasks", "1", "--memory_writer", "rule", "--max_answer_tokens", "40"]
    for metric in ("loss", "mean_token_accuracy", "entropy", "swa", "swa_target"):
        more = list(rollout) if "swa" in metric else []
        more += ["--greater_is_better", "true"] if metric == "entropy" else []
        trainer = train(*train.val, *arguments, "--metric_for_best_model", metric, *more)
        assert trainer.state.best_metric == pytest.approx(
            (min if metric == "loss" else max)(
                row[f"eval_{metric}"] for row in trainer.state.log_history if "eval_loss" in row
            )
        )
