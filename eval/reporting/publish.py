"""From step results to everything a run publishes. Needs no model: rollout and re-scoring both end here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.reporting.files import format_json, write_outputs, write_text
from eval.reporting.report import Images, write_report
from eval.reporting.tables import print_comparison, print_summary
from eval.rollouts.run_info import RunInfo
from eval.scoring.comparison import compare_results
from eval.scoring.metrics import compute_metrics
from eval.step_result import NOT_RUN, StepResult
from sft.actions import POINT
from sft.data.data_notes import list_data_notes
from sft.errors import UserError

Run = tuple[Sequence[StepResult], RunInfo]  # the results and the content of run.json


def publish_run(
    run_dir: Path,
    results: Sequence[StepResult],
    run_info: RunInfo,
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
    images: Images = "embed",
    synonyms: Mapping[str, str] | None = None,
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a finished run, write its four files, print the final table; returns the metrics.

    Writes predictions.csv, metrics.json, details.json and report.html. `shown` names the rules the printed table is
    limited to.

    Raises:
        UserError: the run has not answered every step of its data.
    """
    metrics = score_run(run_dir, results, run_info, seed=seed, n_resamples=n_resamples, synonyms=synonyms)
    write_outputs(run_dir, results, metrics, run_info)
    figures = find_figures(run_info)
    report = write_report(
        run_dir, results, metrics, run_info, find_image_root(run_info), figures=figures, images=images
    )
    print_summary(metrics, shown)
    for note in [*list_data_notes(run_info.data), *describe_errors(results, run_info), *describe_silence(results)]:
        print(note)
    print(f"Report: {report}")
    return metrics


def publish_comparison(
    folder: Path | None,
    run_a: Run,
    run_b: Run,
    names: tuple[str, str],
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
    images: Images = "embed",
) -> dict[str, Any]:
    """Compare two runs of the same steps; print the table, and write comparison.json and report.html into `folder`.

    Raises:
        UserError: the runs are not of the same steps.
    """
    comparison = compare_results(run_a[0], run_b[0], names=names, seed=seed, n_resamples=n_resamples)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.json", format_json(comparison, indent=2))
        results, run_info = run_a
        metrics = score_run(folder, results, run_info, seed=seed, n_resamples=n_resamples)
        report = write_report(
            folder,
            results,
            metrics,
            run_info,
            find_image_root(run_info),
            images=images,
            comparison=comparison,
            others=run_b[0],
        )
        print(f"Report: {report}")
    print_comparison(comparison)
    return comparison


def score_run(
    run_dir: Path,
    results: Sequence[StepResult],
    run_info: RunInfo,
    *,
    seed: int,
    n_resamples: int,
    synonyms: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a finished run.

    Raises:
        UserError: the run has not answered every step of its data.
    """
    if len(results) > run_info.n_steps:
        raise UserError(
            f"{run_dir}: found {len(results)} step results; expected {run_info.n_steps}: steps.jsonl holds steps "
            "of other data. Delete it and roll out again, or choose another --output_dir"
        )
    if len(results) < run_info.n_steps:
        raise UserError(
            f"{run_dir}: found {len(results)} step results; expected {run_info.n_steps}: a part of a run is not "
            "scored; finish it with the command that started it"
        )
    actions = run_info.agent.get("actions", ())
    return compute_metrics(
        results,
        mode=run_info.mode,
        seed=seed,
        n_resamples=n_resamples,
        pointing_actions=frozenset(action["name"] for action in actions if POINT in action["arguments"]),
        synonyms=synonyms,
    )


def describe_errors(results: Sequence[StepResult], run_info: RunInfo) -> list[str]:
    """Return a sentence on the steps that could not be answered at all, or nothing where there is none."""
    errors = [step for step in results if step.error is not None]
    if not errors:
        return []
    first = f"{run_info.test_csv}: {errors[0].error}"
    return [f"{len(errors)} of {len(results)} steps are errors; the first: {first}"]


def describe_silence(results: Sequence[StepResult]) -> list[str]:
    """Return a sentence on the answers without text and on where their servers said something instead, or nothing."""
    run = [step for step in results if step.parse_status != NOT_RUN and step.error is None]
    silent = [step for step in run if not step.raw_text.strip()]
    if not silent:
        return []
    told = f"{len(silent)} of {len(results)} answers are without text, and so count as unreadable."
    places = Counter(name for step in silent for name in step.said_elsewhere)
    places.update(f"finish_reason {s.finish_reason}" for s in silent if s.finish_reason not in ("stop", "length"))
    if places:
        first = next((said for step in silent for said in step.said_elsewhere.values()), "")
        listed = ", ".join(f"{name} ({n})" for name, n in places.items())
        told += f" What the server said instead: {listed}" + (f"; the first: {first[:200]}" if first else "")
        told += ". It is in steps.jsonl; docs/serving.md says how to have answers as text."
    return [told]


def refuse_all_errors(run_dir: Path, results: Sequence[StepResult]) -> None:
    """Make sure that a finished run says something of its model.

    Raises:
        UserError: not one step could be answered.
    """
    run = [step for step in results if step.parse_status != NOT_RUN]
    if all(step.error is not None for step in run):
        raise UserError(
            f"{run_dir}: found an error at every step; the first: {run[0].error}; expected answers: its scores say "
            "nothing of the model; mend the cause and roll out into another --output_dir"
        )


def find_image_root(run_info: RunInfo) -> Path:
    """Return the folder that the screenshots of a run are in."""
    return Path(run_info.image_root or Path(run_info.test_csv).parent)


def find_figures(run_info: RunInfo) -> list[Path]:
    """Return the training curves that lie beside the model, where there are any."""
    if not run_info.model_path:
        return []
    return [path for path in [Path(run_info.model_path) / "training_curves.png"] if path.is_file()]
