"""How a recipe file and the command line become a `Recipe`: strictly, every problem told at once, no data read."""

import dataclasses
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sft.agent import AgentConfig, agent_from_json, agent_to_json
from sft.errors import UserError
from sft.file_kinds import JSON, YAML, find_kind
from sft.json_text import parse_json
from sft.recipe.contradictions import find_contradictions
from sft.recipe.settings import (
    OWN_KEYS,
    SECTIONS,
    BatchSettings,
    ComputeSettings,
    DataSettings,
    ModelSettings,
    ResumeSettings,
    ValidationSettings,
    find_default,
    list_keys,
)
from sft.recipe.training_keys import TRAINING_KEYS, find_refusal, find_value
from sft.recipe.unknown_keys import describe_unknown_key


class RecipeError(UserError):
    """A recipe that cannot be run; its text lists every problem found."""

    def __init__(self, path: Path, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


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
        return find_value(self.training, "seed") if seed is None else seed

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
    built = {name: _build(cls, values, problems) for name, cls in SECTIONS.items()}
    training = _check_training_keys({k: v for k, v in values.items() if k not in OWN_KEYS}, problems)
    names_none = training.get("bf16") is None and not training.get("fp16")
    if not problems and names_none and built["model"].dtype == "float32":
        training["bf16"] = False  # float32 means float32: TRL would compute in bf16
    if not problems:
        problems += find_contradictions(built, training)
    if problems:
        raise RecipeError(path, problems)
    return Recipe(path=path, training=training, **built)


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
    problems: list[str] = []
    try:
        agent = agent_from_json(parse_json(path.read_text(encoding="utf-8-sig")))
        keys = [key for name, key in list_keys(AgentConfig).items() if name != "actions"]
        checked = {key.name: key.check(getattr(agent, key.name), problems) for key in keys}
        if problems:
            raise ValueError("; ".join(problems))
        return dataclasses.replace(agent, **checked)
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
    agent = _build(AgentConfig, load_yaml(recipe_path), problems)
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
    settings = _build(ModelSettings, load_yaml(path), problems)
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


def _build(settings: type, values: Mapping[str, Any], problems: list[str]) -> Any:
    """Build one section of a recipe from those of `values` that belong to it."""
    keys = list_keys(settings)
    required = [name for name, key in keys.items() if key.default is MISSING]
    problems += [f"{name}: found no such key; the recipe needs it" for name in required if name not in values]
    checked = {name: key.check(values[name], problems) for name, key in keys.items() if name in values}
    return settings(**checked) if all(name in values for name in required) else None


def _check_training_keys(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the keys that go to TRL's configuration; torch is imported only to say what is wrong with another key."""
    checked = {}
    for name, value in values.items():
        if name in TRAINING_KEYS:
            checked[name] = TRAINING_KEYS[name].check(value, problems)
            continue
        from trl import SFTConfig

        fields = {f.name: f for f in dataclasses.fields(SFTConfig) if f.init}
        if name not in fields:
            problems.append(describe_unknown_key(name, [*OWN_KEYS, *fields]))
        elif problem := find_refusal(name, value, find_default(fields[name])):
            problems.append(problem)
    return checked


_YAML_BOOL = "tag:yaml.org,2002:bool"


_MOST_NODES = 100_000  # values of a recipe; a real one has some dozens


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads `no` as text, as YAML 1.2 does (`eval_strategy: no`)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _YAML_BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        """Read the file; text of a few lines whose references multiply would fill the memory once it is used."""
        node = super().get_single_node()
        if node is not None and _count_nodes(node, {}) > _MOST_NODES:
            raise ValueError(f"found more than {_MOST_NODES} values, through references (*name); expected a recipe")
        return node

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


def _count_nodes(node: yaml.Node, counted: dict[int, int]) -> int:
    """Count the values of a file with references followed; one that leads back to itself is endless."""
    if id(node) not in counted:
        counted[id(node)] = _MOST_NODES + 1  # while it is open
        parts = node.value if isinstance(node.value, list) else []
        flat = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        counted[id(node)] = 1 + sum(_count_nodes(part, counted) for part in flat)
    return counted[id(node)]


def load_yaml(path: Path, expected: str = "a recipe in YAML, e.g. recipes/demo.yaml") -> dict[str, Any]:
    """Read the keys of a YAML file; `expected` says in messages what it should be.

    Raises:
        RecipeError: no such file, one of another kind, broken YAML, or a key that is given twice.
    """
    expected = f"expected {expected}"
    if not path.is_file():
        raise RecipeError(path, [f"found {'a folder' if path.is_dir() else 'no such file'}; {expected}"])
    try:
        if (kind := find_kind(path)) not in (None, YAML, JSON):  # JSON is YAML too
            raise RecipeError(path, [f"found {kind.name}; {expected}: {kind.way_out}"])
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_RecipeLoader)  # a SafeLoader
    except RecipeError:
        raise
    except UnicodeDecodeError as error:
        raise RecipeError(
            path, [f"found text that is not UTF-8 ({error.reason}); {expected}, saved as UTF-8"]
        ) from error
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(path, [" ".join(str(error).split())]) from error
    if not isinstance(values, dict):
        raise RecipeError(path, [f"found {type(values).__name__}; expected lines of the form key: value"])
    return values


def parse_overrides(path: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--key value ...` or `--key=value ...`, values as YAML; `path` is the recipe's, for problems.

    Raises:
        RecipeError: something that is no key, a key without a value, or a value that is no YAML.
    """
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
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RecipeError(path, [f"--{key}: found {text!r}; expected a YAML value"]) from error
    return overrides


def _plain(value: Any) -> Any:
    """Reduce tuples and mappings to what YAML can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
