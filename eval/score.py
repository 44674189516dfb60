"""Score a finished rollout again, without a model: python eval/score.py RUN_DIR [--seed N] [--n_resamples N]

Reads steps.jsonl and run.json of the folder; writes predictions.csv, metrics.json, details.json and report.html anew.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from eval.publish import publish_run
from eval.results import load_results


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --output_dir of a rollout")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap [0]")
    parser.add_argument("--n_resamples", type=int, default=10_000, help="resamples of the bootstrap [10000]")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_info = load_run_info(arguments.run_dir)
    results = list(load_results(find_file(arguments.run_dir, "steps.jsonl")))
    publish_run(arguments.run_dir, results, run_info, seed=arguments.seed, n_resamples=arguments.n_resamples)


def load_run_info(run_dir: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
        ValueError: the file is missing or is no JSON object.
    """
    path = find_file(run_dir, "run.json")
    try:
        run_info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}); expected what the rollout wrote") from error
    missing = {"mode", "n_steps", "image_root", "test_csv", "model_path"} - set(run_info)
    if missing:
        raise ValueError(f"{path}: found no {', '.join(sorted(missing))}; expected what the rollout wrote")
    return dict(run_info)


def find_file(run_dir: Path, name: str) -> Path:
    """Return the path of a run's file.

    Raises:
        ValueError: it is not there.
    """
    path = run_dir / name
    if not path.is_file():
        raise ValueError(f"{path}: found no such file; expected the --output_dir of a rollout")
    return path


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
