"""YAML of a recipe and the command line over it, to plain values. Knows nothing of which keys exist."""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft.errors import UserError
from sft.file_kinds import JSON, YAML, find_kind


class RecipeError(UserError):
    """A recipe that cannot be run; its text lists every problem found."""

    def __init__(self, path: Path, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


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


def load_yaml(path: Path) -> dict[str, Any]:
    expected = "expected a recipe in YAML, e.g. recipes/demo.yaml"
    if not path.is_file():
        raise RecipeError(path, [f"found {'a folder' if path.is_dir() else 'no such file'}; {expected}"])
    try:
        if (kind := find_kind(path)) not in (None, YAML, JSON):  # JSON is YAML too
            raise RecipeError(path, [f"found {kind.name}; {expected}: {kind.way_out}"])
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_RecipeLoader)  # a SafeLoader
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(path, [" ".join(str(error).split())]) from error
    if not isinstance(values, dict):
        raise RecipeError(path, [f"found {type(values).__name__}; expected lines of the form key: value"])
    return values


def parse_overrides(path: Path, arguments: Sequence[str]) -> dict[str, Any]:
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
