"""Convert a foreign format into trajectory data (CSV, screenshots named by content, report), or data into messages.

python -m sft.convert careflow TABLE OUTPUT_DIR        task tables: CSV, Parquet, saved by `datasets`, a Hub data set
python -m sft.convert pipeline FOLDER OUTPUT_DIR       a folder of {Software}_endtoend_{NNN}.json
python -m sft.convert records FILE.jsonl OUTPUT_DIR    JSONL, one line per step
python -m sft.convert messages ROWS OUTPUT_DIR         chat data with pictures, as TRL, LLaMA-Factory, ms-swift take it
python -m sft.convert agentnet FILE.jsonl OUTPUT_DIR   OpenCUA's trajectories
python -m sft.convert screenagent FOLDER OUTPUT_DIR    ScreenAgent's sessions

python -m sft.convert action-map FORMAT FILE.yaml      writes the table by which the last three map actions, to edit
python -m sft.convert to-messages DATA OUTPUT_DIR      data of this package as chat data for TRL or LLaMA-Factory

docs/convert.md has an example of each.
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
from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.convert.action_map import (
    DEFAULT_MAPS,
    DESKTOP_ACTIONS,
    ActionMap,
    format_action_map,
    load_action_map,
)
from sft.convert.agentnet import read_agentnet
from sft.convert.careflow import read_careflow
from sft.convert.conversion import ACTIONS_NAME, CSV_NAME, REPORT_NAME, Conversion, write_tasks
from sft.convert.converted import ConvertedTask, Coordinates, DroppedTask
from sft.convert.messages import read_messages
from sft.convert.options import ReadingOptions
from sft.convert.pipeline import audit_records, read_pipeline
from sft.convert.records import load_records, read_records
from sft.convert.screenagent import read_screenagent
from sft.convert.to_messages import write_messages
from sft.data.hints import as_visible
from sft.data.load import read_table, read_task_set
from sft.data.memory_audit import list_shown_parts
from sft.data.train_val import refuse_without_points
from sft.errors import UserError, run_command
from sft.recipe.recipe import load_agent_settings
from sft.verbs import build_parser

MAX_DROPPED_SHOWN = 20
FORMATS = ("careflow", "pipeline", "records", *DEFAULT_MAPS)
OTHERS = ("action-map", "to-messages")
REBUILT = "rebuilt from the right actions; the memory after step t is first shown at step t + 1"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python -m sft.convert", __doc__)
    parser.add_argument("format", choices=[*FORMATS, *OTHERS], help="what the source is, or what is to be written")
    parser.add_argument("source", help="table, folder or file to convert; of action-map: the format")
    parser.add_argument("output_dir", type=Path, help="new folder for the data; of action-map: the file")
    parser.add_argument("--images_dir", type=Path, help="folder of screenshots that the source only names")
    parser.add_argument("--recipe", type=Path, help="recipe whose actions count, and that shapes to-messages")
    parser.add_argument("--application", default="", help="program of tasks whose source does not say it")
    parser.add_argument(
        "--coordinates",
        choices=["fraction", "thousandths", "pixels"],
        help="units of points and boxes: 0 to 1, 0 to 1000, or pixels of the screen [agentnet: fraction; messages: to "
        "be given; the others: pixels]",
    )
    mapped = parser.add_argument_group("messages, agentnet, screenagent")
    mapped.add_argument("--action_map", type=Path, metavar="FILE.yaml", help="rows that replace those of the table")
    mapped.add_argument("--task_column", default="", help="messages: rows of one value are one task [a row is a task]")
    out = parser.add_argument_group("to-messages")
    out.add_argument(
        "--format", dest="to", choices=["messages", "sharegpt"], help="for TRL, or for LLaMA-Factory [messages]"
    )
    out.add_argument("--image_root", type=Path, help="folder of the data's screenshots [folder of the file]")
    out.add_argument("--tokenizer", type=Path, help="folder of the base model: shortens what training would shorten")
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    return arguments


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse flags that the format does not have, and folders that are not there."""
    has = {
        "coordinates": FORMATS,
        "images_dir": FORMATS,
        "application": FORMATS,
        "action_map": tuple(DEFAULT_MAPS),
        "task_column": ("messages",),
        **dict.fromkeys(("to", "image_root", "tokenizer"), ("to-messages",)),
    }
    for name, formats in has.items():
        if getattr(arguments, name) and arguments.format not in formats:
            flag = "format" if name == "to" else name
            parser.error(f"--{flag}: {arguments.format} has no such option; expected it with {', '.join(formats)}")
    for name in ("images_dir", "image_root", "tokenizer"):
        folder = getattr(arguments, name)
        if folder and not folder.is_dir():
            parser.error(f"--{name}: found no folder {folder}")
    if arguments.format == "action-map" and arguments.source not in DEFAULT_MAPS:
        parser.error(f"found {arguments.source!r}; expected one of {', '.join(DEFAULT_MAPS)}")


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    if arguments.format == "action-map":
        write_action_map(arguments.source, arguments.output_dir)
    elif arguments.format == "to-messages":
        export(arguments)
    else:
        convert(arguments)


