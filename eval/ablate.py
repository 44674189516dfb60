"""Train and roll out a recipe without one part at a time, and print what each part is worth.

python eval/ablate.py RECIPE.yaml --test_csv test.csv --output_dir ablations/ [--variants NAME ...] [--seeds 1 2 3]

Each variant is the recipe with the settings below, trained into OUTPUT_DIR/VARIANT/model and rolled out into
OUTPUT_DIR/VARIANT/rollout; with --seeds once for each, under OUTPUT_DIR/VARIANT/seed_N. A variant that is trained
already, there or in a folder given by `--model VARIANT=FOLDER`, is taken as it is; a training or rollout that was
stopped is resumed. Ends with ablations.json and a table with 95 % intervals, in which each difference is to `full`,
paired by task. Of several seeds the table has the mean; the intervals are over tasks, and the scores of the seeds
stand beside it.

  full            the recipe with both memories, written by the model
  no_short_term   without short-term memory
  no_long_term    without long-term memory
  no_memory       without either
  no_elements     without detected elements, where the recipe shows them (use_grounding)
  grounding       with the detected elements of the data (column Detected_Elements), where it does not
  rule_memory     memory written by rule from the actions, not by the model
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.reporting.files import format_json
from eval.reporting.publish import judge_run
from eval.reporting.tables import build_ablation_table, describe_intervals
from eval.rollouts.run_folder import load_run
from eval.scoring.comparison import compare_repeats, compare_runs
from eval.scoring.matching import HEADLINE, Verdicts
from sft.errors import UserError, run_command
from sft.files import write_whole
from sft.recipe.recipe import load_agent_config, load_agent_settings
from sft.verbs import build_parser

WIDTH = 150  # the table has nine columns
ROOT = Path(__file__).resolve().parent.parent
NAMES = ("full", "no_short_term", "no_long_term", "no_memory", "no_elements", "grounding", "rule_memory")
Variants = dict[str, dict[str, Any]]


def build_variants(use_grounding: bool) -> Variants:
    """Return the settings of each variant of a recipe that shows detected elements, or of one that does not."""
    full = {"use_short_term": True, "use_long_term": True, "use_grounding": use_grounding, "memory_writer": "model"}
    return {
        "full": full,
        "no_short_term": {**full, "use_short_term": False},
        "no_long_term": {**full, "use_long_term": False},
        "no_memory": {**full, "use_short_term": False, "use_long_term": False},
        "no_elements" if use_grounding else "grounding": {**full, "use_grounding": not use_grounding},
        "rule_memory": {**full, "memory_writer": "rule"},
    }


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python eval/ablate.py", __doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what is trained")
    parser.add_argument("--test_csv", required=True, help="trajectory CSV to roll out")
    parser.add_argument("--image_root", help="folder of its screenshots [folder of test.csv]")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for models, rollouts and the table")
    parser.add_argument("--variants", nargs="+", choices=NAMES, help="which [all]")
    parser.add_argument("--model", action="append", default=[], metavar="VARIANT=FOLDER", help="a trained variant")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="train each variant with each [the recipe's]"
    )
    parser.add_argument(
        "--launch", default=sys.executable, help="what starts a training [python]; e.g. accelerate launch"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="steps answered at once in the rollout [16]")
    parser.add_argument("--max_tasks", type=int, help="roll out only the first so many tasks")
    arguments = parser.parse_args(argv)
    if arguments.variants and "full" not in arguments.variants:
        parser.error("--variants: found no full; expected it among them: every difference is to it")
    if arguments.seeds and arguments.model:
        parser.error(
            "--seeds: found it beside --model; expected one of the two: a trained variant has the seed it has"
        )
    if arguments.seeds and len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error(f"--seeds: found {' '.join(map(str, arguments.seeds))}; expected each once")
    for name in ("batch_size", "max_tasks"):
        if (number := getattr(arguments, name)) is not None and number < 1:
            parser.error(f"--{name}: found {number}; expected at least 1")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    variants = choose_variants(arguments)
    seeds = arguments.seeds or [None]
    given = find_models(arguments, variants)
    runs: dict[str, list[Verdicts]] = {name: [] for name in variants}
    for seed, (name, settings) in product(seeds, variants.items()):
        folder = arguments.output_dir / name / ("" if seed is None else f"seed_{seed}")
        model, rollout = given.get(name, folder / "model"), folder / "rollout"
        if not is_trained(model):
            train(arguments, name, settings if seed is None else {**settings, "seed": seed}, model)
        check_variant(name, settings, model)
        roll_out(arguments, model, rollout)
        runs[name].append(judge_run(rollout, *load_run(rollout)).verdicts)
    rows = [{"variant": name, **variants[name], **compare(name, run, runs["full"])} for name, run in runs.items()]
    results = {"seeds": arguments.seeds, "rows": rows}
    write_whole(arguments.output_dir / "ablations.json", format_json(results, indent=2))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(build_ablation_table(rows))
    for note in describe_intervals(*(row[HEADLINE] for row in rows if row["variant"] != "full")):
        console.print(note)


def compare(name: str, runs: Sequence[Verdicts], full: Sequence[Verdicts]) -> dict[str, Any]:
    """Return a variant's scores by matcher, above those of `full` with the same seeds."""
    names = (name, "full")
    if len(runs) == 1:
        return compare_runs(runs[0], full[0], names=names)["matchers"]
    return compare_repeats(runs, full, names=names)


