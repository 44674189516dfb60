"""Roll a model out over recorded tasks with the memory it wrote, score it and write the report.

python eval/rollout.py --model_path outputs/qwen3vl --test_csv test.csv --output_dir results/

A run that was stopped goes on where it stopped when the same command is given again.
"""

import argparse
from collections import defaultdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.manifest import build_run_info, for_mode, for_shard, open_run
from eval.publish import publish_comparison, publish_run
from eval.results import StepResult
from eval.runs import run_tasks, write_in_order
from sft.config import load_agent_config
from sft.errors import run_command
from sft.prompts import AgentConfig
from sft.trajectory import Trajectory, load_trajectories

if TYPE_CHECKING:
    from eval.policy import Policy

MODES = ("teacher", "own", "own_stop")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="folder that sft/run.py wrote, or a full model")
    parser.add_argument("--base_model", help="base model of the adapter [the one it was trained on]")
    parser.add_argument("--agent_config", help="agent_config.json [the one in --model_path]; an untuned base has none")
    parser.add_argument("--test_csv", required=True, help="trajectory CSV to roll out")
    parser.add_argument("--image_root", help="folder of the screenshots [folder of the CSV]")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--mode",
        choices=[*MODES, "all"],
        default="own",
        help="whose memory a step is shown; own_stop ends a task at its first wrong step; all compares them [own]",
    )
    parser.add_argument("--policy", choices=["model", "replay", "empty"], default="model", help="what answers [model]")
    parser.add_argument("--batch_size", type=int, default=16, help="steps answered at once [16]")
    parser.add_argument("--max_tasks", type=int, help="roll out only the first tasks")
    parser.add_argument("--num_shards", type=int, default=1, help="machines that share the tasks [1]")
    parser.add_argument("--shard", type=int, default=0, help="which of them this is, from 0 [0]")
    parser.add_argument("--report_images", choices=["embed", "link"], default="embed", help="screenshots [embed]")
    arguments = parser.parse_args(argv)
    if arguments.policy == "model" and not arguments.model_path:
        parser.error("--policy model needs --model_path")
    if arguments.batch_size < 1 or (arguments.max_tasks is not None and arguments.max_tasks < 1):
        parser.error("--batch_size and --max_tasks: expected at least 1")
    if not 0 <= arguments.shard < arguments.num_shards:
        parser.error(f"--shard: found {arguments.shard} of {arguments.num_shards}; expected 0 to --num_shards - 1")
    if arguments.num_shards > 1 and arguments.mode == "all":
        parser.error("--mode all: found --num_shards too; run each mode in shards, merge them and compare")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    agent = read_agent(arguments)
    trajectories = load_trajectories(
        arguments.test_csv,
        arguments.image_root,
        actions=agent.actions,
        task_end=arguments.max_tasks,
        needs_elements=agent.use_grounding,
    )
    info = build_run_info(
        mode=arguments.mode,
        policy=arguments.policy,
        model_path=arguments.model_path,
        base_model=arguments.base_model,
        test_csv=arguments.test_csv,
        image_root=arguments.image_root,
        agent=agent,
        trajectories=trajectories,
    )
    if arguments.num_shards > 1:
        trajectories = trajectories[arguments.shard :: arguments.num_shards]
        info = for_shard(info, arguments.shard, arguments.num_shards, trajectories)
    build = cache(partial(build_policy, arguments, agent, trajectories))
    if arguments.mode == "all":
        run_all_modes(arguments, info, agent, trajectories, build)
        return
    results, info = run_tasks(
        arguments.output_dir, info, trajectories, agent, arguments.mode, arguments.batch_size, build
    )
    publish_run(arguments.output_dir, results, info, images=arguments.report_images)


def read_agent(arguments: argparse.Namespace) -> AgentConfig:
    """Return how prompts are made: as in training, or the default where no model answers."""
    if arguments.model_path or arguments.agent_config:
        return load_agent_config(Path(arguments.model_path or "."), arguments.agent_config)
    return AgentConfig()


def run_all_modes(
    arguments: argparse.Namespace,
    info: dict[str, Any],
    agent: AgentConfig,
    trajectories: list[Trajectory],
    build: Any,
) -> None:
    """Run each mode in a folder of its own, on one loaded model, and report the exposure gap: teacher against own."""
    runs = {}
    for mode in ("teacher", "own"):
        folder: Path = arguments.output_dir / mode
        runs[mode] = run_tasks(folder, for_mode(info, mode), trajectories, agent, mode, arguments.batch_size, build)
        publish_run(folder, *runs[mode], images=arguments.report_images)
    folder = arguments.output_dir / "own_stop"
    stopped_info = open_run(folder, for_mode(runs["own"][1], "own_stop"))
    stopped = write_in_order(folder / "steps.jsonl", cut_tasks(runs["own"][0]), trajectories)
    publish_run(folder, stopped, stopped_info, images=arguments.report_images)
    publish_comparison(
        arguments.output_dir, runs["teacher"], runs["own"], ("teacher", "own"), images=arguments.report_images
    )


def cut_tasks(results: list[StepResult]) -> list[StepResult]:
    """Return the results of mode own_stop from those of mode own: no model is needed."""
    from eval.walk import cut_at_first_error

    tasks: dict[str, list[StepResult]] = defaultdict(list)
    for result in results:
        tasks[result.task_id].append(result)
    return [step for task in tasks.values() for step in cut_at_first_error(task)]


def build_policy(arguments: argparse.Namespace, agent: AgentConfig, trajectories: list[Trajectory]) -> "Policy":
    """Build what answers; only the model policy loads a model."""
    from eval.policy import EmptyPolicy, ReplayPolicy

    if arguments.policy == "replay":
        return ReplayPolicy(trajectories, agent)
    if arguments.policy == "empty":
        return EmptyPolicy()
    from eval.predictor import load_model_for_inference

    return load_model_for_inference(arguments.model_path, arguments.base_model, arguments.agent_config).policy


if __name__ == "__main__":
    run_command(main)
