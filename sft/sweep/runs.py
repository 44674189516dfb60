"""How does a sweep run? Its trainings one after the other, each a process of its own; then what became of them.

Reads of a training what it writes for anyone: its ledger, its saved recipe, the scores in trainer_state.json.
"""

import argparse
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from sft.compute.ledger import LEDGER_NAME, load_runs
from sft.errors import UserError
from sft.file_kinds import find_kind, is_arrow_file
from sft.files import claim_folder, hash_file, write_whole
from sft.rates import Rate
from sft.recipe.recipe import Recipe, load_yaml, resolves_to_bf16
from sft.sweep.combinations import SweepRun, build_runs
from sft.training.signals import REQUEUE_EXIT_CODE, is_preempted

ROOT = Path(__file__).resolve().parents[2]
TABLE_NAME = "sweep.csv"
_RULES = ("swa", "swa_target")
_MEASURES = (*(f"eval_{rule}{bound}" for rule in _RULES for bound in ("", "_low", "_high")), "eval_loss")
# How a launcher says that a process it started has failed: the reason stands above. torchrun logs as glog does.
_OF_LAUNCHER = re.compile(
    r"Traceback \(most recent call last\):(?:(?!\nTraceback).)*?(?:CalledProcessError|ChildFailedError).*"
    r"|^[EW]\d{4} [^\n]*",
    re.S | re.M,
)
_WIDTH = 120


@dataclass(frozen=True)
class Outcome:
    """What became of a run: finished, failed, stopped, running or not started; scores are those of the saved model."""

    run: SweepRun
    status: str
    error: str = ""
    scores: dict[str, float] = field(default_factory=dict)


