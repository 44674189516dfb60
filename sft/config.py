"""Recipes: one YAML file and command-line overrides to validated settings. Loads no model and reads no data."""

import dataclasses
import difflib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from sft.actions import ActionType
from sft.errors import UserError
from sft.prompts import AgentConfig, agent_from_json

if TYPE_CHECKING:
    from trl import SFTConfig


@dataclass(frozen=True)
class DataSettings:
    """Where the trajectories are and which of them are trained on."""

    train_csv: str = field(metadata={"help": "Trajectory CSV to train on, or a data set of `datasets`."})
    val_csv: str | None = field(default=None, metadata={"help": "Trajectory CSV to validate on."})
    val_split: float = field(
        default=0.0, metadata={"help": "Without val_csv: share of the tasks of train_csv that is held out, by task."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the screenshots [folder of the CSV]."})
    on_bad_rows: Literal["refuse", "quarantine"] = field(
        default="refuse", metadata={"help": "Refuse a file with a bad row, or set its tasks with one aside whole."}
    )
    screenshot_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps resized screenshots between epochs and runs [none]."}
    )
    task_start: int = field(default=0, metadata={"help": "First task of train_csv, by position in natural order."})
    task_end: int | None = field(default=None, metadata={"help": "Position after the last task of train_csv."})


@dataclass(frozen=True)
class ModelSettings:
    """Which model is fine-tuned and how. Names are those of TRL's ModelConfig."""

    model_name_or_path: str = field(metadata={"help": "Local folder or Hub id of the base model."})
    model_revision: str = field(default="main", metadata={"help": "Hub revision of the base model."})
    dtype: Literal["bfloat16", "float16", "float32"] = field(
        default="bfloat16", metadata={"help": "Number format of the weights and of 4-bit arithmetic."}
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = field(
        default="sdpa", metadata={"help": "Attention implementation."}
    )
    load_in_4bit: bool = field(default=True, metadata={"help": "Quantise the language layers to nf4 (QLoRA)."})
    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; false trains every parameter."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the LoRA input."})
    lora_parts: tuple[Literal["language", "merger", "vision"], ...] = field(
        default=("language",), metadata={"help": "Parts of the model that get LoRA matrices."}
    )
    lora_modules_to_save: tuple[str, ...] = field(
        default=(), metadata={"help": "Modules trained in full and saved with the adapter, e.g. embed_tokens."}
    )


@dataclass(frozen=True)
class BatchSettings:
    """How steps become batches."""

    packing: Literal["shared_screenshot", "none"] = field(
        default="shared_screenshot",
        metadata={"help": "Hold what several steps share once in one sequence, or pad each step on its own."},
    )
    loss_weights: dict[Literal["action", "target", "memory"], float] = field(
        default_factory=dict, metadata={"help": "Weight of each answer field's tokens in the loss [1.0 each]."}
    )
    tokens_per_batch: int = field(
        default=4096, metadata={"help": "Most tokens of a packed sequence, images included."}
    )


