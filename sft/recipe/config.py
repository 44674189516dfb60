"""Recipes: their values checked and put together, all problems told at once. Loads no model and reads no data."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from sft.actions import ActionType
from sft.agent import AgentConfig, agent_from_json, agent_to_json
from sft.errors import UserError
from sft.recipe.contradictions import find_contradictions
from sft.recipe.optional_parts import find_missing_parts
from sft.recipe.recipe_yaml import RecipeError, load_yaml, parse_overrides
from sft.recipe.settings import (
    BatchSettings,
    ComputeSettings,
    DataSettings,
    ModelSettings,
    ResumeSettings,
    ValidationSettings,
)
from sft.recipe.spellings import describe_unknown_key
from sft.recipe.training_keys import FIXED_KEYS, REFUSED_KEYS, find_key_problem

if TYPE_CHECKING:
    from trl import SFTConfig


@dataclass(frozen=True)
class Recipe:
    """One validated run. `training` holds the keys for TRL's `SFTConfig`, checked against its field types."""

    path: Path
    data: DataSettings
    model: ModelSettings
    agent: AgentConfig
    batch: BatchSettings
    validation: ValidationSettings
    compute: ComputeSettings
    resume: ResumeSettings
    training: Mapping[str, Any]

    def longest_sequences(self) -> dict[str, int]:
        """Return the tokens of the longest sequences this run may hold, by the key that allows them."""
        alone = {
            "max_prompt_tokens and max_answer_tokens": self.agent.max_prompt_tokens + self.agent.max_answer_tokens
        }
        packed = {"tokens_per_batch": self.batch.tokens_per_batch} if self.batch.packing != "none" else {}
        return {**alone, **packed}

    @property
    def computes_in_bf16(self) -> bool:
        """Whether the vision tower rounds its input to bf16 first of all: its weights are bf16, or autocast is."""
        return self.model.dtype == "bfloat16" and resolves_to_bf16(self.training)

    @property
    def data_seed(self) -> int:
        """Return what the order of steps is drawn from."""
        seed = self.training.get("data_seed")
        return self.training.get("seed", 42) if seed is None else seed

    def to_yaml(self) -> str:
        """Render the resolved recipe, every setting of ours spelled out, as YAML that `parse_recipe` reads."""
        resolved: dict[str, Any] = {}
        sections = (self.data, self.model, self.agent, self.batch, self.validation, self.compute, self.resume)
        for settings in sections:
            resolved.update(dataclasses.asdict(settings))
        resolved.update(agent_to_json(self.agent))
        resolved.pop("prompt_version")
        return yaml.safe_dump(_plain({**resolved, **self.training}), sort_keys=False, allow_unicode=True)


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
    in_file, overrides = load_yaml(path), parse_overrides(path, argv[1:])
    values = {**in_file, **overrides}
    if "train_csv" in overrides and in_file.get("val_csv") and "val_csv" not in overrides:
        problems.append(
            f"val_csv: found {in_file['val_csv']} of the recipe beside --train_csv {overrides['train_csv']}; expected "
            "--val_csv too, so that the best checkpoint is chosen on your tasks: a file, or null with --val_split 0.1"
        )
    sections = {
        "data": DataSettings,
        "model": ModelSettings,
        "agent": AgentConfig,
        "batch": BatchSettings,
        "validation": ValidationSettings,
        "compute": ComputeSettings,
        "resume": ResumeSettings,
    }
    own_keys = {name for cls in sections.values() for name in _field_types(cls)} - {"prompt_version"}
    training = {k: v for k, v in values.items() if k not in own_keys}
    built = {
        name: _build(cls, {k: v for k, v in values.items() if k in _field_types(cls) and k in own_keys}, problems)
        for name, cls in sections.items()
    }
    checked_training = _check_training_keys(training, own_keys, problems)
    names_none = checked_training.get("bf16") is None and not checked_training.get("fp16")
    if not problems and names_none and built["model"].dtype == "float32":
        checked_training["bf16"] = False  # float32 means float32: TRL would compute in bf16
    if not problems:
        problems += find_contradictions(built, checked_training)
    if problems:
        raise RecipeError(path, problems)
    return Recipe(path=path, training=checked_training, **built)


