"""Roll a model out over recorded tasks with the memory it wrote, score it and write the report.

python eval/rollout.py --model_path outputs/qwen3vl --test_csv test.csv --output_dir results/

A run that was stopped goes on where it stopped when the same command is given again.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.manifest import build_run_info, close_run, open_run
from eval.metrics import compute_metrics
from eval.report import write_report
from eval.results import StepResult, append_result, load_results
from eval.summary import print_summary
from eval.writers import write_outputs
from sft.config import load_agent_config
from sft.errors import run_command
from sft.prompts import AgentConfig
from sft.trajectory import Trajectory, load_trajectories

if TYPE_CHECKING:
    from eval.policy import Policy


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="folder that sft/run.py wrote, or a full model")
    parser.add_argument("--base_model", help="base model of the adapter [the one it was trained on]")
    parser.add_argument("--agent_config", help="agent_config.json [the one in --model_path]; an untuned base has none")
    parser.add_argument("--test_csv", required=True, help="trajectory CSV to roll out")
    parser.add_argument("--image_root", help="folder of the screenshots [folder of the CSV]")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for the results")
    parser.add_argument("--mode", choices=["teacher", "own"], default="own", help="whose memory a step is shown [own]")
    parser.add_argument("--policy", choices=["model", "replay", "empty"], default="model", help="what answers [model]")
    parser.add_argument("--batch_size", type=int, default=16, help="tasks under way at once [16]")
    parser.add_argument("--max_tasks", type=int, help="roll out only the first tasks")
    arguments = parser.parse_args(argv)
    if arguments.policy == "model" and not arguments.model_path:
        parser.error("--policy model needs --model_path")
    if arguments.batch_size < 1 or (arguments.max_tasks is not None and arguments.max_tasks < 1):
        parser.error("--batch_size and --max_tasks: expected at least 1")
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
    info = open_run(arguments.output_dir, info)
    results = run(arguments, agent, trajectories)
    info = close_run(arguments.output_dir, info)
    metrics = compute_metrics(results, mode=arguments.mode)
    write_outputs(arguments.output_dir, results, metrics, info)
    image_root = Path(arguments.image_root or Path(arguments.test_csv).parent)
    curves = Path(arguments.model_path or ".") / "training_curves.png"
    report = write_report(
        arguments.output_dir, results, metrics, info, image_root, figures=[curves] if curves.is_file() else []
    )
    print_summary(metrics)
    print(f"Report: {report}")


def read_agent(arguments: argparse.Namespace) -> AgentConfig:
    """Return how prompts are made: as in training, or the default where no model answers."""
    if arguments.model_path or arguments.agent_config:
        return load_agent_config(Path(arguments.model_path or "."), arguments.agent_config)
    return AgentConfig()


def run(arguments: argparse.Namespace, agent: AgentConfig, trajectories: list[Trajectory]) -> list[StepResult]:
    """Answer every step that has no result yet, appending each to `steps.jsonl`; return all results."""
    from eval.walk import walk_tasks

    path = arguments.output_dir / "steps.jsonl"
    done: dict[str, list[StepResult]] = defaultdict(list)
    if path.is_file():
        for result in load_results(path):
            done[result.task_id].append(result)
    results = [result for task in done.values() for result in task]
    n_steps = sum(len(t.steps) for t in trajectories)
    if len(results) < n_steps:
        cut_last_line(path)
        policy = build_policy(arguments, agent, trajectories)
        walk = walk_tasks(trajectories, policy, agent, arguments.mode, arguments.batch_size, done)
        with path.open("a", encoding="utf-8") as file:
            for result in tqdm(walk, desc="Rolling out", unit="step", total=n_steps, initial=len(results)):
                append_result(file, result)
                results.append(result)
    order = {t.task_id: i for i, t in enumerate(trajectories)}
    return sorted(results, key=lambda r: (order[r.task_id], r.index))


def build_policy(arguments: argparse.Namespace, agent: AgentConfig, trajectories: list[Trajectory]) -> "Policy":
    """Build what answers; only the model policy loads a model."""
    from eval.policy import EmptyPolicy, ReplayPolicy
    from eval.predictor import load_model_for_inference

    if arguments.policy == "replay":
        return ReplayPolicy(trajectories, agent)
    if arguments.policy == "empty":
        return EmptyPolicy()
    return load_model_for_inference(arguments.model_path, arguments.base_model, arguments.agent_config).policy


def cut_last_line(path: Path) -> None:
    """Remove a last line that a kill left half-written."""
    if path.is_file():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)


if __name__ == "__main__":
    run_command(main)
