"""Check a trajectory file: list every bad row, count what is in it, and show what a model would be trained on.

python -m sft.check DATA [--image_root DIR] [--recipe RECIPE.yaml] [--tokenizer FOLDER] [--against OTHER.csv]
                         [--html page.html [--embed]] [--json report.json] [--dump_prompts prompts.jsonl] [--show N]

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

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.batches.examples import Example, build_examples, find_tight_answer_limit
from sft.check.describe import describe, summarise
from sft.check.notices import list_warnings
from sft.check.page import Checked, build_page
from sft.check.view import (
    build_console,
    build_step_panel,
    print_problems,
    print_report,
    print_verdict,
)
from sft.data.hints import as_visible
from sft.data.load import TaskSet, find_leak_problems, read_table, read_task_set
from sft.data.memory_audit import list_shown_parts
from sft.data.overlap import Overlap, describe_overlap, find_overlap
from sft.data.problems import Problem, TrajectoryError
from sft.data.steps import Step
from sft.data.table import Table, looks_like_dataset
from sft.errors import UserError, run_command
from sft.json_text import dump_json
from sft.recipe.recipe import load_agent_settings
from sft.verbs import build_parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python -m sft.check", __doc__)
    parser.add_argument("data", metavar="DATA", help="trajectory CSV or other table, datasets folder or Hub data set")
    parser.add_argument("--image_root", type=Path, help="folder of the screenshots [folder of the CSV]")
    parser.add_argument("--recipe", type=Path, help="recipe whose actions, pixel budget and limits count [defaults]")
    parser.add_argument("--tokenizer", type=Path, help="folder of the base model: counts tokens, checks the limits")
    parser.add_argument("--against", metavar="OTHER", help="data whose tasks (goals) must not be in DATA")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a page to look through there")
    parser.add_argument("--embed", action="store_true", help="put the screenshots into that page, made small")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    parser.add_argument("--dump_prompts", type=Path, metavar="FILE", help="write one JSON line per step there")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="show N steps as the model sees them")
    arguments = parser.parse_args(argv)
    if arguments.show < 0:
        parser.error("--show: expected 0 or more")
    if arguments.html and arguments.html.suffix.lower() != ".html":
        parser.error(f"--html: found {arguments.html}; expected a name that ends with .html")
    if arguments.embed and not arguments.html:
        parser.error("--embed: found no --html; expected the page whose screenshots it is about")
    if not looks_like_dataset(arguments.data) and not Path(arguments.data).is_file():
        found = "a folder" if Path(arguments.data).is_dir() else "no such file"
        parser.error(f"{arguments.data}: found {found}; expected a trajectory CSV")
    if arguments.image_root and not arguments.image_root.is_dir():
        parser.error(f"--image_root: found no folder {arguments.image_root}")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    agent = load_agent_settings(arguments.recipe) if arguments.recipe else AgentConfig()
    encoder = build_encoder(arguments.tokenizer, agent) if arguments.tokenizer else None
    console = build_console()
    table: Table | None = None
    try:
        table = read_table(arguments.data, arguments.image_root)
        tasks = read_task_set(
            table, actions=agent.actions, needs_elements=agent.use_grounding, on_bad_rows="quarantine"
        )
    except TrajectoryError as error:
        report, problems = {"data": arguments.data}, list(error.problems)
        write_page(arguments, console, Checked(agent, table, None, [], report, problems))
        finish(arguments, console, report, problems, n_bad=0, n_tasks=0)
        return
    report = describe(table, tasks, agent, arguments.tokenizer)
    problems = [problem for task in tasks.quarantined for problem in task.problems]
    problems += find_leak_problems(tasks.path, tasks.trajectories, list_shown_parts(agent))
    panels, examples = [], list[Example]()
    if encoder or arguments.dump_prompts or arguments.show or arguments.html:
        examples = list(walk_examples(tasks, agent, encoder))
        problems += [problem for example in examples for problem in example.problems]
        add_token_counts(report, examples)
        write_dump(arguments.dump_prompts, examples)
        shown = [examples[i] for i in sorted(choose_evenly(len(examples), arguments.show))]
        panels = [build_step_panel(example, shows_system=example is shown[0]) for example in shown]
    if arguments.against:
        overlap = compare(arguments.against, arguments, tasks, agent)
        problems += list_shared_goals(tasks, overlap, arguments.against)
        report["overlap"] = describe_overlap(overlap, arguments.against)
    report["warnings"] = list_warnings(report, shows_memory=bool(list_shown_parts(agent)))
    counted = [(e.completion, e.n_answer_tokens) for e in examples if e.n_answer_tokens is not None]
    if tight := find_tight_answer_limit(counted, agent):
        report["warnings"].append(f"{tight}.")
    print_report(console, report)
    for panel in panels:
        console.print(panel)
    turn_end = encoder.tokenizer.eos_token if encoder else ""
    write_page(arguments, console, Checked(agent, table, tasks, examples, report, problems, turn_end))
    unusable = {problem.task_id for problem in problems}
    n_tasks = sum(t.task_id not in unusable for t in tasks.trajectories)
    finish(arguments, console, report, problems, n_bad=len(unusable), n_tasks=n_tasks)


def build_encoder(folder: Path, agent: AgentConfig) -> StepEncoder:
    """Open a base model's processor as training does: it needs torch, so only where it is asked for."""
    from sft.models.processors import load_processor

    return StepEncoder(load_processor(folder, agent.min_pixels, agent.max_pixels), agent)


