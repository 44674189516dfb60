"""The final tables a person reads in the terminal. Knows only the content of metrics.json."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.bootstrap import compute_unseen_bound
from eval.matching import HEADLINE

MIN_WIDTH = 80  # below this the numbers would be cut, and a cut number is a wrong number


def print_summary(metrics: Mapping[str, Any]) -> None:
    """Print SWA and TA under every matcher with intervals, the baselines, the margin, outcomes and parts."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    console.print()
    console.print(
        Text(f"{metrics['n_tasks']} tasks, {metrics['n_steps']} steps, memory mode {metrics['mode']}", "bold")
    )
    console.print(_build_score_table(metrics))
    for kind in ("per_group", "per_application"):
        if len(metrics[kind]) > 1:
            console.print(_build_part_table(metrics[kind]))
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in metrics["outcomes"].items())
    console.print(Text(f"Steps: {outcomes}; {metrics['n_steps']} in all."))
    confidence = metrics["bootstrap"]["confidence"]
    console.print(Text(f"Numbers in %; in brackets the {confidence:.0%} interval, bootstrap over tasks.", "dim"))
    if note := describe_blind_intervals(metrics):
        console.print(Text(note, "dim"))


def format_interval(rate: Mapping[str, float], signed: bool = False) -> str:
    """Return "71.4 [68.0, 74.9]": value and interval in percent."""
    sign = "+" if signed else ""
    value, low, high = (f"{100 * rate[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def describe_blind_intervals(metrics: Mapping[str, Any]) -> str | None:
    """Say what a TA interval without width means, or None where every TA interval has one.

    Where all tasks have one verdict, drawing them again shows nothing else; the exact binomial bound still does.
    """
    if all(0 < scores["ta"]["value"] < 1 for scores in metrics["matchers"].values()):
        return None
    bound = compute_unseen_bound(metrics["n_tasks"], metrics["bootstrap"]["confidence"])
    return (
        f"Where TA is 0 or 100 the bootstrap is blind: {metrics['n_tasks']} tasks of one verdict still allow a true "
        f"rate up to {100 * bound:.1f} points away."
    )


def _build_score_table(metrics: Mapping[str, Any]) -> Table:
    table = _new_table("Right under", "Step-wise (SWA)", "Task (TA)")
    for name, scores in metrics["matchers"].items():
        table.add_row(name, format_interval(scores["swa"]), format_interval(scores["ta"]))
    majority, previous = metrics["majority_baseline"], metrics["previous_action_baseline"]
    table.add_row(f"always {majority['action']}", format_interval({**majority, "value": majority["swa"]}))
    table.add_row("the action before, again", format_interval({**previous, "value": previous["swa"]}))
    margin = format_interval(metrics["over_majority"], signed=True)
    table.add_row(f"{HEADLINE} above always {majority['action']}", margin)
    return table


def _build_part_table(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(next(iter(parts.values()))["matchers"])
    table = _new_table("SWA of", "Tasks", *names, "always")
    for label, part in parts.items():
        rates = [format_interval(part["matchers"][name]["swa"]) for name in names]
        majority = part["majority_baseline"]
        table.add_row(Text(label), str(part["n_tasks"]), *rates, f"{majority['action']} {100 * majority['swa']:.1f}")
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
