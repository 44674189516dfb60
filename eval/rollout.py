"""Roll a model out over recorded tasks with the memory it wrote, score it and write the report.

python eval/rollout.py --model_path outputs/qwen3vl --test_csv test.csv --output_dir results/

The same command resumes a rollout that was stopped. `--self_check` instead of `--output_dir` checks the evaluation
itself on the data, and with --model_path that answers do not depend on the batch.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.reporting.publish import (
    COMPARISON_NAME,
    COMPARISON_REPLACES,
    Run,
    enter_results,
    find_image_root,
    judge_run,
    publish_comparison,
    publish_run,
    refuse_all_errors,
)
from eval.rollouts.answering import build_policy, describe_run, read_detector
from eval.rollouts.metering import meter, record_rollout
from eval.rollouts.options import MODES, parse_arguments, read_agent
from eval.rollouts.run_folder import claim_folders, run_tasks, write_in_order
from eval.rollouts.run_info import RunInfo, for_mode, for_shard, open_run
from eval.scoring.matching import cut_at_first_error
from sft.agent import AgentConfig
from sft.data.load import Trajectory, load_task_set
from sft.data.memory_audit import list_shown_parts
from sft.data.problems import QUARANTINE_NAME, write_quarantine
from sft.errors import run_command
from sft.files import refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from eval.policies.policy import Policy

    BuildPolicy = Callable[[], Policy]


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv, __doc__)
    agent = read_agent(arguments)
    maker = read_detector(arguments, agent)
    tasks = load_task_set(
        arguments.test_csv,
        arguments.image_root,
        actions=agent.actions,
        task_end=arguments.max_tasks,
        needs_elements=agent.use_grounding and not arguments.detect,
        memory_parts=list_shown_parts(agent) if arguments.mode in ("teacher", "all") or arguments.self_check else (),
        on_bad_rows=arguments.on_bad_rows,
    )
    trajectories = tasks.trajectories
    build = cache(partial(build_policy, arguments, agent, trajectories))
    if arguments.self_check:
        run_self_check(arguments, agent, detect(arguments, trajectories), build)
        return
    info = describe_run(arguments, arguments.mode, tasks, agent, maker)
    if arguments.num_shards > 1:
        trajectories = trajectories[arguments.shard :: arguments.num_shards]
        info = for_shard(info, arguments.shard, arguments.num_shards, trajectories)
    folders = {arguments.output_dir: info}
    if arguments.mode == "all":
        folders = {arguments.output_dir / mode: for_mode(info, mode) for mode in MODES}
        refuse_foreign(arguments.output_dir, COMPARISON_REPLACES, COMPARISON_NAME)
    with claim_folders(folders):
        if tasks.quarantined:
            write_quarantine(arguments.output_dir / QUARANTINE_NAME, tasks.quarantined)
        trajectories = detect(arguments, trajectories)
        with record_rollout(arguments, info) as recorder:
            roll_out(arguments, info, agent, trajectories, meter(build, recorder))


def detect(arguments: argparse.Namespace, trajectories: list[Trajectory]) -> list[Trajectory]:
    """Give each step the elements found on its screenshot, where `--detect` asks for it."""
    if not arguments.detect:
        return trajectories
    from sft.elements.screens import give_elements

    return give_elements(trajectories, arguments.output_dir and arguments.output_dir / "elements_cache")


def roll_out(
    arguments: argparse.Namespace,
    info: RunInfo,
    agent: AgentConfig,
    trajectories: list[Trajectory],
    build: "BuildPolicy",
) -> None:
    """Answer what is left to answer, score it and write everything a run publishes."""
    if arguments.mode == "all":
        run_all_modes(arguments, info, agent, trajectories, build)
        return
    results, info = run_tasks(arguments.output_dir, info, trajectories, agent, arguments.batch_size, build)
    run = judge_run(arguments.output_dir, results, info)
    metrics = publish_run(arguments.output_dir, run, images=arguments.report_images)
    refuse_all_errors(arguments.output_dir, run)
    enter_results(info, metrics)
    report(arguments, run, metrics)


def run_self_check(
    arguments: argparse.Namespace, agent: AgentConfig, trajectories: list[Trajectory], build: "BuildPolicy"
) -> None:
    """Print every check; end with exit code 1 where one fails."""
    from eval.rollouts.self_check import run_self_checks

    policy = build() if arguments.policy == "model" and arguments.model_path else None
    checks = []
    for check in run_self_checks(trajectories, agent, arguments.batch_size, policy):
        print(f"{'ok    ' if check.is_passed else 'FAILED'} {check.name}: {check.detail}")
        checks.append(check)
    if policy is None:
        print("left out: answers do not depend on the batch (needs --model_path)")
    if not all(check.is_passed for check in checks):
        sys.exit(1)


def run_all_modes(
    arguments: argparse.Namespace,
    info: RunInfo,
    agent: AgentConfig,
    trajectories: list[Trajectory],
    build: "BuildPolicy",
) -> None:
    """Run each mode in a folder of its own, on one loaded model, and report the exposure gap: teacher against own."""
    runs, metrics = {}, {}
    for mode in ("teacher", "own"):
        folder: Path = arguments.output_dir / mode
        done = run_tasks(folder, for_mode(info, mode), trajectories, agent, arguments.batch_size, build)
        runs[mode] = judge_run(folder, *done)
        metrics[mode] = publish_run(folder, runs[mode], images=arguments.report_images)
        refuse_all_errors(folder, runs[mode])
    folder = arguments.output_dir / "own_stop"
    stopped_info = open_run(folder, for_mode(runs["own"].info, "own_stop"))
    stopped = write_in_order(folder / "steps.jsonl", cut_at_first_error(runs["own"].verdicts), trajectories)
    publish_run(folder, judge_run(folder, stopped, stopped_info), images=arguments.report_images)
    gap = publish_comparison(
        arguments.output_dir, runs["teacher"], runs["own"], ("teacher", "own"), images=arguments.report_images
    )
    enter_results(runs["teacher"].info, metrics["teacher"])
    enter_results(runs["own"].info, metrics["own"], gap["matchers"])
    for mode, run in runs.items():
        report(arguments, run, metrics[mode])


def report(arguments: argparse.Namespace, run: Run, metrics: Mapping[str, Any]) -> None:
    """Log a finished rollout to the tracker that `--report_to` names."""
    if arguments.report_to:
        from eval.reporting.trackers import report_rollout

        name = f"{arguments.output_dir.resolve().name} {run.info.mode}"
        report_rollout(arguments.report_to, name, run.verdicts, metrics, run.info, find_image_root(run.info))


if __name__ == "__main__":
    run_command(main)
