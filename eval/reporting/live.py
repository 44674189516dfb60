"""What is published of a live run: metrics.json, report.html, films, the final table. Knows no model or program."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.environments.episode import Episode, LiveStep
from eval.reporting.files import format_json
from eval.reporting.film import write_film
from eval.reporting.report import Images, load_thumbnails, render_run_page, write_page
from eval.reporting.tables import FILE_WIDTH, describe_intervals, new_table
from eval.rollouts.run_info import RunInfo
from eval.scoring.live import compute_agreement, compute_live_metrics
from eval.scoring.matching import Verdicts
from sft.actions import format_action
from sft.data.data_notes import list_data_notes
from sft.errors import as_printable
from sft.files import write_whole
from sft.rates import Rate

_TEMPLATE = Path(__file__).with_name("live.html.j2")

RESULTS_TOLD = {
    "success": "COMPLETE was said, and the program's state proves the goal",
    "silent_wrong_effect": "COMPLETE was said, and the goal is not reached: nobody would have noticed",
    "not_noticed": "the goal was reached at a step, but COMPLETE was never said",
    "given_up": "another final action than COMPLETE was said, and the goal was never reached",
    "budget": "the budget of steps was used up, and the goal was never reached",
    "error": "the program failed; counted as no success",
}
INTERVALS = (
    "In brackets: 95 % intervals, of shares of tasks exact (Clopper-Pearson), else from a bootstrap over tasks "
    "(percentiles)."
)
AGREEMENT_TOLD = (
    "Offline, a task is right if every recorded step is answered right, with the model's own memory. Kappa is "
    "Cohen's: 1 where offline and live verdict always agree, 0 where they agree as often as two that know nothing of "
    "each other, not defined where all verdicts are of one kind. Tasks that ended in an error have no live verdict "
    "and are not compared."
)


def publish_live(
    folder: Path,
    episodes: Sequence[Episode],
    info: RunInfo,
    offline: Verdicts | None = None,
    *,
    images: Images = "embed",
    has_film: bool = False,
) -> dict[str, Any]:
    """Score a finished live run, write its files, print the final table; returns the metrics.

    `offline` are the verdicts of the same model's rollout on the same tasks, with its own memory.
    """
    metrics = compute_live_metrics(episodes)
    if offline is not None:
        metrics["agreement"] = compute_agreement(episodes, offline)
    write_whole(folder / "metrics.json", format_json({**metrics, "run": info.to_json()}, indent=2))
    report = write_live_report(folder, episodes, metrics, info, images=images)
    tried = [(number, episode) for number, episode in enumerate(episodes, 1) if episode.steps]  # its place in the data
    films = [write_film(folder, number, episode) for number, episode in tried] if has_film else []
    print_live_summary(metrics)
    for note in [*list_data_notes(info.data), *_describe_errors(episodes)]:
        print(as_printable(note))
    if films:
        print(f"Films: {len(films)} in {films[0].parent}")
    print(f"Report: {report}")
    return metrics


def write_live_report(
    folder: Path, episodes: Sequence[Episode], metrics: Mapping[str, Any], info: RunInfo, *, images: Images = "embed"
) -> Path:
    """Write report.html, its screenshots those of the run, and return its path."""
    image_ids = [step.image_id for episode in episodes for step in episode.steps]
    image_ids += [episode.last_image_id for episode in episodes if episode.ending == "budget"]
    thumbnails = load_thumbnails(image_ids, folder, folder if images == "link" else None)
    agreement = metrics["agreement"]
    page = render_run_page(
        _TEMPLATE,
        {
            "headline": "live",
            "matchers": ["live"],
            "tasks": [_build_task(episode, thumbnails.index_of) for episode in episodes if episode.result],
        },
        info,
        thumbnails,
        metrics=metrics,
        measures=list_measures(metrics),
        results_told=RESULTS_TOLD,
        intervals_told=" ".join(list_interval_notes(metrics)),
        agreement_told=AGREEMENT_TOLD,
        kappas={name: describe_kappa(found) for name, found in agreement["matchers"].items()} if agreement else {},
    )
    return write_page(folder, page, thumbnails)


def print_live_summary(metrics: Mapping[str, Any]) -> None:
    """Print success with its interval, what the tasks and steps came to, parts, and the agreement with offline."""
    console = Console()
    console.width = max(console.width, FILE_WIDTH)
    console.print()
    console.print(Text(f"{metrics['n_tasks']} tasks carried out live, {metrics['n_steps']} steps", "bold"))
    table = new_table("Measure", "count, or %")
    for label, value in list_measures(metrics):
        table.add_row(label, value)
    console.print(table)
    for kind, title in (("per_group", "Group"), ("per_application", "Application")):
        if len(metrics[kind]) > 1:
            console.print(_build_part_table(title, metrics[kind]))
    if metrics["agreement"] and metrics["agreement"]["matchers"]:
        console.print(_build_agreement_table(metrics["agreement"]))
        console.print(Text(AGREEMENT_TOLD, "dim"))
    results = ", ".join(f"{n} {result.replace('_', ' ')}" for result, n in metrics["results"].items())
    outcomes = ", ".join(f"{n} {outcome.replace('_', ' ')}" for outcome, n in metrics["step_outcomes"].items())
    console.print(Text(f"Tasks: {results}; {metrics['n_tasks']} in all."))
    console.print(Text(f"Steps: {outcomes}; {metrics['n_steps']} in all."))
    for task_id, reason in metrics["left_out"].items():
        console.print(Text(as_printable(f"Left out: {task_id}: {reason}")))
    for note in list_interval_notes(metrics):
        console.print(Text(note, "dim"))


def list_interval_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the intervals."""
    parts = [metrics[key] or {} for key in ("steps_against_recorded", "loops", "agreement")]
    return [INTERVALS, *describe_intervals(*parts)]