@dataclass(frozen=True)
class ValidationSettings:
    """The own-memory rollout on validation tasks that runs at each evaluation."""

    val_rollout_tasks: int = field(
        default=16, metadata={"help": "Validation tasks rolled out at each evaluation; 0 switches it off."}
    )
    val_rollout_batch_size: int = field(default=16, metadata={"help": "Tasks answered at once in that rollout."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )


@dataclass(frozen=True)
class Recipe:
    """One validated run. `training` holds the keys for TRL's `SFTConfig`, checked against its field types."""

    path: Path
    data: DataSettings
    model: ModelSettings
    agent: AgentConfig
    batch: BatchSettings
    validation: ValidationSettings
    training: Mapping[str, Any]

    def to_yaml(self) -> str:
        """Render the resolved recipe, every setting of ours spelled out, as YAML that `parse_recipe` reads."""
        resolved: dict[str, Any] = {}
        for settings in (self.data, self.model, self.agent, self.batch, self.validation):
            resolved.update(dataclasses.asdict(settings))
        resolved.pop("prompt_version")
        return yaml.safe_dump(_plain({**resolved, **self.training}), sort_keys=False, allow_unicode=True)


class RecipeError(UserError):
    """A recipe that cannot be run; its text lists every problem found."""

    def __init__(self, path: Path, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


# Keys of SFTConfig that would undo what this package guarantees, and the way out.
_REFUSED_KEYS = {
    "max_length": "steps are never cut; bound them with max_prompt_tokens and max_answer_tokens",
    "truncation_mode": "steps are never cut",
    "completion_only_loss": "the loss is always on the answer only",
    "assistant_only_loss": "the loss is always on the answer only",
    "dataset_text_field": "the data is a trajectory CSV: train_csv",
    "dataset_kwargs": "the data is a trajectory CSV: train_csv",
    "remove_unused_columns": "the collator needs every column",
    "eos_token": "the answer ends with the model's own end-of-turn token",
    "chat_template_path": "the model's own chat template is used",
    "model_init_kwargs": "use dtype, attn_implementation, model_revision",
    "padding_free": "TRL refuses padding-free batches for vision data",
}

_LEAST = {
    "lora_r": 1,
    "lora_alpha": 1,
    "memory_budget_chars": 4,  # two empty objects
    "min_pixels": 1,
    "max_prompt_tokens": 1,
    "max_answer_tokens": 1,
    "tokens_per_batch": 1,
    "val_rollout_tasks": 0,
    "val_rollout_batch_size": 1,
    "early_stopping_patience": 1,
}


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Read `RECIPE.yaml [--key value ...]`; the command line wins over the file. Nothing is loaded.

    Values are YAML: `--lora_parts [language,merger]`, `--val_csv null`. `--key=value` works too.

    Raises:
        RecipeError: every unknown, doubled or missing key and every value of the wrong type, with what was expected.
    """
    if not argv or argv[0].startswith("--"):
        raise RecipeError(Path("recipe"), ["found no recipe; expected: run.py RECIPE.yaml [--key value ...]"])
    path = Path(argv[0])
    problems: list[str] = []
    values = {**_load_yaml(path), **_parse_overrides(path, argv[1:])}
    sections = {
        "data": DataSettings,
        "model": ModelSettings,
        "agent": AgentConfig,
        "batch": BatchSettings,
        "validation": ValidationSettings,
    }
    own_keys = {name for cls in sections.values() for name in _field_types(cls)} - {"prompt_version"}
    training = {k: v for k, v in values.items() if k not in own_keys}
    built = {
        name: _build(cls, {k: v for k, v in values.items() if k in _field_types(cls) and k in own_keys}, problems)
        for name, cls in sections.items()
    }
    checked_training = _check_training_keys(training, own_keys, problems)
    if not problems:
        problems += _find_contradictions(built, checked_training)
    if problems:
        raise RecipeError(path, problems)
    return Recipe(path=path, training=checked_training, **built)


def load_agent_config(folder: Path, override: str | Path | None = None) -> AgentConfig:
    """Read how prompts and answers were made in training.

    Raises:
        UserError: no such folder or file, or one that was written for another prompt version.
    """
    path = Path(override) if override else folder / "agent_config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder; expected one that sft/run.py wrote, or a base model's")
    if not path.is_file():
        raise UserError(
            f"{path}: found no such file; expected the agent configuration that sft/run.py saves beside a model: "
            "for an untuned base model name one with --agent_config"
        )
    try:
        return agent_from_json(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: found broken JSON ({error}); restore the file") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def load_agent_settings(recipe_path: Path) -> AgentConfig:
    """Read how prompts and answers are made from a recipe, and nothing else of it; imports no torch.

    Raises:
        RecipeError: the file cannot be read, or one of these keys has a wrong value.
    """
    problems: list[str] = []
    keys = set(_field_types(AgentConfig)) - {"prompt_version"}
    agent = _build(AgentConfig, {k: v for k, v in _load_yaml(recipe_path).items() if k in keys}, problems)
    if problems:
        raise RecipeError(recipe_path, problems)
    return agent


def load_model_settings(folder: Path) -> ModelSettings:
    """Read which model an output folder was trained from, and how it was loaded, from its resolved recipe.

    Raises:
        RecipeError: the folder holds no `recipe.yaml`, or one that cannot be read.
    """
    path = folder / "recipe.yaml"
    problems: list[str] = []
    values = {k: v for k, v in _load_yaml(path).items() if k in _field_types(ModelSettings)}
    settings = _build(ModelSettings, values, problems)
    if problems:
        raise RecipeError(path, problems)
    return settings


def build_training_arguments(recipe: Recipe) -> "SFTConfig":
    """Build TRL's configuration from the recipe; what TRL itself refuses becomes a `RecipeError`."""
    from trl import SFTConfig  # torch takes seconds to import: only where a run is about to start

    fixed: dict[str, Any] = {
        "max_length": None,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    if recipe.batch.packing != "none":
        fixed["per_device_train_batch_size"] = 1
    try:
        return SFTConfig(**{**recipe.training, **fixed})
    except (ValueError, TypeError) as error:
        raise RecipeError(recipe.path, [str(error)]) from error


_YAML_BOOL = "tag:yaml.org,2002:bool"


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads `no` as text, as YAML 1.2 does (`eval_strategy: no`)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _YAML_BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise ValueError(f"line {line}: found {key!r} as a key; expected text: quote braces and brackets")
            if key in seen:
                raise ValueError(f"line {line}: found key {key!r} again (first in line {seen[key]}); expected it once")
            seen[key] = line
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(_YAML_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _load_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(path, ["found no such file; expected a recipe in YAML, e.g. recipes/demo.yaml"])
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_RecipeLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(path, [" ".join(str(error).split())]) from error
    if not isinstance(values, dict):
        raise RecipeError(path, [f"found {type(values).__name__}; expected lines of the form key: value"])
    return values


def _parse_overrides(path: Path, arguments: Sequence[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise RecipeError(path, [f"found {flag!r} on the command line; expected --key value"])
        key, has_value, text = flag[2:].partition("=")
        if not has_value:
            if not rest:
                raise RecipeError(path, [f"found --{key} without a value; expected --{key} VALUE"])
            text = rest.pop(0)
        try:
            overrides[key.replace("-", "_")] = yaml.load(text, Loader=_RecipeLoader)  # a SafeLoader
        except (yaml.YAMLError, ValueError) as error:
            raise RecipeError(path, [f"--{key}: found {text!r}; expected a YAML value"]) from error
    return overrides


def _build(cls: type, values: dict[str, Any], problems: list[str]) -> Any:
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]
    problems += [f"{name}: found no such key; the recipe needs it" for name in required if name not in values]
    types = _field_types(cls)
    checked = {key: _check_value(key, types[key], value, problems) for key, value in values.items()}
    return None if any(name not in values for name in required) else cls(**checked)


def _check_training_keys(values: Mapping[str, Any], own_keys: set[str], problems: list[str]) -> dict[str, Any]:
    if not values:
        return {}
    from trl import SFTConfig

    types: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(SFTConfig) if f.init}
    types["resume_from_checkpoint"] = bool | str | None  # the trainer takes true for "the newest one"
    checked = {}
    for key, value in values.items():
        if key in _REFUSED_KEYS:
            problems.append(f"{key}: found a key that does not apply here; {_REFUSED_KEYS[key]}")
        elif key not in types:
            near = difflib.get_close_matches(str(key), [*own_keys, *types], n=1)
            problems.append(f"{key}: found an unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        else:
            checked[key] = _check_value(key, types[key], value, problems)
    return checked


def _check_value(key: str, expected: Any, value: Any, problems: list[str]) -> Any:
    """Return `value` as `expected`, or note what was found and expected. Neither True nor 2.7 passes for an int."""
    name = str(expected).replace("typing.", "").replace("<class '", "").replace("'>", "")
    if expected == tuple[ActionType, ...]:
        name = "a list of {name, description, arguments, is_final}"
    try:
        checked = TypeAdapter(expected).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]["msg"]
        problems.append(f"{key}: found {value!r}; expected {name} ({detail})")
        return None
    if isinstance(value, bool) and not isinstance(checked, (bool, str)):
        problems.append(f"{key}: found {value!r}; expected {name}")
    return checked


def _find_contradictions(settings: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    data, model, agent, validation = (settings[name] for name in ("data", "model", "agent", "validation"))
    values = {name: value for part in settings.values() for name, value in vars(part).items()}
    problems = [
        f"{name}: found {values[name]}; expected at least {least}"
        for name, least in _LEAST.items()
        if values[name] is not None and values[name] < least
    ]
    if agent.min_pixels > agent.max_pixels:
        problems.append(f"max_pixels: found {agent.max_pixels}; expected at least min_pixels={agent.min_pixels}")
    if not 0 <= model.lora_dropout < 1:
        problems.append(f"lora_dropout: found {model.lora_dropout}; expected a share from 0 to below 1")
    if settings["batch"].packing != "none":
        if model.attn_implementation not in ("sdpa", "eager"):
            problems.append(
                f"packing: {model.attn_implementation} cannot take the mask of a packed sequence; "
                "expected attn_implementation sdpa or eager, or packing: none"
            )
        if training.get("per_device_train_batch_size", 1) != 1:
            problems.append(
                "per_device_train_batch_size: found together with packing; expected tokens_per_batch, which says how "
                "much goes into one sequence"
            )
    if not 0 <= data.val_split < 1:
        problems.append(f"val_split: found {data.val_split}; expected a share from 0 to below 1")
    if data.val_csv and data.val_split:
        problems.append("val_split: found together with val_csv; expected one of the two")
    has_validation = bool(data.val_csv or data.val_split)
    if training.get("eval_strategy", "no") != "no" and not has_validation:
        problems.append("eval_strategy: found no validation data; give val_csv or val_split")
    if training.get("metric_for_best_model") in ("swa", "eval_swa") and not validation.val_rollout_tasks:
        problems.append("metric_for_best_model: found swa without a rollout; expected val_rollout_tasks above 0")
    if validation.early_stopping_patience is not None and not training.get("load_best_model_at_end"):
        problems.append("early_stopping_patience: found without load_best_model_at_end; expected it to be true")
    if model.load_in_4bit and not model.use_peft:
        problems.append("use_peft: found false with load_in_4bit; 4-bit weights train through LoRA only")
    if model.use_peft and not (model.lora_parts or model.lora_modules_to_save):
        problems.append("lora_parts: found nothing to train; expected at least one of language, merger, vision")
    return problems


def _field_types(cls: type) -> dict[str, Any]:
    return {f.name: get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}


def _is_required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    """Reduce tuples and mappings to what YAML can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