def load_agent_config(folder: Path, override: str | Path | None = None) -> AgentConfig:
    """Read how prompts and answers were made in training. `override` is another such file, or a recipe (YAML).

    Raises:
        UserError: no such folder or file, or one that was written for another prompt version.
    """
    path = Path(override) if override else folder / "agent_config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder; expected one that sft/run.py wrote, or a base model's")
    if not path.is_file():
        raise UserError(
            f"{path}: found no such file; expected the agent configuration that sft/run.py saves beside a model: "
            "for an untuned base model name one, or a recipe, with --agent_config"
        )
    if path.suffix.lower() in (".yaml", ".yml"):
        return load_agent_settings(path)
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
    agent = _build(AgentConfig, {k: v for k, v in load_yaml(recipe_path).items() if k in keys}, problems)
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
    values = {k: v for k, v in load_yaml(path).items() if k in _field_types(ModelSettings)}
    settings = _build(ModelSettings, values, problems)
    if problems:
        raise RecipeError(path, problems)
    return settings


def resolves_to_bf16(training: Mapping[str, Any]) -> bool:
    """Say whether a run computes in bf16: TRL does where a recipe names neither `bf16` nor `fp16`."""
    return not training.get("fp16") if training.get("bf16") is None else bool(training["bf16"])


def load_mixed_precision(folder: Path) -> Literal["bfloat16", "float16"] | None:
    """Read from an output folder's resolved recipe in which number format the model was computed beside its own."""
    values = load_yaml(folder / "recipe.yaml")
    return "float16" if values.get("fp16") else "bfloat16" if values.get("bf16") else None


def build_training_arguments(recipe: Recipe) -> "SFTConfig":
    """Build TRL's configuration from the recipe; what TRL itself refuses becomes a `RecipeError`."""
    from trl import SFTConfig  # torch takes seconds to import: only where a run is about to start

    fixed: dict[str, Any] = {**FIXED_KEYS, "push_to_hub": False}  # sft.training.push knows what may leave, not TRL
    if recipe.batch.packing != "none":
        fixed["per_device_train_batch_size"] = fixed["per_device_eval_batch_size"] = 1
    batch_size = recipe.training.get("per_device_train_batch_size", SFTConfig.per_device_train_batch_size)
    try:
        training = SFTConfig(**{"per_device_eval_batch_size": batch_size, **recipe.training, **fixed})
    except (ValueError, TypeError) as error:
        keys = [key for key, value in recipe.training.items() if str(error).startswith(f"{value} is not a valid ")]
        raise RecipeError(recipe.path, [": ".join([*keys[:1], str(error)])]) from error
    if missing := find_missing_parts(training):
        raise RecipeError(recipe.path, missing)
    training._n_gpu = min(training.n_gpu, 1)  # else one process that sees more GPUs cuts each batch up for all of them
    return training


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

    fields = {f.name: f for f in dataclasses.fields(SFTConfig) if f.init}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            problems.append(describe_unknown_key(key, [*own_keys, *fields]))
        elif problem := find_key_problem(key, value, None if _is_required(fields[key]) else _default(fields[key])):
            problems.append(problem)
        elif key not in REFUSED_KEYS:
            checked[key] = _check_value(key, fields[key].type, value, problems)
    return checked


def _check_value(key: str, expected: Any, value: Any, problems: list[str]) -> Any:
    """Return `value` as `expected`, or note what was found and expected. Neither True nor 2.7 passes for an int."""
    name = str(expected).replace("typing.", "").replace("<class '", "").replace("'>", "")
    if expected == tuple[ActionType, ...]:
        name = "a list of {name, description, arguments, is_final, takes_target}"
    try:
        checked = TypeAdapter(expected).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        detail = ", ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        problems.append(f"{key}: found {value!r}; expected {name} ({detail})")
        return None
    if isinstance(value, bool) and not isinstance(checked, (bool, str)):
        problems.append(f"{key}: found {value!r}; expected {name}")
    return checked


def _field_types(cls: type) -> dict[str, Any]:
    return {f.name: get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}


def _default(f: "dataclasses.Field[Any]") -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _is_required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    """Reduce tuples and mappings to what YAML can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
