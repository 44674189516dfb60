"""From step results to everything a run publishes. Needs no model: rollout and re-scoring both end here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from eval.reporting.files import format_json, write_outputs
from eval.reporting.report import Images, write_report
from eval.reporting.tables import print_comparison, print_summary
from eval.rollouts.run_folder import load_run
from eval.rollouts.run_info import RunInfo, is_teacher_of, read_run
from eval.scoring.bootstrap import Bootstrap
from eval.scoring.comparison import compare_runs
from eval.scoring.error_sources import add_teacher, find_error_sources
from eval.scoring.matching import Verdicts, cut_at_first_error, judge
from eval.scoring.metrics import compute_metrics
from eval.step_result import NOT_RUN, StepResult
from sft.actions import DEFAULT_ACTIONS, read_action_type
from sft.data.data_notes import list_data_notes
from sft.errors import UserError, as_printable
from sft.evaluations import add_evaluation
from sft.files import is_within, refuse_foreign, write_whole
from sft.training.card import BEGIN, write_card

# What a comparison writes, `COMPARISON_NAME` before all else.
COMPARISON_NAME, COMPARISON_REPLACES = "comparison.json", ("report.html",)


@dataclass(frozen=True)
class Run:
    """A finished rollout, judged."""

    verdicts: Verdicts
    info: RunInfo

    @property
    def steps(self) -> list[StepResult]:
        return [verdict.step for verdict in chain(*self.verdicts.values())]


def judge_run(run_dir: Path, results: Sequence[StepResult], run_info: RunInfo) -> Run:
    """Judge a finished rollout by the vocabulary of its agent; what is published of it reads the verdicts.

    Raises:
        UserError: the run has not answered every step of its data, or holds steps of other data.
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
    actions = tuple(map(read_action_type, run_info.agent["actions"])) if run_info.agent else DEFAULT_ACTIONS
    verdicts = judge(results, actions)
    if run_info.mode == "own_stop":  # a rollout that was killed after its last answer has not cut its tasks yet
        verdicts = judge(cut_at_first_error(verdicts), actions)
    return Run(verdicts, run_info)


def publish_run(
    run_dir: Path,
    run: Run,
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
    images: Images = "embed",
    synonyms: Mapping[str, str] | None = None,
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a finished run, write its four files, print the final table; returns the metrics.

    Writes predictions.csv, metrics.json, details.json and report.html. `shown` names the rules the printed table is
    limited to. Errors have a root where the same rollout in mode teacher lies in the folder `teacher` beside this one.
    """
    teacher, info = find_teacher(run_dir, run.info), run.info
    verdicts = add_teacher(run.verdicts, teacher.verdicts) if teacher else run.verdicts
    metrics = compute_metrics(
        verdicts,
        mode=info.mode,
        seed=seed,
        n_resamples=n_resamples,
        synonyms=synonyms,
        agent=info.agent,
        unseen_applications=info.data.get("unseen_applications", ()),
    )
    write_outputs(run_dir, verdicts, metrics, info)
    report = write_report(run_dir, verdicts, metrics, info, find_image_root(info), find_figures(info), images=images)
    print_summary(metrics, shown)
    for note in [*list_data_notes(info.data), *describe_errors(run.steps, info), *describe_silence(run.steps)]:
        print(as_printable(note))
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

    Of one rollout in mode teacher and in another, the errors of the other have a root.

    Raises:
        UserError: the runs are not of the same steps.
    """
    comparison = compare_runs(run_a.verdicts, run_b.verdicts, names=names, seed=seed, n_resamples=n_resamples)
    if is_teacher_of(run_a.info, run_b.info):
        run_b = own = replace(run_b, verdicts=add_teacher(run_b.verdicts, run_a.verdicts))
    elif is_teacher_of(run_b.info, run_a.info):
        run_a = own = replace(run_a, verdicts=add_teacher(run_a.verdicts, run_b.verdicts))
    else:
        own = None
    bootstrap = Bootstrap(seed, n_resamples)
    comparison["error_sources"] = own and find_error_sources(own.verdicts, own.info.mode, own.info.agent, bootstrap)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign(folder, COMPARISON_REPLACES, COMPARISON_NAME)
        write_whole(folder / COMPARISON_NAME, format_json(comparison, indent=2))
        metrics = compute_metrics(
            run_a.verdicts,
            mode=run_a.info.mode,
            seed=seed,
            n_resamples=n_resamples,
            agent=run_a.info.agent,
            unseen_applications=run_a.info.data.get("unseen_applications", ()),
        )
        report = write_report(
            folder,
            run_a.verdicts,
            metrics,
            run_a.info,
            find_image_root(run_a.info),
            images=images,
            comparison=comparison,
            others=run_b.verdicts,
        )
        print(f"Report: {report}")
    print_comparison(comparison)
    return comparison


def find_teacher(run_dir: Path, run_info: RunInfo) -> Run | None:
    """Return the same rollout in mode teacher, if it lies finished in the folder `teacher` beside this one.

    A folder of that name that is of something else binds nobody.
    """
    folder = run_dir.resolve().parent / "teacher"
    try:
        info = read_run(folder)
    except UserError:
        return None
    return judge_run(folder, *load_run(folder)) if info.finished and is_teacher_of(info, run_info) else None


def enter_results(run_info: RunInfo, metrics: Mapping[str, Any], gap: Mapping[str, Any] | None = None) -> None:
    """Add the scores to the card that training or export wrote; a model folder without one is left alone.

    `gap`: the key `matchers` of the comparison of mode teacher with this run.
    """
    if run_info.policy != "model" or run_info.engine == "openai" or run_info.shard is not None:
        return
    card = Path(str(run_info.model_path)) / "README.md"
    if not card.is_file() or BEGIN not in card.read_text(encoding="utf-8"):
        return
    add_evaluation(card.parent, run_info.to_json(), metrics, gap)
    write_card(card.parent)


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
    told = f"{len(silent)} of {len(run)} answers are without text, and so count as unreadable."
    places = Counter(name for step in silent for name in step.said_elsewhere)
    places.update(f"finish_reason {s.finish_reason}" for s in silent if s.finish_reason not in ("stop", "length"))
    if places:
        first = next((said for step in silent for said in step.said_elsewhere.values()), "")
        listed = ", ".join(f"{name} ({n})" for name, n in places.items())
        told += f" What the server said instead: {listed}" + (f"; the first: {first[:200]}" if first else "")
        told += ". It is in steps.jsonl; docs/serving.md says how to have answers as text."
    return [told]


def refuse_all_errors(run_dir: Path, run: Run) -> None:
    """Make sure that a finished run says something of its model.

    Raises:
        UserError: not one step could be answered.
    """
    steps = [step for step in run.steps if step.parse_status != NOT_RUN]
    if all(step.error is not None for step in steps):
        raise UserError(
            f"{run_dir}: found an error at every step; the first: {steps[0].error}; expected answers: its scores say "
            "nothing of the model; fix the cause and roll out into another --output_dir"
        )


def find_image_root(run_info: RunInfo) -> Path:
    """Return the folder that the screenshots of a run are in."""
    return Path(run_info.image_root or Path(run_info.test_csv).parent)


def find_figures(run_info: RunInfo) -> list[Path]:
    """Return the training curves in the model's folder, where there are any."""
    if not run_info.model_path:
        return []
    folder = Path(run_info.model_path)
    return [path for path in [folder / "training_curves.png"] if path.is_file() and is_within(path, folder)]