def convert(arguments: argparse.Namespace) -> None:
    """Convert a foreign source into a folder of trajectory data."""
    is_mapped = arguments.format in DEFAULT_MAPS
    actions: Sequence[ActionType] = DESKTOP_ACTIONS if is_mapped else DEFAULT_ACTIONS
    if arguments.recipe:
        actions = load_agent_settings(arguments.recipe).actions
    writes_actions = is_mapped and not arguments.recipe
    tasks, about = open_source(arguments, actions)
    bar = tqdm(tasks, desc="Converting", unit="task", disable=None)
    about = {"format": arguments.format, "source": arguments.source, **about}
    conversion = write_tasks(bar, arguments.output_dir, about, actions, writes_actions)
    print_summary(conversion, arguments.output_dir, writes_actions)


def open_source(
    arguments: argparse.Namespace, actions: Sequence[ActionType]
) -> tuple[Iterable[ConvertedTask | DroppedTask], dict[str, Any]]:
    """Return the tasks of the source, and what the report says about their memory and their actions."""
    if arguments.format in DEFAULT_MAPS:
        action_map = load_action_map(arguments.format, arguments.action_map, actions)
        return open_mapped(arguments, action_map), {"memory": REBUILT, "action_map": action_map.rows}
    units: Coordinates = arguments.coordinates or "pixels"
    if arguments.format == "careflow":
        tasks = read_careflow(arguments.source, arguments.images_dir, arguments.application, actions, units)
        return tasks, {"memory": REBUILT}
    if arguments.format == "pipeline":
        folder = Path(arguments.source)
        audits = audit_records(folder, actions)
        tasks = read_pipeline(folder, arguments.images_dir, actions, units)
        return tasks, {"memory": REBUILT, "recorded_memory": [asdict(audit) for audit in audits]}
    records = load_records(Path(arguments.source), actions)
    memory = "from Output; where it has none: " + (
        "from the memory columns, which are proven lagged" if records.uses_columns else REBUILT
    )
    about = {"memory": memory, "memory_columns": [asdict(audit) for audit in records.audits]}
    return read_records(records, arguments.images_dir, units), about


def open_mapped(arguments: argparse.Namespace, action_map: ActionMap) -> Iterable[ConvertedTask | DroppedTask]:
    """Return the tasks of a source whose actions are mapped by a table."""
    options = ReadingOptions(
        action_map, arguments.images_dir, arguments.coordinates, arguments.application, arguments.task_column
    )
    if arguments.format == "messages":
        return read_messages(arguments.source, options)
    if arguments.format == "agentnet":
        return read_agentnet(arguments.source, options)
    return read_screenagent(Path(arguments.source), options)


def write_action_map(kind: str, path: Path) -> None:
    """Write the table of a format to a new file."""
    if path.exists():
        raise UserError(f"{path}: found something there; expected a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_action_map(kind), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def export(arguments: argparse.Namespace) -> None:
    """Write data of this package as chat data."""
    agent = load_agent_settings(arguments.recipe) if arguments.recipe else AgentConfig()
    encoder = None
    if arguments.tokenizer:  # needs torch
        from sft.models.processors import load_processor

        encoder = StepEncoder(load_processor(arguments.tokenizer, agent.min_pixels, agent.max_pixels), agent)
    tasks = read_task_set(
        read_table(arguments.source, arguments.image_root),
        actions=agent.actions,
        needs_elements=agent.use_grounding,
        memory_parts=list_shown_parts(agent),
    )
    if agent.points:
        refuse_without_points(tasks, agent)
    done = write_messages(tasks, agent, encoder, arguments.output_dir, arguments.to or "messages")
    console = Console(highlight=False, soft_wrap=True)
    counts = f"{done.n_tasks:,} tasks, {done.n_steps:,} rows, {done.n_images:,} screenshots"
    console.print(Text("✓ ", "bold green").append(f"{counts} in {arguments.output_dir}", "not bold default"))
    if encoder is None:
        console.print("  No prompt was shortened; with --tokenizer, those are that training would shorten")
    console.print(f"  Pixel budget of a screenshot: {agent.min_pixels} to {agent.max_pixels}, to be set there too")


def print_summary(conversion: Conversion, output_dir: Path, has_actions: bool) -> None:
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
    recipe = f" --recipe {output_dir / ACTIONS_NAME}" if has_actions else ""
    console.print(f"  Next: python -m sft.check {output_dir / CSV_NAME}{recipe}")


if __name__ == "__main__":
    run_command(main)
