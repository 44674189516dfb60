"""What answers: a model, the recording or nothing, as the options say; and what finds elements for a model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.rollouts.options import find_model_folder
from sft.agent import AgentConfig
from sft.data.elements_file import find_maker, read_trained_maker
from sft.data.load import Trajectory
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
