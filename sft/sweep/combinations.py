"""Which values does a sweep try? A file becomes combinations, and each of them a recipe, before anything runs."""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft.recipe.recipe import Recipe, RecipeError, load_yaml, parse_overrides, parse_recipe

FILE_KEYS = ("method", "runs", "seed", "parameters")
_RANGE_KEYS = ("min", "max", "scale")
_SET_BY_SWEEP = ("output_dir", "resume", "resume_anyway")  # each run has its own folder, and always resumes
_LONGEST_NAME = 150  # of a folder; file systems end at 255 bytes
_MOST_RUNS = 1000
_MOST_DRAWS = 1000  # for a combination that was not drawn before


@dataclass(frozen=True)
class SweepRun:
    """One training of a sweep: its folder's name, the values it is trained with, and its recipe."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe
    arguments: tuple[str, ...]  # of sft/run.py

    @property
    def folder(self) -> Path:
        return Path(self.recipe.training["output_dir"])


def build_runs(path: Path, recipe_arguments: Sequence[str]) -> list[SweepRun]:
    """Return the trainings that a sweep file asks for; every one's recipe has been read and checked.

    Args:
        path: YAML: `parameters` with a list of values per key, or for `method: random` a range; `runs` and `seed`.
        recipe_arguments: recipe and overrides, `--output_dir` among them unless the recipe has it.

    Raises:
        RecipeError: all that is wrong with the file, or else all that is wrong with the combinations.
    """
    recipe_path, overrides = Path(recipe_arguments[0]), parse_overrides(path, recipe_arguments[1:])
    combinations = read_combinations(path, overrides)
    output_dir = overrides.get("output_dir") or load_yaml(recipe_path).get("output_dir")
    if not output_dir:
        raise RecipeError(
            path, ["output_dir: found none; expected --output_dir FOLDER, in which each run gets its own"]
        )
    overrides = {"run_purpose": "hyperparameter_search", **overrides}
    runs: list[SweepRun] = []
    problems: list[str] = []
    for values in combinations:
        name = name_run(values)
        own = {**overrides, **values, "output_dir": str(Path(str(output_dir)) / name), "resume": "auto"}
        arguments = (str(recipe_path), *(part for k, v in own.items() for part in (f"--{k}", format_value(v))))
        try:
            runs.append(SweepRun(name, values, parse_recipe(arguments), arguments))
        except RecipeError as error:
            problems += error.problems
    if any(run.recipe.training.get("push_to_hub") for run in runs):
        problems.append(
            "push_to_hub: found in a sweep; expected false: upload the run you choose with sft.export --push"
        )
    if problems:
        raise RecipeError(path, list(dict.fromkeys(problems)))
    trained: dict[str, SweepRun] = {}  # by all that a recipe says but its folder
    for run in runs:
        said = str({**yaml.safe_load(run.recipe.to_yaml()), "output_dir": None})
        if (same := trained.setdefault(said, run)) is not run:
            problems.append(f"parameters: found a value twice: {same.name} and {run.name} are one training")
    names = [run.name for run in runs]
    if not problems and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(f"parameters: found several values for the folder {twice}; expected values of other letters")
    if problems:
        raise RecipeError(path, problems)
    return runs


def read_combinations(path: Path, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the values of each run, in the order they are run.

    Raises:
        RecipeError: all that is wrong with the file.
    """
    values = load_yaml(path)
    method, parameters, seed = values.get("method", "grid"), values.get("parameters"), values.get("seed", 0)
    problems = [
        f"{key}: found no key of a sweep; expected some of {', '.join(FILE_KEYS)}"
        for key in set(values) - {*FILE_KEYS}
    ]
    if method not in ("grid", "random"):
        problems.append(f"method: found {method}; expected grid or random")
    if not isinstance(parameters, dict) or not parameters:
        raise RecipeError(path, [*problems, f"parameters: found {parameters}; expected keys of a recipe with values"])
    if type(seed) is not int:
        problems.append(f"seed: found {seed!r}; expected a whole number")
    n_runs = values.get("runs")
    if method == "random" and (type(n_runs) is not int or n_runs < 1):
        problems.append(f"runs: found {n_runs}; expected how many combinations to draw")
    if type(n_runs) is int and n_runs > _MOST_RUNS:
        problems.append(f"runs: found {n_runs}; expected at most {_MOST_RUNS}")
    if method == "grid" and n_runs is not None:
        problems.append("runs: found with method grid, which runs every combination; leave it out")
    for key, choices in parameters.items():
        if "-" in str(key):
            problems.append(f"{key}: found no key of a recipe; expected {str(key).replace('-', '_')}")
        if key in _SET_BY_SWEEP:
            problems.append(f"{key}: found among the parameters; a sweep sets it itself")
        if key in overrides:
            problems.append(f"{key}: found on the command line and in the sweep; expected it once")
        if problem := _find_problem(choices, is_random=method == "random"):
            problems.append(f"{key}: {problem}")
    problems += [
        f"{key}: found on the command line; a sweep sets it itself"
        for key in ("resume", "resume_anyway")
        if key in overrides
    ]
    if problems:
        raise RecipeError(path, problems)
    if method == "grid":
        if (n_all := math.prod(map(len, parameters.values()))) > _MOST_RUNS:
            raise RecipeError(path, [f"parameters: found {n_all} combinations; expected at most {_MOST_RUNS}"])
        return [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]
    assert isinstance(n_runs, int), "checked above"
    return _draw(path, parameters, n_runs, random.Random(seed))


