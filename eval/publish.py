"""From step results to everything a run publishes. Needs no model: rollout and re-scoring both end here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics import compute_metrics
from eval.report import write_report
from eval.results import StepResult
from eval.summary import print_summary
from eval.writers import write_outputs


def publish_run(
    run_dir: Path,
    results: Sequence[StepResult],
    run_info: Mapping[str, Any],
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
) -> dict[str, Any]:
    """Score a finished run, write its four files, print the final table; returns the metrics.

    Writes predictions.csv, metrics.json, details.json and report.html. `run_info` is the content of run.json.

    Raises:
        ValueError: the run has not answered every step of its data.
    """
    if len(results) != run_info["n_steps"]:
        raise ValueError(
            f"{run_dir}: found {len(results)} step results; expected {run_info['n_steps']}: a part of a run is not "
            "scored; finish it with the command that started it"
        )
    metrics = compute_metrics(results, mode=run_info["mode"], seed=seed, n_resamples=n_resamples)
    write_outputs(run_dir, results, metrics, run_info)
    image_root = Path(run_info["image_root"] or Path(run_info["test_csv"]).parent)
    report = write_report(run_dir, results, metrics, run_info, image_root, figures=find_figures(run_info))
    print_summary(metrics)
    print(f"Report: {report}")
    return metrics


def find_figures(run_info: Mapping[str, Any]) -> list[Path]:
    """Return the training curves that lie beside the model, where there are any."""
    if not run_info["model_path"]:
        return []
    return [path for path in [Path(run_info["model_path"]) / "training_curves.png"] if path.is_file()]
