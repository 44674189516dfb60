"""What a step is shown: the one place a prompt is made, for training and rollout alike. Knows no files or models."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft.actions import POINT, ActionType, as_plain_text
from sft.agent import AgentConfig
from sft.json_text import dump_json
from sft.memory import Memory

Message = dict[str, Any]


def build_prompt(
    instruction: str, memory: Memory, agent: AgentConfig, elements: Sequence[Mapping[str, Any]] | None = None
) -> list[Message]:
    """Render one step's model input.

    What belongs to the screen comes first, so that steps on one screenshot share it: the screenshot, then its
    *detected* elements (`{"name", "bbox"}`), used where `agent.use_grounding` is set. In prompt version 1 these came
    last. No task id, no step number: neither exists when the agent is used.

    Returns:
        Chat messages ending with the user turn, ready for `add_generation_prompt=True`; the image part has no pixels.
    """
    shown = [format_elements(elements or (), agent)] if agent.use_grounding else []
    lines = [f"Goal: {instruction}"]
    if agent.use_short_term:
        lines.append(f"Short-term memory: {dump_json(memory.short_term)}")
    if agent.use_long_term:
        lines.append(f"Long-term memory: {dump_json(memory.long_term)}")
    lines = [*lines, *shown] if agent.prompt_version == "1" else [*shown, *lines]
    return [
        {"role": "system", "content": [{"type": "text", "text": build_system_text(agent)}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": as_plain_text("\n".join(lines))}]},
    ]


def format_elements(elements: Sequence[Mapping[str, Any]], agent: AgentConfig) -> str:
    """Write a screenshot's elements as one line of the prompt, those that `limit_elements` leaves."""
    return as_plain_text(f"Detected elements: {dump_json(list(limit_elements(elements, agent)))}")


def limit_elements(elements: Sequence[Mapping[str, Any]], agent: AgentConfig) -> Sequence[Mapping[str, Any]]:
    """Return the first `agent.max_elements` of a screenshot's elements; prompt version 1 has no such bound."""
    return elements if agent.prompt_version == "1" else elements[: agent.max_elements]


def build_system_text(agent: AgentConfig) -> str:
    """Render the static system message: role, action schema, answer schema."""
    actions = "\n".join(f"{a.name}: {a.description}{_describe_arguments(a, agent)}" for a in agent.actions)
    point = "point: the element's centre [x, y], each 0 to 1000 of the screenshot\n" if agent.points else ""
    parts = ["action", "target", *["point"] * agent.points, "arguments"]
    if agent.writes_memory:
        parts += [p for p, used in (("short_term", agent.use_short_term), ("long_term", agent.use_long_term)) if used]
    return (
        "You operate clinical software. Look at the screenshot and choose the next action toward the goal.\n"
        f"Actions:\n{actions}\n{point}"
        f"Answer with one line of JSON: {', '.join(parts)}."
    )


def _describe_arguments(action: ActionType, agent: AgentConfig) -> str:
    """List an action's arguments; with `agent.points`, the point stands in the answer schema once for all actions."""
    shown = {name: values for name, values in action.arguments.items() if name != POINT or not agent.points}
    parts = [f"{name} {'/'.join(values)}".strip() for name, values in shown.items()]
    if not action.takes_target:
        parts.insert(0, "no target")
    return f"; {', '.join(parts)}" if parts else ""
