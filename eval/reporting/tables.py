"""The final tables a person reads in the terminal. Knows metrics and comparisons alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.scoring.matching import HEADLINE, MATCHERS
from sft.rates import Rate, read_rate

MIN_WIDTH = 80  # below this the numbers would be cut, and a cut number is a wrong number
FILE_WIDTH = 96  # what is piped or logged has no width of its own; names and four columns with intervals fit
EXACT = "* Exact binomial interval (Clopper-Pearson): every task has the same verdict, where the bootstrap is blind."
BLIND = (
    "An interval without width says that every task has the same value or difference, not that the number is certain: "
    "there the bootstrap is blind."
)


def print_summary(metrics: Mapping[str, Any], shown: Sequence[str] = ()) -> None:
    """Print SWA and TA under every matcher with intervals, the baselines, the margin, outcomes and parts.

    `shown` limits the table of rules to those; empty means all that apply to a step.
    """
    console = Console()
    console.width = max(console.width, MIN_WIDTH if console.is_terminal else FILE_WIDTH)
    console.print()
    console.print(
        Text(f"{metrics['n_tasks']} tasks, {metrics['n_steps']} steps, memory mode {metrics['mode']}", "bold")
    )
    console.print(_build_score_table(metrics))
    console.print(
        _build_rule_table([rule for rule in metrics["variants"] if (rule["name"] in shown if shown else rule["n"])])
    )
    kinds = [kind for kind in ("per_group", "per_application", "per_familiarity") if len(metrics[kind]) > 1]
    for kind in kinds:
        console.print(_build_part_table(metrics[kind]))
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in metrics["outcomes"].items())
    console.print(Text(f"Steps: {outcomes}; {metrics['n_steps']} in all."))
    console.print(Text(describe_progress(metrics)))
    confidence = metrics["bootstrap"]["confidence"]
    console.print(Text(f"Numbers in %; in brackets the {confidence:.0%} interval, bootstrap over tasks.", "dim"))
    shown_parts = [
        part["matchers"][name]["swa"] for kind in kinds for part in metrics[kind].values() for name in MATCHERS
    ]
    for note in describe_intervals(metrics["matchers"], metrics["over_majority"], *shown_parts):
        console.print(Text(note, "dim"))


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the two runs side by side, their differences, and how many tasks are better, the same or worse."""
    console = Console()
    console.width = max(console.width, FILE_WIDTH)
    name_a, name_b = comparison["names"]
    console.print()
    console.print(Text(f"{comparison['n_tasks']} tasks, {comparison['n_steps']} steps, paired by task", "bold"))
    console.print(Text(f"A: {name_a}\nB: {name_b}"))
    table = _new_table("Right under", "A", "B", "A minus B")
    for name, measures in comparison["matchers"].items():
        for measure, row in measures.items():
            difference = row["difference"].format(signed=True)
            table.add_row(f"{measure.upper()} {name}", row["a"].format(), row["b"].format(), difference)
    rates = comparison["parse_rate"]
    table.add_row("answers read", f"{100 * rates['a']:.1f}", f"{100 * rates['b']:.1f}")
    console.print(table)
    for name, signs in comparison["tasks"].items():
        counts = ", ".join(f"{signs[sign]} {sign}" for sign in ("better", "same", "worse"))
        console.print(Text(f"Tasks by their number of right steps, A compared with B, {name}: {counts}."))
    console.print(Text("Numbers in %; in brackets the 95% interval, bootstrap over tasks, paired.", "dim"))
    for note in describe_intervals(comparison["matchers"]):
        console.print(Text(note, "dim"))


def describe_progress(metrics: Mapping[str, Any]) -> str:
    """Say in a few sentences how right and wrong steps follow one another."""
    progress = metrics["progress"]

    def rate(key: str) -> str:
        return progress[key].format() if progress[key] else "no such step"

    independence = progress["independence"]
    return (
        f"Right before the first error, share of a task: {rate('goal_progress')}. Right after a right step: "
        f"{rate('right_after_right')}; after a wrong one: {rate('right_after_wrong')}. Errors recovered from: "
        f"{rate('recovery')}. TA {100 * independence['ta']:.1f}; if steps were independent "
        f"{100 * independence['expected_ta']:.1f}."
    )


def describe_intervals(*content: Any) -> list[str]:
    """Return what a reader must know of the intervals in parts of metrics or of a comparison; usually nothing."""
    rates = [rate for part in content for rate in _find_rates(part)]
    notes = [EXACT] if any(rate.is_exact for rate in rates) else []
    return [*notes, BLIND] if any(rate.high - rate.low < 1e-9 for rate in rates) else notes


def _find_rates(content: Any) -> Iterator[Rate]:
    if isinstance(content, Rate):
        yield content
    elif isinstance(content, Mapping):
        for part in content.values():
            yield from _find_rates(part)


def _build_score_table(metrics: Mapping[str, Any]) -> Table:
    table = _new_table("Right under", "Step-wise (SWA)", "Task (TA)")
    for name, scores in metrics["matchers"].items():
        table.add_row(name, scores["swa"].format(), scores["ta"].format())
    majority, previous = metrics["majority_baseline"], metrics["previous_action_baseline"]
    table.add_row(f"always {majority['action']}", read_rate(majority).format())
    table.add_row("the action before, again", read_rate(previous).format())
    margin = metrics["over_majority"].format(signed=True)
    table.add_row(f"{HEADLINE} above always {majority['action']}", margin)
    table.add_row(f"{HEADLINE}, macro-F1 over actions", f"{100 * metrics['matchers'][HEADLINE]['macro_f1']:.1f}")
    return table


def build_ablation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per variant: its parts, SWA and TA with intervals, and what each is above `full`."""
    table = _new_table(
        "Variant", "Short", "Long", "Elements", "Writer", *("SWA", "TA"), "SWA above full", "TA above full"
    )
    for row in rows:
        scores = row[HEADLINE]
        parts = ["yes" if row[key] else "no" for key in ("use_short_term", "use_long_term", "use_grounding")]
        rates = [scores[measure]["a"].format() for measure in ("swa", "ta")]
        above = [
            "" if row["variant"] == "full" else scores[measure]["difference"].format(signed=True)
            for measure in ("swa", "ta")
        ]
        table.add_row(row["variant"], *parts, row["memory_writer"], *rates, *above)
    return table


def _build_rule_table(rules: Sequence[Mapping[str, Any]]) -> Table:
    table = _new_table("Rule, version, threshold", "Steps", "Right", "Above action")
    for rule in rules:
        threshold = "" if rule["threshold"] is None else f", {rule['threshold']:g}"
        right = rule["rate"].format() if rule["rate"] else "not applicable"
        above = rule["over_action"].format(signed=True) if rule["over_action"] else ""
        table.add_row(f"{rule['name']} v{rule['version']}{threshold}", str(rule["n"]), right, above)
    return table


def _build_part_table(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(next(iter(parts.values()))["matchers"])
    table = _new_table("SWA of", "Tasks", *names, "always")
    for label, part in parts.items():
        rates = [part["matchers"][name]["swa"].format() for name in names]
        majority = part["majority_baseline"]
        table.add_row(Text(label), str(part["n_tasks"]), *rates, f"{majority['action']} {100 * majority['swa']:.1f}")
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
