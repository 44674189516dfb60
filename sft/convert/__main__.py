"""Convert a foreign format into trajectory data: a CSV, screenshots named by content, and a report.

python -m sft.convert careflow TABLE OUTPUT_DIR [--images_dir DIR] [--recipe RECIPE.yaml] [--application NAME]
python -m sft.convert pipeline FOLDER OUTPUT_DIR [--images_dir DIR] [--recipe RECIPE.yaml]
python -m sft.convert records FILE.jsonl OUTPUT_DIR [--images_dir DIR] [--recipe RECIPE.yaml]

careflow: task tables (CSV, Parquet, a folder saved by `datasets`, a Hub data set). pipeline: a folder of
{Software}_endtoend_{NNN}.json. records: JSONL, one line per step. docs/data.md has an example of each.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from sft.actions import DEFAULT_ACTIONS, ActionType
from sft.convert.careflow import read_careflow
from sft.convert.conversion import CSV_NAME, REPORT_NAME, Conversion, write_tasks
from sft.convert.converted import ConvertedTask, DroppedTask
from sft.convert.pipeline import audit_records, read_pipeline
from sft.convert.records import load_records, read_records
from sft.data.hints import as_visible
from sft.errors import run_command
from sft.recipe.recipe import load_agent_settings
from sft.verbs import build_parser

MAX_DROPPED_SHOWN = 20


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python -m sft.convert", __doc__)
    parser.add_argument("format", choices=["careflow", "pipeline", "records"], help="what the source is")
    parser.add_argument("source", help="table, folder or file to convert")
    parser.add_argument("output_dir", type=Path, help="new folder for the data")
    parser.add_argument("--images_dir", type=Path, help="folder of screenshots that the source only names")
    parser.add_argument("--recipe", type=Path, help="recipe whose actions count [the default ones]")
    parser.add_argument("--application", default="", help="program of a CareFlow table that does not say")
    arguments = parser.parse_args(argv)
    if arguments.images_dir and not arguments.images_dir.is_dir():
        parser.error(f"--images_dir: found no folder {arguments.images_dir}")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    actions = load_agent_settings(arguments.recipe).actions if arguments.recipe else DEFAULT_ACTIONS
    tasks, about = open_source(arguments, actions)
    bar = tqdm(tasks, desc="Converting", unit="task", disable=None)
    conversion = write_tasks(
        bar, arguments.output_dir, {"format": arguments.format, "source": arguments.source, **about}, actions
    )
    print_summary(conversion, arguments.output_dir)


def open_source(
    arguments: argparse.Namespace, actions: Sequence[ActionType]
) -> tuple[Iterable[ConvertedTask | DroppedTask], dict[str, Any]]:
    """Return the tasks of the source, and what the report says about their memory."""
    rebuilt = "rebuilt from the right actions; the memory after step t is first shown at step t + 1"
    if arguments.format == "careflow":
        tasks = read_careflow(arguments.source, arguments.images_dir, arguments.application, actions)
        return tasks, {"memory": rebuilt}
    if arguments.format == "pipeline":
        folder = Path(arguments.source)
        audits = audit_records(folder, actions)
        tasks = read_pipeline(folder, arguments.images_dir, actions)
        return tasks, {"memory": rebuilt, "recorded_memory": [asdict(audit) for audit in audits]}
    records = load_records(Path(arguments.source), actions)
    memory = "from Output; where it has none: " + (
        "from the memory columns, which are proven lagged" if records.uses_columns else rebuilt
    )
    about = {"memory": memory, "memory_columns": [asdict(audit) for audit in records.audits]}
    return read_records(records, arguments.images_dir), about


def print_summary(conversion: Conversion, output_dir: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = f"{conversion.n_tasks:,} tasks, {conversion.n_steps:,} steps, {conversion.n_screenshots:,} screenshots"
    console.print(Text("✓ ", "bold green").append(f"{counts} in {output_dir}", "not bold default"))
    for task in conversion.dropped[:MAX_DROPPED_SHOWN]:
        line = as_visible(f"{task.task_id} ({task.n_steps} steps): {task.reason}")
        console.print(Text("✗ dropped ", "bold red").append(line, "not bold default"))
    if (hidden := len(conversion.dropped) - MAX_DROPPED_SHOWN) > 0:
        console.print(f"  ... and {hidden:,} more")
    if conversion.remarks:
        line = f"changed or incomplete tasks: {len(conversion.remarks):,}"
        console.print(Text("! ", "bold yellow").append(line, "not bold default"))
    console.print(f"  Reasons and remarks: {output_dir / REPORT_NAME}")
    console.print(f"  Next: python -m sft.check {output_dir / CSV_NAME}")


if __name__ == "__main__":
    run_command(main)
