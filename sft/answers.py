"""What does an answer say? Written as the model is taught it and read back. Knows no files or models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sft.actions import (
    Action,
    ActionType,
    as_plain_text,
    find_action_type,
    format_action,
    parse_action,
    read_action,
)
from sft.agent import AgentConfig
from sft.json_text import clean_json, dump_json, find_object

# What `parse_answer` takes for an action. 4: nothing of a channel of analysis, which is a thought too;
# 3: no part of a thought or of a broken object, but what a tool call carries;
# 2: the action type alone is enough; 1 asked for a whole answer.
ANSWER_VERSION = "4"

ParseStatus = Literal["ok", "no_json", "no_action", "truncated"]


@dataclass(frozen=True)
class Answer:
    """What one step answers: an action and, where the model writes its memory, the memory after the action.

    `short_term` or `long_term` is None where the answer does not carry it.
    """

    action: Action
    short_term: Mapping[str, Any] | None = None
    long_term: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ParsedAnswer:
    """A model's answer read: `answer` is None unless `status` is "ok"; `problem` says in words what was wrong.

    `left_out` names the parts of a read answer that were no such: "target", an argument, "short_term", "long_term".
    """

    status: ParseStatus
    answer: Answer | None
    problem: str = ""
    left_out: tuple[str, ...] = ()


def format_answer(answer: Answer, agent: AgentConfig) -> str:
    """Render an answer as the model is taught to write it: one line of JSON, action first."""
    fields: dict[str, Any] = format_action(answer.action)
    if agent.writes_memory:
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


def _read_memory_part(fields: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    part = fields.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise ValueError(f"found {key} of type {type(part).__name__}; expected a JSON object")
    return part
