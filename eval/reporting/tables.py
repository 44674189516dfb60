"""The final tables a person reads in the terminal. Knows metrics and comparisons alone."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.scoring.error_sources import ROOTS
from eval.scoring.matching import HEADLINE, MATCHERS
from sft.errors import as_printable
from sft.rates import Rate, read_rate

MIN_WIDTH = 80  # below this the numbers would be cut, and a cut number is a wrong number
FILE_WIDTH = 96  # what is piped or logged has no width of its own; names and four columns with intervals fit
ROOTS_TOLD = (
    "Seeing or knowing: wrong with the recorded memory too. Memory: right with the recorded memory, wrong with the "
    "model's own."
)
_PARTS = {"by_memory": "accuracy by memory", "first_plan": "first plan", "roots": "roots of errors"}
INTERVALS = "bootstrap over tasks; of shares of tasks (TA, first plan) the exact binomial one (Clopper-Pearson)"
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
    if metrics["mode"] == "own":  # own_stop is a view of it, and teacher has no memory of its own
        table = _build_source_table(metrics["error_sources"])
        if table.rows:
            console.print(table)
        console.print(Text(describe_sources(metrics["error_sources"])))
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in metrics["outcomes"].items())
    console.print(Text(f"Steps: {outcomes}; {metrics['n_steps']} in all."))
    if metrics["also_right"]:
        console.print(Text(describe_also_right(metrics["also_right"])))
    console.print(Text(describe_progress(metrics)))
    console.print(Text(describe_loops(metrics)))
    confidence = metrics["bootstrap"]["confidence"]
    console.print(Text(f"Numbers in %; in brackets the {confidence:.0%} interval: {INTERVALS}.", "dim"))
    shown_parts = [
        part["matchers"][name]["swa"] for kind in kinds for part in metrics[kind].values() for name in MATCHERS
    ]
    sources = list_source_rates(metrics["error_sources"]) if metrics["mode"] == "own" else []
    for note in describe_intervals(metrics["matchers"], metrics["over_majority"], *shown_parts, *sources):
        console.print(Text(note, "dim"))


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the two runs side by side, their differences, and how many tasks are better, the same or worse."""
    console = Console()
    console.width = max(console.width, FILE_WIDTH)
    name_a, name_b = comparison["names"]
    console.print()
    console.print(Text(f"{comparison['n_tasks']} tasks, {comparison['n_steps']} steps, paired by task", "bold"))
    console.print(Text(f"A: {as_printable(name_a)}\nB: {as_printable(name_b)}"))
    table = new_table("Right under", "A", "B", "A minus B")
    for name, measures in comparison["matchers"].items():
        for measure, row in measures.items():
            difference = row["difference"].format(signed=True)
            table.add_row(f"{measure.upper()} {name}", row["a"].format(), row["b"].format(), difference)
    rates = comparison["parse_rate"]
    table.add_row("answers read", f"{100 * rates['a']:.1f}", f"{100 * rates['b']:.1f}")
    console.print(table)
    if sources := comparison.get("error_sources"):
        console.print(Text(describe_roots(sources["roots"])))
    for name, signs in comparison["tasks"].items():
        counts = ", ".join(f"{signs[sign]} {sign}" for sign in ("better", "same", "worse"))
        console.print(Text(f"Tasks by their number of right steps, A compared with B, {name}: {counts}."))
    console.print(Text(f"Numbers in %; in brackets the 95% interval: {INTERVALS}; differences paired.", "dim"))
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


def describe_also_right(others: Mapping[str, Any]) -> str:
    """Say how many steps are right by another answer than the recorded one."""
    counts = ", ".join(f"{found['n_right_by_other']} under {name}" for name, found in others["matchers"].items())
    return f"Right by another answer than the recorded one: {counts}, of {others['n_steps']} steps that have one."


def describe_loops(metrics: Mapping[str, Any]) -> str:
    """Say how often the model repeats itself, beside how often the recording does, and leaves its memory as it was."""
    loops = metrics["loops"]
    told = []
    if loops["repeats"]:
        recorded = 100 * loops["recorded_repeats"].value
        told.append(f"Own last action and target again: {loops['repeats'].format()} (recording: {recorded:.1f})")
    recorded = 100 * loops["recorded_in_long_runs"].value
    told.append(
        f"steps in runs of three or more: {loops['in_long_runs'].format()} (recording: {recorded:.1f}; longest run: "
        f"{loops['longest_run']})"
    )
    if loops["memory_unchanged"]:
        told.append(f"memory unchanged though the screenshot changed: {loops['memory_unchanged'].format()}")
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def describe_sources(sources: Mapping[str, Any]) -> str:
    """Say how many first plans are right, what the roots of errors mean, and why a part is missing."""
    plan = sources["first_plan"]
    told = [f"First plan right: {plan['rate'].format()} of {plan['n_tasks']} tasks."] if plan else []
    return " ".join([*told, *[ROOTS_TOLD] * bool(sources["roots"]), describe_absent(sources)]).strip()


def list_source_rates(sources: Mapping[str, Any]) -> list[Any]:
    """Return the parts of the error sources whose intervals are the bootstrap's, as they are shown."""
    sides = [side for part in ("by_memory", "first_plan") for side in (sources[part] or {}).values()]
    shown = [found[root] for found in (sources["roots"] or {}).values() for root in ROOTS if found[root]["n"]]
    return [side for side in sides if isinstance(side, Mapping)] + shown