def choose_variants(arguments: argparse.Namespace) -> Variants:
    """Return the settings of the variants that are asked for, in that order.

    Raises:
        UserError: the recipe has no such variant.
    """
    use_grounding = load_agent_settings(arguments.recipe).use_grounding
    variants = build_variants(use_grounding)
    chosen = arguments.variants or list(variants)
    if foreign := [name for name in chosen if name not in variants]:
        raise UserError(
            f"--variants: found {foreign[0]} for a recipe with use_grounding: {json.dumps(use_grounding)}; expected "
            f"some of {', '.join(variants)}"
        )
    return {name: variants[name] for name in chosen}


def find_models(arguments: argparse.Namespace, variants: Variants) -> dict[str, Path]:
    """Return the folder of each variant that is said to be trained already."""
    models = {}
    for given in arguments.model:
        name, _, folder = given.partition("=")
        if name not in variants or not is_trained(Path(folder)):
            raise UserError(
                f"--model: found {given}; expected VARIANT=FOLDER, one of {', '.join(variants)} and the folder with a "
                "trained model"
            )
        models[name] = Path(folder)
    return models


def is_trained(folder: Path) -> bool:
    """Say whether a training has ended in the folder."""
    weights = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    return (folder / "agent_config.json").is_file() and any((folder / name).is_file() for name in weights)


def train(arguments: argparse.Namespace, name: str, settings: dict[str, Any], folder: Path) -> None:
    """Train one variant in a process of its own."""
    options = [part for key, value in settings.items() for part in (f"--{key}", json.dumps(value).strip('"'))]
    command = [*shlex.split(arguments.launch), str(ROOT / "sft/run.py"), str(arguments.recipe)]
    options += ["--run_purpose", "ablation", "--output_dir", str(folder), "--resume", "auto"]
    run([*command, *options], f"training of {name}")


def roll_out(arguments: argparse.Namespace, model: Path, folder: Path) -> None:
    """Roll one variant out with its own memory."""
    command = [sys.executable, str(ROOT / "eval/rollout.py"), "--model_path", str(model), "--output_dir", str(folder)]
    command += ["--test_csv", arguments.test_csv, "--batch_size", str(arguments.batch_size)]
    command += ["--image_root", arguments.image_root] if arguments.image_root else []
    command += ["--max_tasks", str(arguments.max_tasks)] if arguments.max_tasks else []
    run([*command, "--run_purpose", "ablation"], f"rollout of {model}")


def run(command: list[str], what: str) -> None:
    """Run a command and show its output.

    Raises:
        UserError: it failed; its own output says why.
    """
    print(f"\n{what}: {shlex.join(command)}", flush=True)
    if code := subprocess.run(command).returncode:
        raise UserError(f"{what}: found exit code {code}; fix what it says above and give the same command again")


def check_variant(name: str, settings: dict[str, Any], folder: Path) -> None:
    """Refuse a model that was trained as another variant."""
    agent = load_agent_config(folder, None)
    found = {key: getattr(agent, key) for key in settings}
    if found != settings:
        raise UserError(f"{folder}: found {found}; expected {settings} for {name}: train it again")


if __name__ == "__main__":
    run_command(main)
