"""A fine-tuned model as an object: load it once, ask it for one step at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from eval.policies.hf import ModelPolicy
from eval.policies.policy import StepRequest
from sft.actions import format_action
from sft.agent import AgentConfig
from sft.answers import parse_answer
from sft.batches.encoder import StepEncoder
from sft.data.image_paths import find_file
from sft.data.screenshots import open_screenshot
from sft.elements.detector import ElementDetector
from sft.errors import UserError
from sft.memory import Memory, update
from sft.models.merged_adapter import merge_adapter
from sft.models.model import load_for_inference, open_adapter
from sft.models.model_folder import find_base_name, is_adapter, read_dtype
from sft.models.processors import load_processor
from sft.recipe.recipe import load_agent_config, load_mixed_precision, load_model_settings
from sft.recipe.settings import ModelSettings


@dataclass(frozen=True)
class Prediction:
    """One step answered: the action (None where the answer could not be read) and the memory for the next step.

    An action whose target could not be read has the target "": it names no element, so do not carry it out.
    Its `point`, of a model that was trained with points, becomes a pixel of the screenshot by `sft.actions.to_pixels`.
    """

    action: dict[str, Any] | None
    short_term_memory: dict[str, Any]
    long_term_memory: dict[str, Any]
    raw_text: str
    parse_status: str


class Predictor:
    """A model with its agent configuration; holds no task state: the caller passes the memory back in."""

    def __init__(self, policy: ModelPolicy, agent: AgentConfig):
        self.policy, self.agent = policy, agent
        self._detector: ElementDetector | None = None

    def predict_step(
        self,
        image_path: str | Path,
        user_goal: str,
        short_term_memory: Mapping[str, Any] | None = None,
        long_term_memory: Mapping[str, Any] | None = None,
        detected_elements: Sequence[Mapping[str, Any]] = (),
        *,
        detect: bool = False,
    ) -> Prediction:
        """Answer one step. Pass the memories of the last `Prediction`, or none at the first step of a task.

        A model that was trained with detected elements (`use_grounding`) is given those of its screenshot, or finds
        them itself with `detect` (extra `ocr`).

        Raises:
            ValueError: the screenshot is missing or damaged, the goal is too long for `max_prompt_tokens`, or `detect`
                is asked of a model that is shown no elements.
        """
        path = find_file(Path(image_path))
        if detect:
            detected_elements = self._detect(path)
        memory = Memory(dict(short_term_memory or {}), dict(long_term_memory or {}))
        raw = self.policy.answer([StepRequest("", 0, user_goal, memory, path, detected_elements)])[0]
        if raw.error is not None:
            raise ValueError(raw.error)
        parsed = parse_answer(raw.text, self.agent, is_truncated=raw.finish_reason == "length")
        memory = update(memory, parsed.answer, self.agent.memory_writer, self.agent.memory_budget_chars)
        return Prediction(
            action=format_action(parsed.answer.action) if parsed.answer else None,
            short_term_memory=dict(memory.short_term),
            long_term_memory=dict(memory.long_term),
            raw_text=raw.text,
            parse_status=parsed.status,
        )

    def _detect(self, path: Path) -> Sequence[Mapping[str, Any]]:
        if not self.agent.use_grounding:
            raise UserError("detect: found a model that is shown no elements; expected one with use_grounding: true")
        if self._detector is None:
            self._detector = ElementDetector()
        return self._detector.detect(open_screenshot(path)).elements


def load_model_for_inference(
    model_path: str | Path,
    base_model_name: str | None = None,
    agent_config: str | Path | None = None,
    *,
    is_constrained: bool = False,
) -> Predictor:
    """Load a fine-tuned model folder: an adapter on its base, quantised as in training, or a full model.

    `base_model_name` overrides where the adapter's base model is; `agent_config` overrides the folder's own
    `agent_config.json`, which an untuned base model does not have. `is_constrained` holds every answer to its schema.

    Raises:
        ValueError: what is missing in the folder, or where the base model cannot be found.
    """
    folder = Path(model_path)
    agent = load_agent_config(folder, agent_config)
    base = find_base_name(folder, base_model_name)
    settings = replace(load_model_settings(folder), model_name_or_path=base) if base else _describe_full_model(folder)
    model = load_for_inference(settings, folder if base else None)
    if _compute_as_validated(model, folder) is None:
        merge_adapter(model)
    budget = (agent.min_pixels, agent.max_pixels)
    if _has_processor(folder):
        processor = load_processor(folder, *budget)
    else:
        processor = load_processor(settings.model_name_or_path, *budget, settings.model_revision)
    return Predictor(ModelPolicy(model, StepEncoder(processor, agent), is_constrained), agent)


def _compute_as_validated(model: torch.nn.Module, folder: Path) -> str | None:
    """Give a model the arithmetic of training's own rollouts, so that a checkpoint is scored as it was chosen.

    Those run under autocast. Without it peft computes LoRA in fp32, on inputs lifted to that.

    Returns:
        The number format of autocast, if there is one.
    """
    precision = load_mixed_precision(folder) if (folder / "recipe.yaml").is_file() else None
    if is_adapter(folder):
        with open_adapter(folder) as file:
            for name, parameter in model.named_parameters():
                if ".lora_" in name and precision:  # autocast would round them at each use, to the same numbers
                    parameter.data = parameter.data.to(getattr(torch, precision))
                elif ".modules_to_save.default." in name:  # which peft has rounded to the base's number format
                    saved = file.get_tensor(name.replace(".modules_to_save.default.", "."))
                    parameter.data = saved.to(parameter.device)
    if precision is None:
        return None
    dtype, forward = getattr(torch, precision), model.forward

    def forward_in_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(model.parameters()).device.type, dtype=dtype):
            return forward(*args, **kwargs)

    cast(Any, model).forward = forward_in_autocast
    return precision


def _describe_full_model(folder: Path) -> ModelSettings:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: found neither adapter_config.json nor config.json; expected a trained model: "
            "did the training end?"
        )
    return ModelSettings(str(folder), dtype=cast(Any, read_dtype(folder)), load_in_4bit=False)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
