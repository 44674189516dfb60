"""Prompt and answer text: the one place either is made, for training and rollout alike. Knows no files or models."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sft.actions import (
    DEFAULT_ACTIONS,
    ActionType,
    as_plain_text,
    describe_action_type,
    find_action_type,
    format_action,
    parse_action,
    read_action,
)
from sft.json_text import find_object
from sft.memory import Answer, Memory, MemoryWriter, clean_json, dump_json

PROMPT_VERSION = "1"
# What `parse_answer` takes for an action. 3: no part of a thought or of a broken object, but what a tool call carries;
# 2: the action type alone is enough; 1 asked for a whole answer.
ANSWER_VERSION = "3"

ParseStatus = Literal["ok", "no_json", "no_action", "truncated"]
Message = dict[str, Any]


@dataclass(frozen=True)
class AgentConfig:
    """Everything that shapes prompt and answer; saved beside the adapter as `agent_config.json`.

    `min_pixels` and `max_pixels` bound a screenshot's area in pixels before it becomes image tokens. A prompt longer
    than `max_prompt_tokens` (image tokens counted in) has its memory shortened; nothing else is ever cut.
    """

    actions: tuple[ActionType, ...] = field(
        default=DEFAULT_ACTIONS, metadata={"help": "The actions an agent can take; docs/data.md has an example."}
    )
    memory_writer: MemoryWriter = field(
        default="model",
        metadata={"help": "Who writes the memory: the model, in its answer, or a rule, from the predicted action."},
    )
    use_short_term: bool = field(default=True, metadata={"help": "Show the short-term memory (and have it written)."})
    use_long_term: bool = field(default=True, metadata={"help": "Show the long-term memory (and have it written)."})
    use_grounding: bool = field(
        default=False, metadata={"help": "Show the screen elements of the column Detected_Elements."}
    )
    memory_budget_chars: int = field(
        default=1200,
        metadata={
            "help": "Longest memory a prompt shows; the oldest entries are dropped.",
            "least": 4,
            "unit": "characters",
        },
    )  # 4: two empty objects
    min_pixels: int = field(
        default=65_536, metadata={"help": "A smaller screenshot is enlarged.", "least": 1, "unit": "pixels"}
    )
    max_pixels: int = field(
        default=1_310_720,
        metadata={"help": "A larger screenshot is made smaller; at least min_pixels.", "least": 1, "unit": "pixels"},
    )
    max_prompt_tokens: int = field(
        default=8192,
        metadata={
            "help": "A longer prompt, image tokens included, has its memory shortened; nothing else is ever cut.",
            "least": 1,
            "unit": "tokens",
        },
    )
    max_answer_tokens: int = field(
        default=512,
        metadata={"help": "Longest answer; a recorded one that is longer is refused.", "least": 1, "unit": "tokens"},
    )
    prompt_version: str = PROMPT_VERSION


@dataclass(frozen=True)
class ParsedAnswer:
    """A model's answer read: `answer` is None unless `status` is "ok"; `problem` says in words what was wrong.

    `left_out` names the parts of a read answer that were no such: "target", an argument, "short_term", "long_term".
    """

    status: ParseStatus
    answer: Answer | None
    problem: str = ""
    left_out: tuple[str, ...] = ()


def build_prompt(
    instruction: str, memory: Memory, agent: AgentConfig, elements: Sequence[Mapping[str, Any]] | None = None
) -> list[Message]:
    """Render one step's model input.

    The screenshot comes first so that steps on one screenshot share their prefix. `elements` are *detected* screen
    elements (`{"name", "bbox"}`), used where `agent.use_grounding` is set. No task id, no step number: neither exists
    when the agent is used.

    Returns:
        Chat messages ending with the user turn, ready for `add_generation_prompt=True`; the image part has no pixels.
    """
    lines = [f"Goal: {instruction}"]
    if agent.use_short_term:
        lines.append(f"Short-term memory: {dump_json(memory.short_term)}")
    if agent.use_long_term:
        lines.append(f"Long-term memory: {dump_json(memory.long_term)}")
    if agent.use_grounding:
        lines.append(f"Detected elements: {dump_json(list(elements or []))}")
    return [
        {"role": "system", "content": [{"type": "text", "text": build_system_text(agent)}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": as_plain_text("\n".join(lines))}]},
    ]


def build_system_text(agent: AgentConfig) -> str:
    """Render the static system message: role, action schema, answer schema."""
    actions = "\n".join(f"{a.name}: {a.description}{_describe_arguments(a)}" for a in agent.actions)
    parts = ["action", "target", "arguments"]
    if _writes_memory(agent):
        parts += [p for p, used in (("short_term", agent.use_short_term), ("long_term", agent.use_long_term)) if used]
    return (
        "You operate clinical software. Look at the screenshot and choose the next action toward the goal.\n"
        f"Actions:\n{actions}\n"
        f"Answer with one line of JSON: {', '.join(parts)}."
    )


def format_answer(answer: Answer, agent: AgentConfig) -> str:
    """Render an answer as the model is taught to write it: one line of JSON, action first."""
    fields: dict[str, Any] = format_action(answer.action)
    if _writes_memory(agent):
        if agent.use_short_term:
            fields["short_term"] = answer.short_term or {}
        if agent.use_long_term:
            fields["long_term"] = answer.long_term or {}
    return as_plain_text(dump_json(fields))


def parse_answer(text: str, agent: AgentConfig, is_truncated: bool = False) -> ParsedAnswer:
    """Read a model's answer: the first JSON object that it says (`find_object`), its "action" one of the vocabulary.

    A tool call around it (`{"name": ..., "arguments": {...}}`) is taken off. What else it holds is taken as far as it
    can be read: a target that is no text becomes "", an argument with a value it may not have is left out, and so is
    memory that is no object, so that the last valid memory stays.

    `is_truncated` says that generation stopped at its token limit. Never raises: an unreadable answer is data.
    """
    found = find_object(text)
    if found.fields is None:
        return ParsedAnswer("truncated" if is_truncated else "no_json", None, found.problem)
    fields, unclean = _clean_fields(_take_call_off(found.fields, agent.actions))
    try:
        action, left_out = read_action(fields, agent.actions)
    except ValueError as error:
        return ParsedAnswer("no_action", None, str(error))
    memory = {}
    for name in ("short_term", "long_term"):
        try:
            memory[name] = _read_memory_part(fields, name)
        except ValueError as error:
            left_out[name] = str(error)
    asked = {"target", "arguments", *memory, *(name for a in agent.actions for name in a.arguments)}
    left_out |= {name: why for name, why in unclean.items() if name in asked}
    return ParsedAnswer("ok", Answer(action, **memory), "; ".join(left_out.values()), tuple(left_out))


def read_answer(fields: Mapping[str, Any], actions: Sequence[ActionType] | None) -> Answer:
    """Build an `Answer` from a compact JSON object; memory that is not an object is refused.

    Raises:
        ValueError: what was found and what was expected.
    """
    return Answer(
        parse_action(fields, actions),
        _read_memory_part(fields, "short_term"),
        _read_memory_part(fields, "long_term"),
    )


def agent_to_json(agent: AgentConfig) -> dict[str, Any]:
    """Return the content of `agent_config.json`."""
    return {**asdict(agent), "actions": [describe_action_type(a) for a in agent.actions]}


def agent_from_json(fields: Mapping[str, Any]) -> AgentConfig:
    """Rebuild the agent that `agent_to_json` wrote.

    Raises:
        ValueError: the file was written for another prompt version, or holds keys this version does not know.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"found {type(fields).__name__}; expected a JSON object")
    if fields.get("prompt_version") != PROMPT_VERSION:
        raise ValueError(
            f"found prompt_version {fields.get('prompt_version')!r}; expected {PROMPT_VERSION!r}: "
            "roll out with the version of this package that trained the adapter"
        )
    try:
        actions = tuple(
            ActionType(**{**a, "arguments": {k: tuple(v) for k, v in a["arguments"].items()}})
            for a in fields["actions"]
        )
        return AgentConfig(**{**fields, "actions": actions})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"found something unreadable ({error}); train again or restore the file") from error