def format_value(value: Any) -> str:
    """Return a value as the command line takes it: a text as it is, where it is read as that text."""
    if isinstance(value, str) and parse_overrides(Path(), ["--key", value])["key"] == value:
        return value
    return json.dumps(value)


def name_run(values: Mapping[str, Any]) -> str:
    """Return a run's folder, such as `learning_rate=1e-4,lora_r=16`."""
    texts = (f"{k}={'+'.join(map(str, v)) if isinstance(v, list) else format_value(v)}" for k, v in values.items())
    name = re.sub(r"[^\w.,=+-]", "_", ",".join(texts))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _find_problem(choices: Any, is_random: bool) -> str | None:
    """Return what is wrong with the values of one parameter, or None."""
    if isinstance(choices, list) and choices:
        odd = next((choice for choice in choices if not _is_plain(choice)), None)
        return (
            None if odd is None else f"found {odd!r}; expected text (in quotes), numbers, true, false, null or lists"
        )
    if not isinstance(choices, dict):
        return f"found {choices!r}; expected a list of values" + (", or min and max" if is_random else "")
    if not is_random:
        return "found a range with method grid; expected a list of values, or method: random"
    if unknown := set(choices) - {*_RANGE_KEYS}:
        return f"found {', '.join(map(str, unknown))}; expected {', '.join(_RANGE_KEYS)}"
    bounds = [_read_number(choices.get(name)) for name in ("min", "max")]
    if None in bounds or not bounds[0] < bounds[1]:
        return f"found min {choices.get('min')}, max {choices.get('max')}; expected two numbers, the first lower"
    if choices.get("scale", "linear") not in ("linear", "log"):
        return f"found scale {choices['scale']}; expected linear or log"
    if choices.get("scale") == "log" and bounds[0] <= 0:
        return f"found min {choices['min']} with scale log; expected a number above 0"
    return None


def _is_plain(value: Any) -> bool:
    """Say whether the command line can hold a value: YAML also has dates, sets and bytes."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _read_number(value: Any) -> Any:
    """Return a number, also one such as 1e-4, which YAML takes for text; None where it is none."""
    try:
        number = value if type(value) in (int, float) else float(value) if isinstance(value, str) else math.nan
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _draw(path: Path, parameters: Mapping[str, Any], n_runs: int, rng: random.Random) -> list[dict[str, Any]]:
    """Draw different combinations; more runs with the same seed begin with those of fewer."""
    drawn: dict[str, dict[str, Any]] = {}
    for _ in range(_MOST_DRAWS + n_runs):
        values = {key: _draw_value(choices, rng) for key, choices in parameters.items()}
        drawn.setdefault(json.dumps(values), values)
        if len(drawn) == n_runs:
            return list(drawn.values())
    raise RecipeError(path, [f"runs: found {n_runs}; expected at most {len(drawn)}: there are no more combinations"])


def _draw_value(choices: Any, rng: random.Random) -> Any:
    """Draw one of a list, or a number of a range: a whole one between whole bounds, else of four digits."""
    if isinstance(choices, list):
        return rng.choice(choices)
    low, high = (_read_number(choices[name]) for name in ("min", "max"))
    if choices.get("scale") == "log":
        number = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        number = rng.uniform(low, high + 1 if type(low) is type(high) is int else high)
    if type(low) is type(high) is int:
        return min(math.floor(number), high)
    return float(f"{number:.4g}")