def walk_examples(tasks: TaskSet, agent: AgentConfig, encoder: StepEncoder | None) -> Iterable[Example]:
    n_steps = sum(len(t.steps) for t in tasks.trajectories)
    examples = build_examples(tasks.trajectories, agent, tasks.path, encoder)
    return tqdm(examples, total=n_steps, desc="Building prompts", unit="step", disable=None)


def add_token_counts(report: dict[str, Any], examples: list[Example]) -> None:
    """Add the histograms of prompt and answer tokens, where a tokenizer counted them."""
    for key, counts in (
        ("prompt_tokens", [e.n_prompt_tokens for e in examples if e.n_prompt_tokens is not None]),
        ("answer_tokens", [e.n_answer_tokens for e in examples if e.n_answer_tokens is not None]),
    ):
        if counts:
            report[key] = summarise(counts)
    if "elements" in report and any(e.n_prompt_tokens is not None for e in examples):
        left_out = [example.n_left_out for example in examples]
        report["elements"] |= {"n_left_out": sum(left_out), "n_steps_with_left_out": sum(n > 0 for n in left_out)}


def write_dump(path: Path | None, examples: list[Example]) -> None:
    if path is not None:
        write_file(path, "".join(dump_json(build_dump_line(example)) + "\n" for example in examples))


def build_dump_line(example: Example) -> dict[str, Any]:
    """Return one line of `--dump_prompts`; the image stands as its path, `step` counts from 0."""
    messages = [{**m, "content": [_with_path(part, example.step) for part in m["content"]]} for m in example.messages]
    return {
        "task_id": example.task_id,
        "step": example.step.index,
        "messages": messages,
        "completion": example.completion,
    }


def choose_evenly(n_steps: int, n_shown: int) -> set[int]:
    """Return `n_shown` positions spread over all steps, so that beginnings, middles and ends of tasks are seen."""
    return {round(i * (n_steps - 1) / max(n_shown - 1, 1)) for i in range(min(n_shown, n_steps))}


def _with_path(part: dict[str, Any], step: Step) -> dict[str, Any]:
    return {**part, "image": step.image_id} if part["type"] == "image" else part


def write_page(arguments: argparse.Namespace, console: Console, checked: Checked) -> None:
    """Write the page where one is asked for, and say how large it is."""
    if arguments.html is None:
        return
    page = build_page(checked, arguments.html.parent, arguments.embed)
    write_file(arguments.html, page.text)
    console.print(Text(as_visible(page.describe(arguments.html))))
    console.print()


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
    console: Console,
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