def list_measures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers that stand in terminal and report alike, as label and text."""
    lengths, loops = metrics["steps_against_recorded"], metrics["loops"]
    rows = [("success, of all tasks", _say(metrics["success"]))]
    if metrics["n_errors"]:
        n_errors = metrics["n_errors"]
        rows.append((f"success, without {n_errors} that ended in an error", _say(metrics["success_without_errors"])))
    if metrics["n_tried_again"]:
        rows.append(("tasks that did not begin and were tried again", str(metrics["n_tried_again"])))
    return rows + [
        ("goal reached at any step", _say(metrics["reached"])),
        ("COMPLETE said, goal not reached (silent wrong effect)", str(metrics["results"]["silent_wrong_effect"])),
        ("goal reached, COMPLETE never said (not noticed)", str(metrics["results"]["not_noticed"])),
        ("goal reached and left again", str(metrics["left_again"])),
        ("ended by another final action, goal never reached (given up)", str(metrics["results"]["given_up"])),
        ("stopped by the budget of steps, goal never reached", str(metrics["results"]["budget"])),
        (
            f"steps of successful tasks ({lengths['n_recorded']} recorded; goal reached after {lengths['n_to_goal']})",
            f"{lengths['n_steps']}: {_say(lengths['ratio'])}" if lengths["ratio"] else "–",
        ),
        (
            f"steps in loops: one action 3 times on one screen ({loops['n_tasks']} tasks)",
            _say(loops["in_loops"]),
        ),
    ]


def describe_kappa(found: Mapping[str, Any]) -> str:
    """Say kappa with its interval; it is no share, hence not in percent."""
    kappa: Rate | None = found["kappa"]
    return f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]" if kappa else "not defined"


def _say(rate: Rate | None) -> str:
    return rate.format() if rate else "–"


def _build_part_table(title: str, parts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = new_table(f"Success by {title}", "Tasks", "Success", "Silent wrong", "Errors")
    for label, part in parts.items():
        counts = str(part["results"]["silent_wrong_effect"]), str(part["n_errors"])
        table.add_row(Text(as_printable(label)), str(part["n_tasks"]), _say(part["success"]), *counts)
    return table


def _build_agreement_table(agreement: Mapping[str, Any]) -> Table:
    table = new_table("Offline against live", *agreement["matchers"])
    rows = [(f"tasks: {cell.replace('_', ' ')}", cell) for cell in ("both", "offline_only", "live_only", "neither")]
    found = agreement["matchers"].values()
    for label, cell in rows:
        table.add_row(label, *(str(each["counts"][cell]) for each in found))
    table.add_row("agree, %", *(_say(each["agreed"]) for each in found))
    table.add_row("Cohen's kappa", *map(describe_kappa, found))
    if any(each["n_undefined"] for each in found):
        table.add_row("  draws without one", *(str(each["n_undefined"]) for each in found))
    wrong = [each["wrong_steps"] for each in found]
    table.add_row("offline-wrong steps in live successes", *(f"{w['n']} of {w['of']}" for w in wrong))
    table.add_row("  in %", *(_say(w["share"]) for w in wrong))
    return table


def _describe_errors(episodes: Sequence[Episode]) -> list[str]:
    told = []
    if errors := [episode for episode in episodes if episode.result == "error"]:
        first = f"{errors[0].task_id}: {errors[0].reason}"
        told.append(f"{len(errors)} tasks ended in an error; the first: {first}.")
    if n_begun := sum(episode.never_began for episode in errors):
        told.append(f"{n_begun} of them did not begin; the same command tries these again.")
    if unanswered := [step for episode in episodes for step in episode.steps if step.outcome == "unanswered"]:
        told.append(f"{len(unanswered)} steps were not answered; the first: {unanswered[0].reason}")
    return told


def _build_task(episode: Episode, index_of: Mapping[str, int]) -> dict[str, Any]:
    """Return a task as the page's script reads it."""
    n_steps = max(1, len(episode.steps))
    told = str(episode.result).replace("_", " ")
    about = f"{told}, {len(episode.steps)} steps, {episode.n_recorded} recorded"
    return {
        "task_id": episode.task_id,
        "application": episode.application,
        "group": episode.group,
        "goal": episode.instruction,
        "n_steps": n_steps,
        "n_right": {"live": n_steps if episode.result == "success" else 0},
        "result": episode.result,
        "about": f"{about} ({episode.reason})" if episode.reason else about,
        "steps": [_build_step(step, index_of) for step in episode.steps],
        # after COMPLETE, or an error, the screen is that of the last step
        "end": _show(episode.last_image_id, index_of) if episode.ending == "budget" else None,
    }


