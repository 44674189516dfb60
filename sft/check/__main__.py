"""Check a trajectory file: list every bad row, count what is in it, and show what a model would be trained on.

python -m sft.check DATA [--image_root DIR] [--recipe RECIPE.yaml] [--tokenizer FOLDER] [--against OTHER.csv]
                         [--json report.json] [--dump_prompts prompts.jsonl] [--show N]

DATA is a trajectory CSV, the same table as JSON Lines, Parquet or Arrow, a folder saved by `datasets`, or a Hub data
set (owner/name or owner/name:split).
Exit code: 0 clean, 1 problems found, 2 the command itself cannot be run.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sft.batches.encoding import StepEncoder, find_tight_answer_limit
from sft.check.describe import describe, summarise
from sft.check.notices import list_warnings
from sft.check.preview import StepPreview, build_dump_line, choose_evenly, preview_steps
from sft.check.view import (
    build_console,
    build_step_panel,
    print_problems,
    print_report,
    print_verdict,
)
from sft.data.load import TaskSet, find_leak_problems, read_task_set
from sft.data.overlap import Overlap, describe_overlap, find_overlap
from sft.data.problems import Problem, TrajectoryError
from sft.data.shown_memory import list_shown_parts
from sft.data.sources import looks_like_dataset
from sft.data.tables import read_table
from sft.errors import UserError, run_command
from sft.memory import dump_json
from sft.prompts import AgentConfig
from sft.recipe.recipe import load_agent_settings


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sft.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="trajectory CSV or other table, datasets folder or Hub data set")
    parser.add_argument("--image_root", type=Path, help="folder of the screenshots [folder of the CSV]")
    parser.add_argument("--recipe", type=Path, help="recipe whose actions, pixel budget and limits count [defaults]")
    parser.add_argument("--tokenizer", type=Path, help="folder of the base model: counts tokens, checks the limits")
    parser.add_argument("--against", metavar="OTHER", help="data whose tasks (goals) must not be in DATA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    parser.add_argument("--dump_prompts", type=Path, metavar="FILE", help="write one JSON line a step there")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="show N steps as the model sees them")
    arguments = parser.parse_args(argv)
    if arguments.show < 0:
        parser.error("--show: expected 0 or more")
    if not looks_like_dataset(arguments.data) and not Path(arguments.data).is_file():
        parser.error(f"{arguments.data}: found no such file; expected a trajectory CSV")
    if arguments.image_root and not arguments.image_root.is_dir():
        parser.error(f"--image_root: found no folder {arguments.image_root}")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    agent = load_agent_settings(arguments.recipe) if arguments.recipe else AgentConfig()
    encoder = build_encoder(arguments.tokenizer, agent) if arguments.tokenizer else None
    console = build_console()
    try:
        table = read_table(arguments.data, arguments.image_root)
        tasks = read_task_set(
            table, actions=agent.actions, needs_elements=agent.use_grounding, on_bad_rows="quarantine"
        )
    except TrajectoryError as error:
        finish(arguments, console, {"data": arguments.data}, list(error.problems), n_bad=0, n_tasks=0)
        return
    report = describe(table, tasks, agent, arguments.tokenizer)
    problems = [problem for task in tasks.quarantined for problem in task.problems]
    problems += find_leak_problems(tasks, list_shown_parts(agent))
    panels, previews = [], list[StepPreview]()
    if encoder or arguments.dump_prompts or arguments.show:
        previews = list(walk_previews(tasks, agent, encoder))
        problems += [p.problem for p in previews if p.problem]
        add_token_counts(report, previews)
        write_dump(arguments.dump_prompts, previews)
        shown = [previews[i] for i in sorted(choose_evenly(len(previews), arguments.show))]
        panels = [build_step_panel(preview, shows_system=preview is shown[0]) for preview in shown]
    if arguments.against:
        overlap = compare(arguments.against, arguments, tasks, agent)
        problems += list_shared_goals(tasks, overlap, arguments.against)
        report["overlap"] = describe_overlap(overlap, arguments.against)
    report["warnings"] = list_warnings(report, shows_memory=bool(list_shown_parts(agent)))
    counted = [(p.completion, p.n_answer_tokens) for p in previews if p.n_answer_tokens is not None]
    if tight := find_tight_answer_limit(counted, agent):
        report["warnings"].append(f"{tight}.")
    print_report(console, report)
    for panel in panels:
        console.print(panel)
    unusable = {problem.task_id for problem in problems}
    n_tasks = sum(t.task_id not in unusable for t in tasks.trajectories)
    finish(arguments, console, report, problems, n_bad=len(unusable), n_tasks=n_tasks)


def build_encoder(folder: Path, agent: AgentConfig) -> StepEncoder:
    """Open a base model's processor as training does: it needs torch, so only where it is asked for."""
    from sft.models.processors import load_processor

    return StepEncoder(load_processor(folder, agent.min_pixels, agent.max_pixels), agent)


def walk_previews(tasks: TaskSet, agent: AgentConfig, encoder: StepEncoder | None) -> Iterable[StepPreview]:
    n_steps = sum(len(t.steps) for t in tasks.trajectories)
    previews = preview_steps(tasks.trajectories, agent, tasks.path, encoder)
    return tqdm(previews, total=n_steps, desc="Building prompts", unit="step", disable=None)


def add_token_counts(report: dict[str, Any], previews: list[StepPreview]) -> None:
    """Add the histograms of prompt and answer tokens, where a tokenizer counted them."""
    for key, counts in (
        ("prompt_tokens", [p.n_prompt_tokens for p in previews if p.n_prompt_tokens is not None]),
        ("answer_tokens", [p.n_answer_tokens for p in previews if p.n_answer_tokens is not None]),
    ):
        if counts:
            report[key] = summarise(counts)


def write_dump(path: Path | None, previews: list[StepPreview]) -> None:
    if path is not None:
        write_file(path, "".join(dump_json(build_dump_line(preview)) + "\n" for preview in previews))


def compare(other: str, arguments: argparse.Namespace, tasks: TaskSet, agent: AgentConfig) -> Overlap:
    """Find which tasks, goals and screenshots stand in both data sets."""
    root = arguments.image_root if Path(other).parent == tasks.path.parent else None
    others = read_task_set(read_table(other, root), actions=agent.actions, on_bad_rows="quarantine")
    return find_overlap(tasks, others)


def list_shared_goals(tasks: TaskSet, overlap: Overlap, other: str) -> list[Problem]:
    """Return one problem a task whose goal is in the other data too: it is the same task, whatever its id."""
    same = set(overlap.same_goals)
    return [
        Problem(
            tasks.path,
            t.steps[0].row,
            "Instruction",
            f"found the goal {t.instruction[:80]!r}, which is in {other} too; expected tasks that are not there",
            t.task_id,
        )
        for t in tasks.trajectories
        if t.task_id in same
    ]


def finish(
    arguments: argparse.Namespace,
    console: Any,
    report: dict[str, Any],
    problems: list[Problem],
    n_bad: int,
    n_tasks: int,
) -> None:
    """Print the problems and the verdict, write the report, and leave with the exit code."""
    problems.sort(key=lambda p: p.row or 0)
    print_problems(console, problems)
    print_verdict(console, len(problems), n_bad, n_tasks)
    if arguments.json:
        listed = [{**asdict(p), "path": str(p.path)} for p in problems]
        content = {"is_clean": not problems, **report, "n_problems": len(problems), "problems": listed}
        write_file(arguments.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if problems:
        sys.exit(1)


def write_file(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


if __name__ == "__main__":
    run_command(main)
