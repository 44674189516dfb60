"""Let a model operate a running program, task by task, and judge it by the program's own state.

python eval/live.py --model_path outputs/demo --environment demo.clinic --tasks demo/data/test.csv \\
    --output_dir results/live

--environment names a Python module that offers the program (docs/live.md). The same command resumes a run that was
stopped, at the next task. --offline names a finished rollout of the same model on the same tasks; the report then says
how far offline and live verdicts agree.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eval.environments.episode import Episode
from eval.environments.operate import BUDGET
from eval.reporting.live import publish_live
from eval.reporting.publish import judge_run
from eval.rollouts.answering import build_policy, describe_run
from eval.rollouts.live import WRITTEN, explain_full_disk, find_opener, hash_environment, run_live_tasks
from eval.rollouts.metering import meter, record_rollout
from eval.rollouts.options import (
    add_compute_options,
    add_data_options,
    add_model_options,
    add_report_images,
    find_common_problem,
    read_agent,
)
from eval.rollouts.run_folder import claim_folders, load_run
from eval.rollouts.run_info import RunInfo, list_other_answers
from eval.scoring.matching import Verdicts
from sft.data.load import Trajectory, load_task_set
from sft.errors import UserError, as_printable, run_command
from sft.verbs import build_parser


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    open_environment = find_opener(arguments.environment)
    agent = read_agent(arguments)
    detector = None
    if agent.use_grounding and arguments.policy == "model":
        from sft.elements.detector import describe_detector

        detector = describe_detector()
    tasks = load_task_set(
        arguments.test_csv, arguments.image_root, actions=agent.actions, task_end=arguments.max_tasks
    )
    info = describe_run(
        arguments,
        "live",
        tasks,
        agent,
        detector,
        environment={
            "module": arguments.environment,
            "sha256": hash_environment(arguments.environment),
            "step_limit_s": arguments.step_limit_s,
            "steps_per_recorded_step": BUDGET,
        },
    )
    offline = read_offline(arguments.offline, info, tasks.trajectories) if arguments.offline else None
    build = partial(build_policy, arguments, agent, tasks.trajectories)
    out: Path = arguments.output_dir
    with claim_folders({out: info}, WRITTEN), explain_full_disk(out):
        with record_rollout(arguments, info) as recorder:
            ask = meter(build, recorder)
            limit_s = arguments.step_limit_s
            episodes, info = run_live_tasks(out, info, tasks.trajectories, agent, ask, open_environment, limit_s)
        publish_live(out, episodes, info, offline, images=arguments.report_images, has_film=arguments.film)
    refuse_failures(out, episodes)


def refuse_failures(folder: Path, episodes: Sequence[Episode]) -> None:
    """Make sure that a finished run says something of its model.

    Raises:
        UserError: every task ended in an error of the program, or not one step was answered.
    """
    tried = [episode for episode in episodes if episode.result is not None]
    steps = [step for episode in tried for step in episode.steps]
    if all(episode.result == "error" for episode in tried):
        found = f"an error in every task; the first: {tried[0].reason}"
    elif all(step.outcome == "unanswered" for step in steps):
        found = f"no step that was answered; the first: {steps[0].reason}"
    else:
        return
    anew = "with another --output_dir" if steps else "again"  # a task that was begun keeps its result
    raise UserError(
        f"{folder}: found {as_printable(found)}; unless the agent itself breaks the program, its numbers say nothing "
        f"of the model: fix the cause and run it {anew}"
    )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line; what cannot be run ends with a message and exit code 2."""
    parser = build_parser("python eval/live.py", __doc__)
    add_model_options(parser)
    program = parser.add_argument_group("the program")
    program.add_argument(
        "--environment", required=True, metavar="MODULE", help="Python module with open_environment, e.g. demo.clinic"
    )
    program.add_argument(
        "--step_limit_s", type=float, default=30.0, help="seconds in which a screen must be still after an action [30]"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--tasks", dest="test_csv", required=True, metavar="FILE", help="trajectory CSV whose tasks are carried out"
    )
    add_data_options(data)
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    run.add_argument("--offline", type=Path, metavar="RUN", help="a rollout of the same model on the same tasks")
    run.add_argument("--film", action="store_true", help="write an animated WebP of each task into films/")
    add_report_images(run)
    add_compute_options(run)
    arguments = parser.parse_args(argv)
    if problem := find_problem(arguments):
        parser.error(problem)
    return arguments


def find_problem(arguments: argparse.Namespace) -> str | None:
    """Return what cannot be run, or None."""
    if not all(part.isidentifier() for part in arguments.environment.split(".")):
        return f"--environment: found {arguments.environment!r}; expected a Python module's name, e.g. demo.clinic"
    if not 0 < arguments.step_limit_s < 1e6:
        return f"--step_limit_s: found {arguments.step_limit_s:g}; expected more than 0 seconds"
    if arguments.policy == "model" and not arguments.model_path:
        return "--policy model needs --model_path"
    return find_common_problem(arguments)


def read_offline(folder: Path, live: RunInfo, tasks: Sequence[Trajectory]) -> Verdicts:
    """Return the verdicts of a rollout with its own memory, by the same model on these tasks and perhaps on others.

    Raises:
        UserError: it is unfinished, of another model or of other tasks, or its memory was not its own.
    """
    results, info = load_run(folder)
    if info.mode != "own":
        raise UserError(
            f"--offline {folder}: found a rollout in mode {info.mode}; expected one in mode own, whose memory is the "
            "model's own, as it is live"
        )
    if different := list_other_answers(info, live):
        raise UserError(
            f"--offline {folder}: found a rollout of something else (different: {', '.join(different)}); expected the "
            "same model, agent and tasks: roll out with the same options and without --environment"
        )
    verdicts = judge_run(folder, results, info).verdicts
    if missing := [task.task_id for task in tasks if task.task_id not in verdicts]:
        raise UserError(
            f"--offline {folder}: found no task {missing[0]} there; expected a rollout of all tasks of the live run"
        )
    return verdicts


if __name__ == "__main__":
    run_command(main)