def describe_absent(sources: Mapping[str, Any]) -> str:
    """Say why a part of the error sources is missing; nothing where none is."""
    return " ".join(f"No {_PARTS[part]}: {reason}." for part, reason in sources["absent"].items())


def describe_roots(roots: Mapping[str, Any]) -> str:
    """Say in one sentence per matcher where the errors with the model's own memory come from."""
    sentences = []
    for name, found in roots.items():
        shares = [f"{found[root]['share'].format()} {root.replace('_', ' ')}" for root in ROOTS if found[root]["n"]]
        sentences.append(f"Errors with its own memory, {name}: {', '.join([str(found['n_wrong']), *shares])}.")
    return "\n".join([*sentences, ROOTS_TOLD])


def describe_intervals(*content: Any) -> list[str]:
    """Return what a reader must know of the intervals in parts of metrics or of a comparison; usually nothing."""
    rates = chain.from_iterable(map(_find_rates, content))
    return [BLIND] if any(rate.high - rate.low < 1e-9 for rate in rates) else []


def _find_rates(content: Any) -> Iterator[Rate]:
    if isinstance(content, Rate):
        yield content
    elif isinstance(content, Mapping):
        for part in content.values():
            yield from _find_rates(part)


def _build_score_table(metrics: Mapping[str, Any]) -> Table:
    table = new_table("Right under", "Step-wise (SWA)", "Task (TA)")
    for name, scores in metrics["matchers"].items():
        table.add_row(name, scores["swa"].format(), scores["ta"].format())
        if others := metrics["also_right"]:
            recorded = others["matchers"][name]
            table.add_row(
                "  the recorded answer alone", recorded["swa_recorded"].format(), recorded["ta_recorded"].format()
            )
    majority, previous = metrics["majority_baseline"], metrics["previous_action_baseline"]
    table.add_row(f"always {majority['action']}", read_rate(majority).format())
    table.add_row("the action before, again", read_rate(previous).format())
    margin = metrics["over_majority"].format(signed=True)
    table.add_row(f"{HEADLINE} above always {majority['action']}", margin)
    table.add_row(f"{HEADLINE}, macro-F1 over actions", f"{100 * metrics['matchers'][HEADLINE]['macro_f1']:.1f}")
    return table


def build_ablation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per variant: its parts, SWA and TA with intervals, and what each is above `full`.

    Of several seeds each, SWA and TA are means, with the score of each seed below.
    """
    table = new_table(
        "Variant", "Short", "Long", "Elements", "Writer", *("SWA", "TA"), "SWA above full", "TA above full"
    )
    for row in rows:
        scores = row[HEADLINE]
        parts = ["yes" if row[key] else "no" for key in ("use_short_term", "use_long_term", "use_grounding")]
        rates = [
            "\n".join([scores[measure]["a"].format(), *_list_repeats(scores[measure])]) for measure in ("swa", "ta")
        ]
        above = [
            "" if row["variant"] == "full" else scores[measure]["difference"].format(signed=True)
            for measure in ("swa", "ta")
        ]
        table.add_row(row["variant"], *parts, row["memory_writer"], *rates, *above)
    return table


def _list_repeats(score: Mapping[str, Any]) -> list[str]:
    return [", ".join(f"{100 * value:.1f}" for value in score["repeats"])] if "repeats" in score else []


def _build_source_table(sources: Mapping[str, Any]) -> Table:
    """Return accuracy by memory shown and by first plan, and the errors by root, one column per matcher."""
    table = new_table("Where the errors come from", "Steps", *MATCHERS)
    rows = []
    if by_memory := sources["by_memory"]:
        rows += [("SWA, recorded memory shown", by_memory["recorded"])]
        rows += [("SWA, other memory shown", by_memory["other"])]
    if plan := sources["first_plan"]:
        n_wrong = plan["n_tasks"] - plan["n_right"]
        rows += [(f"SWA, first plan right ({plan['n_right']} tasks)", plan["right"])]
        rows += [(f"SWA, first plan wrong ({n_wrong} tasks)", plan["wrong"])]
    for label, side in rows:
        table.add_row(label, str(side["n_steps"]), *(rate.format() if rate else "" for rate in side["swa"].values()))
    if roots := sources["roots"]:
        table.add_row("errors", "", *(str(found["n_wrong"]) for found in roots.values()))
        for root in ROOTS:
            if any(found[root]["n"] for found in roots.values()):
                shares = [found[root]["share"].format() if found["n_wrong"] else "" for found in roots.values()]
                table.add_row(f"  {root.replace('_', ' ')}", "", *shares)
    return table


def _build_rule_table(rules: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table("Rule, version, threshold", "Steps", "Right", "Above action")
    for rule in rules:
        threshold = "" if rule["threshold"] is None else f", {rule['threshold']:g}"
        right = rule["rate"].format() if rule["rate"] else "not applicable"
        above = rule["over_action"].format(signed=True) if rule["over_action"] else ""
        table.add_row(f"{rule['name']} v{rule['version']}{threshold}", str(rule["n"]), right, above)
    return table


def _build_part_table(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(next(iter(parts.values()))["matchers"])
    table = new_table("SWA of", "Tasks", *names, "always")
    for label, part in parts.items():
        rates = [part["matchers"][name]["swa"].format() for name in names]
        majority = part["majority_baseline"]
        table.add_row(
            Text(as_printable(label)),
            str(part["n_tasks"]),
            *rates,
            f"{majority['action']} {100 * majority['swa']:.1f}",
        )
    return table


def new_table(*columns: str) -> Table:
    """Return a table without rows; the first column holds labels, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