def _clean_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an answer's fields as plain text and JSON, and those that cannot be: name -> why."""
    clean, left_out = {}, {}
    for name, value in fields.items():
        try:
            clean[name] = clean_json(value, depth=1)
        except ValueError as error:
            left_out[name] = str(error)
    return clean, left_out


def _take_call_off(fields: dict[str, Any], actions: Sequence[ActionType]) -> dict[str, Any]:
    """Return the answer that a tool call carries; its name is the action where its arguments have none.

    Arguments are an object or, as in the OpenAI protocol, the text of one. What is no call is returned as it is.
    """
    function = fields.get("function")
    call = function if isinstance(function, dict) else fields
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = find_object(arguments).fields
    if "action" in fields or not isinstance(name, str) or not isinstance(arguments, dict):
        return fields
    is_action = "action" not in arguments and find_action_type(name, actions) is not None
    return {"action": name, **arguments} if is_action else arguments


def _writes_memory(agent: AgentConfig) -> bool:
    return agent.memory_writer == "model"


def _describe_arguments(action: ActionType) -> str:
    parts = [f"{name} {'/'.join(values)}".strip() for name, values in action.arguments.items()]
    if not action.takes_target:
        parts.insert(0, "no target")
    return f"; {', '.join(parts)}" if parts else ""


def _read_memory_part(fields: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    part = fields.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise ValueError(f"found {key} of type {type(part).__name__}; expected a JSON object")
    return part
