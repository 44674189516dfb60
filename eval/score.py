"""Score finished rollouts again, without a model.

python eval/score.py RUN [--matcher NAME ...] [--synonyms FILE] [--seed N] [--n_resamples N]
python eval/score.py compare RUN_A RUN_B [--output_dir DIR]
python eval/score.py merge RUN SHARD_0 SHARD_1 ...

The first reads steps.jsonl and run.json of the folder and writes predictions.csv, metrics.json, details.json and
report.html anew. `compare` pairs two runs of the same steps by task: differences (A minus B) with intervals, and the
sign of every task. `merge` joins the shards of a rollout into the folder RUN, scores it and enters the scores into the
model's card, as an unsharded rollout does.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from eval.reporting.publish import enter_results, judge_run, publish_comparison, publish_run
from eval.rollouts.options import add_report_images
from eval.rollouts.run_folder import WRITTEN, load_run
from eval.rollouts.run_info import hash_model, merge_run_infos, write_run
from eval.scoring.other_rules import build_rules, load_synonyms
from eval.step_result import format_result
from sft.data.load import natural_key
from sft.errors import UserError, run_command
from sft.files import refuse_foreign, write_whole
from sft.verbs import build_parser


def main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in ("compare", "merge") else ("score", argv)
    {"score": score, "compare": compare, "merge": merge}[command](rest)


def score(argv: list[str]) -> None:
    parser = build_own_parser()
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the --output_dir of a rollout")
    names = [rule.name for rule in build_rules({"": ""})]
    parser.add_argument("--matcher", nargs="+", choices=names, default=[], help="rules to print [all]", metavar="NAME")
    parser.add_argument("--synonyms", type=Path, help="JSON object: label -> list of labels that mean the same")
    arguments = parser.parse_args(argv)
    if "action_target_synonyms" in arguments.matcher and not arguments.synonyms:
        parser.error("--matcher action_target_synonyms: found no --synonyms; expected its table of labels")
    publish_run(
        arguments.run_dir,
        judge_run(arguments.run_dir, *load_run(arguments.run_dir)),
        **read_settings(arguments),
        synonyms=load_synonyms(arguments.synonyms) if arguments.synonyms else None,
        shown=arguments.matcher,
    )


def compare(argv: list[str]) -> None:
    parser = build_own_parser()
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="the --output_dir of a rollout")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another of the same data")
    parser.add_argument("--output_dir", type=Path, help="folder for comparison.json and report.html [none]")
    arguments = parser.parse_args(argv)
    publish_comparison(
        arguments.output_dir,
        judge_run(arguments.run_a, *load_run(arguments.run_a)),
        judge_run(arguments.run_b, *load_run(arguments.run_b)),
        (str(arguments.run_a), str(arguments.run_b)),
        **read_settings(arguments),
    )


def merge(argv: list[str]) -> None:
    parser = build_own_parser()
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="new folder for the whole rollout")
    parser.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="the --output_dir of every shard")
    arguments = parser.parse_args(argv)
    if (arguments.run_dir / "steps.jsonl").exists():
        raise UserError(
            f"{arguments.run_dir}: found a rollout; expected a new folder. To score this one again, give it alone: "
            f"python eval/score.py {arguments.run_dir}"
        )
    refuse_foreign(arguments.run_dir, WRITTEN, "run.json")
    runs = {folder: load_run(folder) for folder in arguments.shards}
    run_info = merge_run_infos({folder: info for folder, (_, info) in runs.items()})
    results = [step for steps, _ in runs.values() for step in steps]
    results.sort(key=lambda step: (natural_key(step.task_id), step.index))
    run = judge_run(arguments.run_dir, results, run_info)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    write_run(arguments.run_dir, run_info)
    write_whole(arguments.run_dir / "steps.jsonl", "".join(map(format_result, results)))
    metrics = publish_run(arguments.run_dir, run, **read_settings(arguments))
    if hash_model(run_info.model_path) == run_info.model_sha256:
        enter_results(run_info, metrics)
    else:
        print(f"{run_info.model_path}: not the model that was rolled out, or not here: its card is left as it is")


def build_own_parser() -> argparse.ArgumentParser:
    """Return a parser with the options of all three commands."""
    parser = build_parser("python eval/score.py", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap [0]")
    parser.add_argument("--n_resamples", type=int, default=10_000, help="resamples of the bootstrap [10000]")
    add_report_images(parser)
    return parser


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"seed": arguments.seed, "n_resamples": arguments.n_resamples, "images": arguments.report_images}


if __name__ == "__main__":
    run_command(main)