def _show(image_id: str, index_of: Mapping[str, int]) -> dict[str, Any]:
    return {"image_id": image_id, "image": index_of.get(image_id), "box": None}


def _build_step(step: LiveStep, index_of: Mapping[str, int]) -> dict[str, Any]:
    told = [step.outcome.replace("_", " ")]
    if step.is_reached:
        told.append("goal reached")
    return {
        "index": step.index,
        **_show(step.image_id, index_of),
        "gold": None,
        "also_right": [],
        "predicted": format_action(step.predicted) if step.predicted else None,
        "outcomes": {"live": step.outcome},
        "roots": {},
        "recorded_memory": None,
        "memory_before": step.memory_before,
        "memory_after": step.memory_after,
        "raw_text": step.raw_text,
        "parse_status": step.parse_status,
        "parse_problem": "" if step.reason else step.parse_problem,
        "error": None,
        "finish_reason": step.finish_reason,
        "live": {
            "grade": find_grade(step),
            "outcome": ", ".join(told),
            "reason": step.reason,
            "verdict": step.verdict,
            "description": step.description,
            "point": place_point(step),
        },
    }


def find_grade(step: LiveStep) -> str:
    """Return how a step is shown: right where the goal is reached, done where it may still be on the way."""
    if step.outcome in ("unreadable", "unanswered", "error"):
        return "unreadable"
    if step.is_reached:
        return "right"
    return "done" if step.outcome == "done" else "wrong"


def place_point(step: LiveStep) -> list[float] | None:
    """Return where the action was done, in thousandths of the screen's width and height, as answers have points."""
    if step.point is None:
        return None
    return [round(1000 * v / size, 1) for v, size in zip(step.point, step.screen)]
