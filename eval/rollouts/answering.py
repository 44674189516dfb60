"""From options to what is run: the policy that answers, what finds elements for it, and the run's description."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.rollouts.options import find_model_folder
from eval.rollouts.run_info import RunInfo, build_run_info
from sft.agent import AgentConfig
from sft.data.data_notes import describe_test_data
from sft.data.elements_file import find_maker, read_trained_maker
from sft.data.load import TaskSet, Trajectory
from sft.data.overlap import (
    find_trained_tasks,
    find_training_doubt,
    find_unseen_applications,
    refuse_trained_tasks,
)
from sft.errors import UserError

if TYPE_CHECKING:
    from eval.policies.policy import Policy


def build_policy(arguments: argparse.Namespace, agent: AgentConfig, trajectories: Sequence[Trajectory]) -> "Policy":
    """Build what answers; only the model policy loads a model."""
    from eval.policies.policy import EmptyPolicy, ReplayPolicy

    if arguments.policy == "replay":
        return ReplayPolicy(trajectories, agent)
    if arguments.policy == "empty":
        return EmptyPolicy()
    is_constrained = arguments.decoding == "constrained"
    if arguments.engine == "openai":
        from eval.policies.openai_server import OpenAIPolicy
        from eval.policies.vllm_engine import warn_of_left_out

        if folder := find_model_folder(arguments):
            warn_of_left_out(Path(folder))
        return OpenAIPolicy(arguments.api_url, arguments.model_path, agent, is_constrained)
    if arguments.engine == "vllm":
        from eval.policies.vllm_engine import VllmPolicy

        return VllmPolicy(arguments.model_path, arguments.base_model, agent, is_constrained)
    from eval.predictor import load_model_for_inference

    paths = (arguments.model_path, arguments.base_model, arguments.agent_config)
    return load_model_for_inference(*paths, is_constrained=is_constrained).policy


def read_detector(arguments: argparse.Namespace, agent: AgentConfig) -> dict[str, Any] | None:
    """Return what `--detect` finds elements with, None without it.

    Raises:
        UserError: the agent is shown no elements, or what finds them is not installed.
    """
    if not arguments.detect:
        return None
    if not agent.use_grounding:
        raise UserError("--detect: found an agent that is shown no elements; expected one with use_grounding: true")
    from sft.elements.detector import describe_detector

    return describe_detector()


def describe_elements(
    arguments: argparse.Namespace, agent: AgentConfig, maker: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Say what made the elements that a model is shown, and those of its training; None where none are shown."""
    if not agent.use_grounding or arguments.policy != "model":
        return None
    trained = read_trained_maker(find_model_folder(arguments))
    return {"made_by": maker or find_maker(arguments.test_csv), **trained}


def describe_run(
    arguments: argparse.Namespace,
    mode: str,
    tasks: TaskSet,
    agent: AgentConfig,
    maker: dict[str, Any] | None,
    **more: Any,
) -> RunInfo:
    """Describe a run of tasks that begins now; `maker` is what finds elements on the fly.

    Raises:
        UserError: the model was trained on some of the tasks, and --allow_overlap is not given.
    """
    folder = find_model_folder(arguments) if arguments.policy == "model" else None
    trajectories = tasks.trajectories
    trained, unseen = find_trained_tasks(folder, trajectories), find_unseen_applications(folder, trajectories)
    doubt = find_training_doubt(folder)
    refuse_trained_tasks(trained, arguments.test_csv, arguments.allow_overlap, doubt)
    return build_run_info(
        mode=mode,
        policy=arguments.policy,
        engine=arguments.engine,
        api_url=arguments.api_url if arguments.policy == "model" and arguments.engine == "openai" else None,
        decoding=arguments.decoding,
        model_path=arguments.model_path,
        base_model=arguments.base_model,
        test_csv=arguments.test_csv,
        test_csv_sha256=tasks.sha256,
        image_root=None if tasks.image_root == Path(arguments.test_csv).parent else str(tasks.image_root),
        agent=agent,
        trajectories=trajectories,
        detector=maker,
        data=describe_test_data(tasks, arguments.test_csv, trained, unseen, doubt)
        | {"elements": describe_elements(arguments, agent, maker)},
        **more,
    )
