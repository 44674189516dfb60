"""What `sft.check` shows in a terminal: tables, bars and coloured steps. Knows only the report and examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sft.batches.examples import Example
from sft.data.hints import as_visible
from sft.data.problems import Problem

MAX_PROBLEMS_LISTED = 40
_BAR_WIDTH = 28
_VERDICT_STYLES = {"lagged": "green", "empty": "dim", "unproven": "yellow", "same-row": "red", "mixed": "red"}


def build_console() -> Console:
    """Return a console that is coloured in a terminal and plain, wide enough for a log, when piped."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 119
    return console


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print what a file holds: sizes, applications, actions, screenshots, tokens, memory columns, warnings."""
    steps = report["steps_per_task"]
    console.print()
    console.print(Text(as_visible(report["data"]), "bold"))
    console.print(
        f"{report['n_tasks']:,} tasks, {report['n_steps']:,} steps; {steps['min']} to {steps['max']} steps per task, "
        f"{steps['mean']:g} on average"
    )
    if report["steps_with_also_right"]:
        console.print(f"{report['steps_with_also_right']:,} steps have another right answer (Also_Right)")
    console.print()
    parts = [_build_part_table("Application", report["applications"])]
    if len(report["groups"]) > 1:
        parts.append(_build_part_table("Group", report["groups"]))
    histograms = [("Steps per task", steps), *_list_token_counts(report)]
    parts += [_build_action_table(report), *(_build_histogram(t, h) for t, h in histograms if h["min"] < h["max"])]
    for part in parts:
        console.print(part)
        console.print()
    _print_screenshots(console, report)
    if report["memory_columns"]:
        _print_memory_columns(console, report["memory_columns"])
    for line in report["warnings"]:
        console.print(Text("! ", "bold yellow").append(as_visible(line), "not bold default"))
    if report["warnings"]:
        console.print()


def print_problems(console: Console, problems: Sequence[Problem]) -> None:
    """Print the problems as a table, the first ones in full."""
    if not problems:
        return
    table = _new_table("Row", "Column", "Task", "Problem")
    table.columns[0].justify = "right"
    table.columns[3].overflow = "fold"
    for problem in problems[:MAX_PROBLEMS_LISTED]:
        row = "" if problem.row is None else str(problem.row)
        cells = (problem.column or "", (problem.task_id or "")[:40], problem.message)
        table.add_row(Text(row, "bold"), *(Text(as_visible(cell)) for cell in cells))
    console.print(table)
    console.print()
    if (hidden := len(problems) - MAX_PROBLEMS_LISTED) > 0:
        console.print(Text(f"... and {hidden:,} more; --json lists them all", "dim"))


def print_verdict(console: Console, n_problems: int, n_bad_tasks: int, n_tasks: int) -> None:
    """Print the last line: clean, or how much is wrong."""
    if not n_problems:
        console.print(Text("✓ Clean: ", "bold green").append(f"{n_tasks:,} tasks can be used.", "not bold default"))
        return
    noun = "problem" if n_problems == 1 else "problems"
    tasks = f" in {n_bad_tasks:,} of {n_bad_tasks + n_tasks:,} tasks" if n_bad_tasks else ""
    line = Text(f"✗ {n_problems:,} {noun}{tasks}. ", "bold red")
    way_out = "Fix the rows, or set such tasks aside whole with on_bad_rows: quarantine." if n_tasks else ""
    console.print(line.append(way_out, "not bold default"))


def build_step_panel(example: Example, shows_system: bool) -> Panel:
    """Draw one step: what the model is given in grey, what it is trained to answer in green."""
    step, lines = example.step, Table.grid(padding=(0, 2), expand=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold", ratio=1)
    for message in example.messages:
        for part in message["content"]:
            text = f"[screenshot {step.image_id}]" if part["type"] == "image" else part["text"]
            if message["role"] == "system" and not shows_system:
                text = "(as above)"
            lines.add_row(Text(message["role"], "bold"), Text(as_visible(text), "bright_black"))
    lines.add_row(Text("trained", "bold green"), Text(as_visible(example.completion), "bold green"))
    counts = None
    if example.n_prompt_tokens is not None:
        counts = Text(f"{example.n_prompt_tokens:,} tokens given, {example.n_answer_tokens:,} trained on", "dim")
    title = Text(as_visible(f"task {example.task_id}, step {step.index + 1} of {example.n_steps}, row {step.row}"))
    return Panel(lines, title=title, title_align="left", subtitle=counts, subtitle_align="right", box=box.ROUNDED)


def _list_token_counts(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    titles = {"prompt_tokens": "Prompt tokens", "answer_tokens": "Answer tokens"}
    return [(title, report[key]) for key, title in titles.items() if key in report]


def _print_screenshots(console: Console, report: Mapping[str, Any]) -> None:
    shots, tokens = report["screenshots"], report["image_tokens"]
    sharing = shots["steps_per_screenshot"]
    share = shots["n_steps_that_share"] / report["n_steps"]
    sizes = list(shots["sizes"].items())
    listed = ", ".join(f"{size} ({n:,})" for size, n in sizes[:4])
    if len(sizes) > 4:
        listed += f" and {len(sizes) - 4} more"
    console.print(
        f"{shots['n_distinct']:,} distinct screenshots; {share:.0%} of steps share one with another step "
        f"({sharing['mean']:g} steps on one, at most {sharing['max']})"
    )
    console.print(f"Sizes: {listed}")
    per_step = tokens["per_step"]
    span = f"{per_step['min']:,}" + (f" to {per_step['max']:,}" if per_step["min"] < per_step["max"] else "")
    console.print(
        f"Image tokens: {span} per step, {tokens['total']:,} in all, at max_pixels {tokens['max_pixels']:,} and "
        f"{tokens['pixels_per_token']} px per token side"
    )
    console.print()


def _build_part_table(name: str, parts: Mapping[str, Mapping[str, int]]) -> Table:
    table = _new_table(name, "Tasks", "Steps", "")
    total = sum(part["steps"] for part in parts.values())
    for label, part in parts.items():
        share = part["steps"] / total
        table.add_row(
            Text(as_visible(label) or "(none)"), f"{part['tasks']:,}", f"{part['steps']:,}", _draw_bar(share)
        )
    return _align_numbers(table, 1, 2)


def _build_action_table(report: Mapping[str, Any]) -> Table:
    table = _new_table("Action", "Steps", "Share", "")
    for kind, n in report["actions"].items():
        share = n / report["n_steps"]
        table.add_row(kind, f"{n:,}", f"{share:.1%}", _draw_bar(share))
    return _align_numbers(table, 1, 2)


def _build_histogram(title: str, summary: Mapping[str, Any]) -> Table:
    table = _new_table(title, "", "")
    largest = max(part["n"] for part in summary["histogram"])
    for part in summary["histogram"]:
        label = f"{part['from']:,}" if part["from"] == part["to"] else f"{part['from']:,} to {part['to']:,}"
        table.add_row(label, f"{part['n']:,}", _draw_bar(part["n"] / largest))
    table.columns[0].justify = "right"
    return _align_numbers(table, 1)


def _print_memory_columns(console: Console, audits: Sequence[Mapping[str, Any]]) -> None:
    """Print the verdict on every memory column and, below, the cells that it rests on."""
    table = _new_table("Memory column", "Verdict", "Cells", "of the step before", "of their own step", "silent")
    for audit in audits:
        counts = (audit[key] for key in ("n_cells", "n_before", "n_own", "n_silent"))
        verdict = Text(audit["verdict"], _VERDICT_STYLES[audit["verdict"]])
        table.add_row(audit["column"], verdict, *(f"{n:,}" for n in counts))
    console.print(_align_numbers(table, 2, 3, 4, 5))
    console.print()
    for audit in audits:
        for evidence in audit["evidence"][:3]:
            whose = "its own step" if evidence["tells"] == "own step" else "the step before"
            line = f"  {audit['column']}, row {evidence['row']}: {evidence['reason']} ({whose})"
            console.print(Text(as_visible(line), "dim"))
    console.print()


def _draw_bar(share: float) -> Text:
    return Text("█" * max(round(share * _BAR_WIDTH), 1 if share else 0), "cyan")


def _new_table(*columns: str) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.columns[0].overflow = "fold"
    return table


def _align_numbers(table: Table, *positions: int) -> Table:
    for position in positions:
        table.columns[position].justify = "right"
        table.columns[position].no_wrap = True
    return table