def sweep(argv: Sequence[str], check_inputs: Callable[[Recipe], Any]) -> None:
    """Run what `--sweep FILE` asks for and print the table; ends with exit code 1 where a run failed.

    Raises:
        UserError: all that is wrong, before the first run starts.
    """
    own, recipe_arguments = parse_arguments(argv)
    runs = build_runs(own.sweep, recipe_arguments)
    folder = runs[0].folder.parent
    if own.show == "runs":
        for run in runs:
            print(shlex.join(run.arguments[1:]))
        return
    if own.show is None:
        launch = split_launcher(own.launch)
        check_data(runs, check_inputs)
        with claim_folder(folder, "sweeps into this folder"):
            outcomes = run_all(runs, launch, is_launched=own.launch != sys.executable)
            publish(outcomes, folder)
        if any(outcome.status != "finished" for outcome in outcomes):
            sys.exit(1)
    else:
        publish([judge_run(run) for run in runs], folder)


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the sweep's own options, and what is left for the recipe."""
    if {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ):
        raise UserError(
            "--sweep: found a launcher around it; expected `python sft/run.py RECIPE --sweep FILE --launch LAUNCHER`, "
            "such as --launch 'accelerate launch --config_file accelerate_configs/multi_gpu.yaml', for each run"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--launch", default=sys.executable)
    parser.add_argument("--show", choices=["runs", "table"])
    try:
        own, others = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; expected --sweep FILE.yaml, and of --show: runs or table") from error
    if not others or others[0].startswith("--"):
        raise UserError("--sweep: found no recipe; expected: run.py RECIPE.yaml --sweep FILE.yaml")
    return own, others


def split_launcher(text: str) -> list[str]:
    """Return the program that starts a training, and its options."""
    try:
        launch = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launch: found {text!r} ({error}); expected a command as a shell reads it") from error
    if not launch or shutil.which(launch[0]) is None:
        raise UserError(f"--launch: found {text!r}, which begins with no program that is here; expected a launcher")
    return launch


def check_data(runs: Sequence[SweepRun], check_inputs: Callable[[Recipe], Any]) -> None:
    """Check base model and data of every run, once where they are the same."""
    seen = set()
    for run in runs:
        recipe = run.recipe
        if (key := repr((recipe.data, recipe.agent, recipe.model.model_name_or_path))) not in seen:
            seen.add(key)
            check_inputs(recipe)


def run_all(runs: Sequence[SweepRun], launch: Sequence[str], is_launched: bool) -> list[Outcome]:
    """Train what is not trained yet; a run that fails is told, and the next one starts."""
    outcomes = []
    for number, run in enumerate(runs, start=1):
        head = f"{number} of {len(runs)}: {run.name}"
        outcome = judge_run(run)
        if outcome.status == "finished":
            print(f"{head}: finished before", flush=True)
        elif outcome.status == "running":
            print(f"{head}: another process trains it now; left alone", flush=True)
        else:
            print(f"{head}: trains; what it prints is in {name_log(run)}", flush=True)
            outcome = train(run, launch, is_launched)
            told = format_score(outcome, "swa") or outcome.error
            print(f"    {outcome.status}{f': {told}' if told else ''}", flush=True)
        outcomes.append(outcome)
    return outcomes


def train(run: SweepRun, launch: Sequence[str], is_launched: bool) -> Outcome:
    """Start or resume a training in a process of its own; a sweep that is asked to end does so once it has saved."""
    log = name_log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        command = [*launch, str(ROOT / "sft/run.py"), *run.arguments]
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        code = wait_for(child, is_launched)
    if is_preempted() or code == REQUEUE_EXIT_CODE:
        print("stopped: the same command resumes", flush=True)
        sys.exit(REQUEUE_EXIT_CODE)
    if code:
        return Outcome(run, "failed", find_error(run) or f"exit code {code}")
    return judge_run(run)


def wait_for(child: "subprocess.Popen[bytes]", is_launched: bool) -> int:
    """Wait for a training; a signal that asks this process to end is passed on, so that the training saves first."""
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if is_preempted():  # again and again: a process that has just started does not listen yet
                pass_on_signal(child, is_launched)
        except KeyboardInterrupt:  # which the training got too, if it came from the keyboard
            child.terminate()
            child.wait()
            raise SystemExit(130) from None


def pass_on_signal(child: "subprocess.Popen[bytes]", is_launched: bool) -> None:
    """Ask the training to save and end; below a launcher its processes, as the launcher itself would kill them.

    A launcher that has none below it is the training itself (`--launch "nice python"`), or has not started it yet.
    """
    has_told = False
    for process in psutil.Process(child.pid).children(recursive=True) if is_launched else ():
        try:
            if any(part.endswith("sft/run.py") for part in process.cmdline()):
                process.terminate()
                has_told = True
        except psutil.NoSuchProcess:
            continue
    if not has_told:
        child.terminate()


def judge_run(run: SweepRun) -> Outcome:
    """Return what became of a run, by what is in its folder; one of another recipe or data has not been started."""
    folder, ledger = run.folder, run.folder / LEDGER_NAME
    records = load_runs(folder) if ledger.is_file() else []
    ended = records[-1].outcome if records else None
    if ended == "finished" and is_same_recipe(run) and is_same_data(run):
        return Outcome(run, "finished", scores=read_scores(folder))
    if ended == "running":
        return Outcome(run, "running")
    if ended == "killed":
        return Outcome(run, "stopped")
    if ended == "failed" or (ended is None and name_log(run).is_file()):
        return Outcome(run, "failed", find_error(run))
    return Outcome(run, "not started")


def is_same_recipe(run: SweepRun) -> bool:
    """Say whether the model in a run's folder was trained by the recipe as it is now."""
    path = run.folder / "recipe.yaml"
    if not path.is_file():
        return False
    now, then = yaml.safe_load(run.recipe.to_yaml()), load_yaml(path)
    now["bf16"] = resolves_to_bf16(run.recipe.training)
    return {**now, "output_dir": None} == {**then, "output_dir": None}


def is_same_data(run: SweepRun) -> bool:
    """Say whether the text files that a run's model was trained on hold what they held; of Parquet nothing is said."""
    try:
        parts = json.loads((run.folder / "training_data.json").read_text(encoding="utf-8")).values()
    except (OSError, ValueError):
        return True  # nothing says otherwise
    files = [(path, part["sha256"]) for part in parts if (path := Path(part["csv"])).is_file()]
    return all(is_arrow_file(path, find_kind(path)) or hash_file(path) == sha256 for path, sha256 in files)


def read_scores(folder: Path) -> dict[str, float]:
    """Return what the evaluation of a finished run's model gave: the best checkpoint's where that was saved.

    Nothing where `trainer_state.json` is gone or damaged: the model is there all the same.
    """
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    evaluations = [row for row in state["log_history"] if "eval_loss" in row]
    is_best = load_yaml(folder / "recipe.yaml").get("load_best_model_at_end")
    step = state["best_global_step"] if is_best and state.get("best_global_step") else state["global_step"]
    chosen = [row for row in evaluations if row["step"] == step] or evaluations
    return {"step": step, **{key: chosen[-1][key] for key in _MEASURES if chosen and key in chosen[-1]}}


def name_log(run: SweepRun) -> Path:
    return run.folder.with_name(f"{run.name}.log")


def find_error(run: SweepRun) -> str:
    """Return the last line that a failed run printed of itself, or else noted in its own log; else nothing."""
    log, own_log = name_log(run), run.folder / "logs/rank-0.log"
    if log.is_file():
        text = _OF_LAUNCHER.sub("", log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n"))
        if lines := [line.strip() for line in text.splitlines() if line.strip()]:
            return lines[-1]
    if own_log.is_file():
        text = own_log.read_text(encoding="utf-8", errors="replace")
        return text.rpartition("ended by ")[2].partition("\n")[0] if "ended by " in text else ""
    return ""


def publish(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Print the table, best first, and write it as CSV."""
    rule = find_rule(outcomes[0].run.recipe)
    ranked = sorted(outcomes, key=lambda outcome: -outcome.scores.get(f"eval_{rule}", -1.0))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TABLE_NAME, format_csv(ranked))
    table = Table(box=None, pad_edge=False)
    for name in ("run", "action right", "action and target right", "loss", "step", ""):
        table.add_column(name, overflow="fold")
    for outcome in ranked:
        scores = outcome.scores
        cells = [format_score(outcome, rule) for rule in _RULES]
        cells.append(f"{scores['eval_loss']:.4f}" if "eval_loss" in scores else "")
        cells += [str(scores.get("step", "")), f"{outcome.status}: {outcome.error}".rstrip(": ")]
        table.add_row(outcome.run.name, *cells)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)
    console.print(table)
    if any(f"eval_{rule}" in outcome.scores for outcome in outcomes):
        print("Validation rollout with the model's own memory, in %; in brackets the 95 % interval over its tasks.")
        if any(
            outcome.scores.get(f"eval_{rule}_low") == outcome.scores.get(f"eval_{rule}_high", -1)
            for outcome in outcomes
        ):
            print("An interval without width says that all tasks have the same value, not that the number is certain.")
        print("The best of several scores is too good by chance: score the run you choose on other tasks.")
    else:
        print("No run was ranked: that takes a validation rollout (val_csv or val_split, eval_strategy).")
    print(f"Table: {folder / TABLE_NAME}")


def find_rule(recipe: Recipe) -> str:
    """Return the score that runs are ranked by: the one that chooses the best checkpoint, if a rollout gives it."""
    metric = str(recipe.training.get("metric_for_best_model") or "").removeprefix("eval_")
    return metric if metric in _RULES else "swa"


def format_score(outcome: Outcome, rule: str) -> str:
    """Return a score in percent with its interval; empty where there is none."""
    found = [outcome.scores.get(f"eval_{rule}{bound}") for bound in ("", "_low", "_high")]
    value, low, high = found
    if value is None or low is None or high is None:
        return ""
    return Rate(value, low, high).format()


def format_csv(outcomes: Sequence[Outcome]) -> str:
    """Render a line per run: its values, status, scores in 0 to 1, folder and error."""
    file = io.StringIO()
    parameters = list(outcomes[0].run.values)
    writer = csv.DictWriter(
        file, ["run", *parameters, "status", "step", *_MEASURES, "folder", "error"], lineterminator="\n"
    )
    writer.writeheader()
    for outcome in outcomes:
        run = outcome.run
        own = {"run": run.name, "status": outcome.status, "folder": run.folder, "error": outcome.error}
        writer.writerow({**run.values, **own, **outcome.scores})
    return file.getvalue()
