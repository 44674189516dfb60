"""Enters a finished rollout into the card of the model it rolled out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.rollouts.run_info import RunInfo
from sft.evaluations import add_evaluation
from sft.training.card import BEGIN, write_card


def enter_results(run_info: RunInfo, metrics: Mapping[str, Any], gap: Mapping[str, Any] | None = None) -> None:
    """Add the scores to the card that training or export wrote; a model folder without one is left alone.

    `gap`: the key `matchers` of the comparison of mode teacher with this run.
    """
    if run_info.policy != "model" or run_info.engine == "openai" or run_info.shard is not None:
        return
    card = Path(str(run_info.model_path)) / "README.md"
    if not card.is_file() or BEGIN not in card.read_text(encoding="utf-8"):
        return
    add_evaluation(card.parent, run_info.to_json(), metrics, gap)
    write_card(card.parent)
