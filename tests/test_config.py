"""Recipes: every key checked before anything is loaded, the command line over the file, and back to YAML."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from trl import SFTConfig

from sft.agent import AgentConfig, agent_to_json
from sft.errors import UserError
from sft.recipe.launch import build_training_arguments
from sft.recipe.recipe import (
    RecipeError,
    load_agent_config,
    load_model_settings,
    parse_recipe,
    resolves_to_bf16,
)

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MINIMAL = "train_csv: train.csv\nmodel_name_or_path: some/model\n"


@pytest.fixture
def parse(tmp_path):
    """Parse a recipe of the given text with the given command line."""

    def parse(text=MINIMAL, *arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return parse_recipe([str(path), *arguments])

    return parse


def _problems(parse, *arguments):
    with pytest.raises(RecipeError) as caught:
        parse(*arguments)
    return caught.value.problems


def test_recipe_of_two_lines_has_a_default_for_everything_else(parse):
    recipe = parse()
    assert (recipe.data.train_csv, recipe.data.val_csv, recipe.data.task_end) == ("train.csv", None, None)
    assert recipe.model.load_in_4bit
    assert recipe.model.dtype == "bfloat16"
    assert recipe.agent == AgentConfig()
    assert recipe.training == {}


def test_command_line_wins_over_the_file(parse):
    recipe = parse(
        MINIMAL + "lora_r: 4\nlearning_rate: 0.1\n", "--learning_rate", "1e-4", "--lora_r=8", "--val-csv", "v.csv"
    )
    assert (recipe.training["learning_rate"], recipe.model.lora_r, recipe.data.val_csv) == (0.0001, 8, "v.csv")


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("learning_rate", "1e-4", 0.0001),
        ("num_train_epochs", "3", 3.0),
        ("max_steps", "-1", -1),
        ("eval_strategy", "no", "no"),
        ("report_to", "none", "none"),
        ("bf16", "no", False),
        ("bf16", "true", True),
        ("run_name", "false_start", "false_start"),
        ("gradient_checkpointing_kwargs", "{use_reentrant: false}", {"use_reentrant": False}),
        ("warmup_steps", "0.03", 0.03),
    ],
)
def test_value_on_the_command_line_gets_its_type(parse, flag, text, value):
    found = parse(MINIMAL, f"--{flag}", text).training[flag]
    assert found == value
    assert type(found) is type(value)


def test_order_of_steps_is_drawn_from_data_seed_or_else_from_seed(parse):
    seed = ("--seed", "7")
    assert [parse(MINIMAL, *given).data_seed for given in ([], seed, [*seed, "--data_seed", "0"])] == [42, 7, 0]


def test_data_of_the_command_line_is_not_validated_on_the_recipe_s(parse):
    text = MINIMAL + "val_csv: demo/data/val.csv\n"
    assert _problems(parse, text, "--train_csv", "mine.csv") == (
        "val_csv: found demo/data/val.csv of the recipe beside --train_csv mine.csv; expected --val_csv too, so that "
        "the best checkpoint is chosen on your tasks: a file, or null with --val_split 0.1",
    )
    assert parse(text, "--train_csv", "mine.csv", "--val_csv", "v.csv").data.val_csv == "v.csv"
    assert parse(text, "--train_csv", "mine.csv", "--val_csv", "null", "--val_split", "0.1").data.val_split == 0.1


@pytest.mark.parametrize(
    ("lines", "is_bf16"),
    [
        ("dtype: float32", False),
        ("dtype: float32\nbf16: null", False),
        ("dtype: float32\nbf16: true", True),
        ("dtype: bfloat16", True),
        ("", True),
    ],
)
def test_float32_is_computed_in_float32_unless_the_recipe_says_otherwise(parse, tmp_path, lines, is_bf16):
    recipe = parse(f"{MINIMAL}{lines}\n", "--use_cpu", "true", "--output_dir", str(tmp_path))
    assert build_training_arguments(recipe).bf16 is is_bf16
    assert resolves_to_bf16(recipe.training) is is_bf16


def test_lists_and_null_can_be_given_on_the_command_line(parse):
    recipe = parse(MINIMAL + "val_csv: v\n", "--lora_parts", "[language, merger]", "--val_csv", "null")
    assert recipe.model.lora_parts == ("language", "merger")
    assert recipe.data.val_csv is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("learning_rat: 1", "learning_rat: found an unknown key; did you mean learning_rate?"),
        ("train_cvs: x", "train_cvs: found an unknown key; did you mean train_csv?"),
        ("qqqq: 1", "qqqq: found an unknown key"),
        ("7: 1", "7: found an unknown key"),
        ("lora_r: 2.7", "lora_r: found 2.7; expected int"),
        ("lora_r: true", "lora_r: found True; expected int"),
        ("lora_r: many", "lora_r: found 'many'; expected int"),
        ("lora_r: null", "lora_r: found None; expected int"),
        ("lora_r: 0", "lora_r: found 0; expected at least 1"),
        ("max_steps: 2.7", "max_steps: found 2.7; expected int"),
        ("max_steps: true", "max_steps: found True; expected int"),
        ("learning_rate: fast", "learning_rate: found 'fast'; expected float"),
        ("learning_rate: true", "learning_rate: found True; expected float"),
        ("load_in_4bit: maybe", "load_in_4bit: found 'maybe'; expected bool"),
        ("image_root: 7", "image_root: found 7; expected str"),
        ("dtype: int8", "dtype: found 'int8'; expected"),
        ("memory_writer: both", "memory_writer: found 'both'; expected"),
        ("lora_parts: [head]", "lora_parts: found ['head']; expected"),
        ("actions: [CLICK]", "actions: found ['CLICK']; expected a list of {name, description"),
        ("output_dir: ''", "output_dir: found ''; expected text that is not empty, or null"),
        ("val_csv: '  '", "val_csv: found '  '; expected text that is not empty, or null"),
        ("max_pixels: 9", "max_pixels: found 9; expected at least min_pixels=65536"),
        ("learning_rate: .nan", "learning_rate: found nan; expected a finite number"),
        ("logging_steps: .inf", "logging_steps: found inf; expected a finite number"),
        ("seed: -1", "seed: found -1; expected at least 0"),
        ("data_seed: 4294967296", "data_seed: found 4294967296; expected at most 4294967295"),
        ("adam_beta2: 1.5", "adam_beta2: found 1.5; expected a share from 0 to below 1"),
        ("weight_decay: -1", "weight_decay: found -1.0; expected at least 0"),
        ("label_smoothing_factor: 2", "label_smoothing_factor: found 2.0; expected at most 1"),
        ("max_steps: -5", "max_steps: found -5; expected at least 1, or -1 for num_train_epochs"),
        ("log_level: foo", "log_level: found foo; expected one of detail, debug, info"),
        ("log_level_replica: 7", "log_level_replica: found 7; expected str"),
        ("loss_type: foo", "loss_type: found foo; expected one of nll, dft"),
        ("loss_weights: {memory: -1}", "loss_weights: found -1.0 for memory; expected at least 0"),
        ("dataloader_persistent_workers: true", "dataloader_persistent_workers: found without workers"),
        ("val_split: 1.5", "val_split: found 1.5; expected a share from 0 to below 1"),
        ("val_split: 0.1\nval_csv: v.csv", "val_split: found together with val_csv"),
        ("lora_dropout: 1", "lora_dropout: found 1.0; expected a share"),
        ("eval_strategy: epoch", "eval_strategy: found no validation data; give val_csv or val_split"),
        ("metric_for_best_model: swa\nval_csv: v\nval_rollout_tasks: 0", "metric_for_best_model: found swa without"),
        ("early_stopping_patience: 2", "early_stopping_patience: found without load_best_model_at_end"),
        ("use_peft: false", "use_peft: found false with load_in_4bit"),
        ("lora_parts: []", "lora_parts: found nothing to train"),
        ("vision_cache_gb: 40", "vision_cache_gb: found without screenshot_cache; expected the folder"),
        (
            "vision_cache_gb: 40\nscreenshot_cache: c\nlora_parts: [language, merger]",
            "vision_cache_gb: found together with lora_parts with merger, whose training changes what is kept",
        ),
        (
            "vision_cache_gb: 40\nscreenshot_cache: c\nuse_peft: false\nload_in_4bit: false",
            "vision_cache_gb: found together with use_peft: false, whose training changes what is kept",
        ),
        ("max_length: 1024", "max_length: found a key that does not apply here; steps are never cut"),
        (
            "resume_from_checkpoint: true",
            "resume_from_checkpoint: found a key that does not apply here; use resume: auto",
        ),
        ("hub_token: hf_x", "hub_token: found a key that does not apply here; a recipe is saved with the model"),
        ("completion_only_loss: false", "completion_only_loss: found a key that does not apply here; the loss is"),
    ],
)
def test_wrong_line_says_key_found_and_expected(parse, line, problem):
    problems = _problems(parse, MINIMAL + line + "\n")
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_all_problems_are_told_at_once_and_each_names_the_file(parse, tmp_path):
    with pytest.raises(RecipeError) as caught:
        parse("lora_r: 2.7\nmax_steps: true\nlearning_rat: 1\nmax_length: 9\n")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/recipe.yaml: {problem}" for problem in caught.value.problems
    ]
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "train_csv",
        "model_name_or_path",
        "lora_r",
        "max_steps",
        "learning_rat",
        "max_length",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found NoneType; expected lines of the form key: value"),
        ("- a\n- b\n", "found list; expected lines of the form key: value"),
        ("just words", "found str; expected lines of the form key: value"),
        (
            "lora_r: 1\nlora_alpha: 2\nlora_r: 3\n",
            "line 3: found key 'lora_r' again (first in line 1); expected it once",
        ),
        ("a: {b: 1, b: 2}", "found key 'b' again"),
        ("train_csv: {{ path }}", "line 1: found {'path': None} as a key; expected text: quote braces"),
        ("train_csv: [unclosed\n", "expected"),
        ("\ttrain_csv: x\n", "found character '\\t' that cannot start any token"),
        ("train_csv: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_file_that_is_no_recipe_is_refused(parse, text, problem):
    problems = _problems(parse, text)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--lora_r"], "found --lora_r without a value; expected --lora_r VALUE"),
        (["lora_r", "3"], "found 'lora_r' on the command line; expected --key value"),
        (["--lora_parts", "[a"], "--lora_parts: found '[a'; expected a YAML value"),
        (["--lora_rr", "3"], "lora_rr: found an unknown key; did you mean lora_r?"),
    ],
)
def test_wrong_command_line_is_refused(parse, arguments, problem):
    assert _problems(parse, MINIMAL, *arguments) == (problem,)


def test_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none.yaml: found no such file; expected a recipe in YAML"):
        parse_recipe([str(tmp_path / "none.yaml")])
    with pytest.raises(RecipeError, match="found no recipe; expected: run.py RECIPE.yaml"):
        parse_recipe(["--lora_r", "3"])


def test_recipe_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{MINIMAL}output_dir: modèle\n", encoding="latin-1")
    with pytest.raises(
        RecipeError, match="found text that is not UTF-8 .*; expected a recipe in YAML.*saved as UTF-8"
    ):
        parse_recipe([str(path)])


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert parse_recipe([str(path)]).data.train_csv == "train.csv"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_parses_and_survives_its_resolved_form(path, tmp_path):
    recipe = parse_recipe([str(path)])
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipe.to_yaml(), encoding="utf-8")
    assert dataclasses.replace(parse_recipe([str(resolved)]), path=path) == recipe
    assert load_model_settings(tmp_path) == recipe.model


def test_training_arguments_never_cut_a_step(parse, tmp_path):
    recipe = parse(MINIMAL, "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false")
    arguments = build_training_arguments(recipe)
    assert arguments.max_length is None
    assert arguments.remove_unused_columns is False
    assert arguments.dataset_kwargs == {"skip_prepare_dataset": True}


def test_one_process_trains_on_one_gpu_however_many_it_sees(parse, tmp_path, monkeypatch):
    """Else transformers would cut each packed sequence up for all of them (DataParallel)."""

    def see_four(self, post_init=SFTConfig.__post_init__):
        post_init(self)
        self._n_gpu = 4

    monkeypatch.setattr(SFTConfig, "__post_init__", see_four)
    training = build_training_arguments(parse(MINIMAL, "--output_dir", str(tmp_path), "--use_cpu", "true"))
    assert training.n_gpu == 1 and training.eval_batch_size == 1


def test_batch_size_of_validation_is_that_of_training_unless_given(parse, tmp_path):
    common = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--packing", "none"]
    two = build_training_arguments(parse(MINIMAL, *common, "--per_device_train_batch_size", "2"))
    assert two.per_device_eval_batch_size == 2
    assert build_training_arguments(parse(MINIMAL, *common, "--per_device_eval_batch_size", "4")).eval_batch_size == 4


def test_what_trl_refuses_names_the_recipe(parse):
    recipe = parse(MINIMAL, "--lr_scheduler_type", "sometimes")
    with pytest.raises(RecipeError, match=r"recipe.yaml: lr_scheduler_type: .*sometimes"):
        build_training_arguments(recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"agent_config.json: found no such file; expected the agent configuration that sft/run.py saves"),
        ("{", r"agent_config.json: found broken JSON"),
        ("[]", r"agent_config.json: found list; expected a JSON object"),
        ('{"prompt_version": "0"}', r"agent_config.json: found prompt_version '0'; expected one of 1, 2"),
    ],
)
def test_agent_config_of_a_model_folder_is_checked(tmp_path, content, message):
    if content is not None:
        (tmp_path / "agent_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_agent_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_answer_tokens", 10**9, "at most 65536"),
        ("max_prompt_tokens", 10**30, "at most 1048576"),
        ("max_pixels", 10**12, "at most 40000000"),
        ("max_elements", -1, "at least 1"),
        ("memory_budget_chars", float("inf"), "int"),
        ("max_answer_tokens", "512; rm -rf", "int"),
        ("max_answer_tokens", None, "int"),
        ("memory_writer", "shell", "one of model, rule"),
        ("points", "perhaps", "bool"),
    ],
)
def test_absurd_value_in_a_model_folder_is_refused(tmp_path, key, value, expected):
    (tmp_path / "agent_config.json").write_text(json.dumps({**agent_to_json(AgentConfig()), key: value}))
    with pytest.raises(UserError, match=rf"agent_config.json: {key}: found .*; expected {expected}"):
        load_agent_config(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_agent_config_of_endless_levels_is_refused(tmp_path, text):
    (tmp_path / "agent_config.json").write_text(text)
    with pytest.raises(UserError, match="more levels than can be read"):
        load_agent_config(tmp_path)


@pytest.mark.parametrize("key", ["lora_r", "max_answer_tokens", "max_prompt_tokens", "tokens_per_batch", "max_pixels"])
def test_absurd_value_in_a_recipe_is_refused(parse, key):
    with pytest.raises(RecipeError, match=rf"{key}: found 1000000000; expected at most"):
        parse(MINIMAL, f"--{key}", "1000000000")


def test_agent_config_is_read_from_the_folder_or_from_the_file_named(tmp_path):
    for name, agent in (("agent_config.json", AgentConfig()), ("mine.json", AgentConfig(use_long_term=False))):
        (tmp_path / name).write_text(json.dumps(agent_to_json(agent)), encoding="utf-8-sig")  # as Notepad saves it
    assert load_agent_config(tmp_path) == AgentConfig()
    assert load_agent_config(tmp_path, tmp_path / "mine.json") == AgentConfig(use_long_term=False)
    with pytest.raises(UserError, match="found no such folder"):
        load_agent_config(tmp_path / "missing")


def test_recipe_is_checked_without_torch(tmp_path):
    (tmp_path / "recipe.yaml").write_text(MINIMAL + "lora_r: 2.7\nlearning_rate: 1e-4\nmax_steps: 1.5\n")
    code = (
        "import sys\nfrom sft.recipe.recipe import RecipeError, parse_recipe\n"
        f"try: parse_recipe([{str(tmp_path / 'recipe.yaml')!r}])\n"
        "except RecipeError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "lora_r: found 2.7; expected int" in output and "max_steps: found 1.5; expected int" in output
    assert output.endswith("False\n")


def test_references_that_multiply_and_that_lead_back_are_refused_at_once(tmp_path):
    """Nine lines that stand for a billion values, and a list that holds itself."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    for text in ("\n".join(lines), "a: &a [*a]"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match="found more than 100000 values, through references"):
            parse_recipe([str(path)])
    path.write_text((ROOT / "recipes/demo.yaml").read_text() + "loss_weights: &w {action: 2.0}\nrun_name: &n x\n")
    assert parse_recipe([str(path)]).training["run_name"] == "x"
