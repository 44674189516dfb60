"""How does a tracker show a finished rollout? Its scores, and a table of its steps with their screenshots."""

import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from eval.reporting.screenshots import find_recorded_hashes
from eval.rollouts.run_info import RunInfo
from eval.scoring.matching import Verdict, Verdicts
from sft.actions import format_action
from sft.data.image_paths import resolve_image
from sft.data.screenshots import ScreenshotError, hash_screenshot, open_screenshot
from sft.errors import UserError
from sft.json_text import dump_json
from sft.recipe.recipe import load_yaml

COLUMNS = ("task", "step", "goal", "screenshot", "gold", "prediction", "verdict", "verdict_target")
WIDTH = 640  # of a screenshot, in pixels
_MATCHERS = {"": "action", "_target": "action_target"}  # named as in a training: eval/swa, eval/swa_target
BuildRows = Callable[[Callable[[Image.Image], Any]], list[list[Any]]]
_USUAL_PROJECT = "huggingface"  # where transformers puts a training


def report_rollout(
    tracker: str, name: str, verdicts: Verdicts, metrics: Mapping[str, Any], info: RunInfo, image_root: Path
) -> None:
    """Log a finished rollout as a run of its own, `name`: scores as `rollout/...`, steps as the table `steps`.

    Raises:
        UserError: the tracker takes nothing, for whatever reason of its own.
    """
    report = {"trackio": _report_to_trackio, "wandb": _report_to_wandb, "mlflow": _report_to_mlflow}[tracker]
    try:
        hashes = find_recorded_hashes((v.step for v in chain(*verdicts.values())), info, image_root)
        report(name, describe_scores(metrics), partial(build_rows, verdicts, image_root, hashes), info)
    except Exception as error:  # a tracker's errors are of many kinds, and the rollout is on the disk by now
        raise UserError(
            f"--report_to {tracker}: found an error of the tracker ({type(error).__name__}: {error}); the results are "
            "written: give the same command again to report them, which answers no step twice"
        ) from error
    print(f"Reported to {tracker}: {name}")


def describe_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return SWA and TA with the bounds of their intervals, under names that stay as they are."""
    scores: dict[str, float] = {}
    for suffix, matcher in _MATCHERS.items():
        for measure in ("swa", "ta"):
            rate = metrics["matchers"][matcher][measure]
            name = f"rollout/{measure}{suffix}"
            scores |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return scores


def build_rows(
    verdicts: Verdicts, image_root: Path, hashes: Mapping[str, str], show: Callable[[Image.Image], Any]
) -> list[list[Any]]:
    """Return a row per step, as `COLUMNS`; `show` is what a tracker makes of a screenshot, small and in RGB.

    It is asked once for each screenshot, however many steps show it. One that cannot be read any more, or is not the
    one of its SHA-256 in `hashes` (by image id), is black.
    """
    root = image_root.resolve()

    @cache
    def load(image_id: str) -> Any:
        try:
            path = resolve_image(image_id, root)
            if hash_screenshot(path) != hashes.get(image_id):
                raise ScreenshotError(f"found another picture than the model was shown: {path}", path)
            image = open_screenshot(path).convert("RGB")
        except (ScreenshotError, ValueError, OSError):
            image = Image.new("RGB", (16, 9))
        image.thumbnail((WIDTH, WIDTH))
        return show(image)

    return [
        [
            verdict.step.task_id,
            verdict.step.index + 1,
            verdict.step.instruction,
            load(verdict.step.image_id),
            dump_json(format_action(verdict.step.gold)),
            _format_prediction(verdict),
            verdict.outcomes["action"],
            verdict.outcomes["action_target"],
        ]
        for verdict in chain(*verdicts.values())
    ]


def _format_prediction(verdict: Verdict) -> str:
    """Return the action that was read of an answer, or else what there is in its place."""
    step = verdict.step
    return dump_json(format_action(step.predicted)) if step.predicted else step.error or step.raw_text


def _describe_rollout(info: RunInfo) -> dict[str, Any]:
    """Return what was rolled out on what; files by their last name, as paths may name people."""
    return {
        "model": Path(info.model_path).name if info.model_path else info.policy,
        "engine": info.engine,
        "mode": info.mode,
        "test_csv": Path(info.test_csv).name,
        "test_csv_sha256": info.test_csv_sha256,
        "n_tasks": info.n_tasks,
        "n_steps": info.n_steps,
    }


def _report_to_wandb(name: str, scores: dict[str, float], rows: BuildRows, info: RunInfo) -> None:
    import wandb

    project = os.environ.get("WANDB_PROJECT", _USUAL_PROJECT)
    # or it would tell its server the command line, which may hold a password, the folder, the user and the machine
    unnamed = wandb.Settings(x_disable_meta=True, x_disable_machine_info=True, disable_git=True, host="")
    about = _describe_rollout(info)
    with wandb.init(project=project, name=name, job_type="rollout", config=about, settings=unnamed) as run:
        run.log({**scores, "steps": wandb.Table(columns=list(COLUMNS), data=rows(wandb.Image))})


def _report_to_trackio(name: str, scores: dict[str, float], rows: BuildRows, info: RunInfo) -> None:
    import trackio

    recipe = Path(info.model_path) / "recipe.yaml" if info.model_path else None
    project = load_yaml(recipe).get("project", _USUAL_PROJECT) if recipe and recipe.is_file() else _USUAL_PROJECT
    trackio.init(project=project, name=name, config=_describe_rollout(info))
    trackio.log({**scores, "steps": trackio.Table(columns=list(COLUMNS), data=rows(trackio.Image))})
    trackio.finish()


def _report_to_mlflow(name: str, scores: dict[str, float], rows: BuildRows, info: RunInfo) -> None:
    import mlflow

    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        mlflow.set_experiment(experiment)
    unnamed = {"mlflow.user": "", "mlflow.source.name": "eval/rollout.py"}  # or it would tell its server both in full
    with mlflow.start_run(run_name=name, tags=unnamed):
        mlflow.log_params(_describe_rollout(info))
        mlflow.log_metrics(scores)
        table = {column: list(cells) for column, cells in zip(COLUMNS, zip(*rows(mlflow.Image)))}
        mlflow.log_table(table, artifact_file="steps.json")
