"""The JSON schema of an answer, made from the agent's vocabulary. Knows nothing of models."""

from typing import Any

from sft.actions import POINT, ActionType
from sft.agent import AgentConfig

# Spelled out, because xgrammar writes the values of a bare {"type": "object"} with spaces after commas.
_ANY_REF = {"$ref": "#/$defs/any"}
_ANY = {
    "anyOf": [
        *({"type": name} for name in ("string", "number", "boolean", "null")),
        {"type": "array", "items": _ANY_REF},
        {"type": "object", "additionalProperties": _ANY_REF},
    ]
}


def build_answer_schema(agent: AgentConfig) -> dict[str, Any]:
    """Return the schema of an answer: one alternative an action type, keys in their order.

    An action's arguments are optional, as in the data; the memory parts the agent writes are required objects. An
    empty target is admitted: xgrammar's strings of a least length may hold control characters, which JSON may not.
    """
    memory = {
        name: {"type": "object", "additionalProperties": _ANY_REF}
        for name, is_used in (("short_term", agent.use_short_term), ("long_term", agent.use_long_term))
        if is_used and agent.memory_writer == "model"
    }
    alternatives = [_build_action_schema(action_type, memory) for action_type in agent.actions]
    return {"anyOf": alternatives, **({"$defs": {"any": _ANY}} if memory else {})}


def _build_action_schema(action_type: ActionType, memory: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: _build_argument_schema(name, values) for name, values in action_type.arguments.items()}
    target = {"type": "string"} if action_type.takes_target else {"const": ""}
    return {
        "type": "object",
        "properties": {"action": {"const": action_type.name}, "target": target, **arguments, **memory},
        "required": ["action", "target", *memory],
        "additionalProperties": False,
    }


def _build_argument_schema(name: str, values: tuple[str, ...]) -> dict[str, Any]:
    if name == POINT:
        number = {"type": "integer", "minimum": 0, "maximum": 1000}
        return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    return {"enum": list(values)} if values else {"type": ["string", "number"]}
