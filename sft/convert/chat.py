"""Which messages has a row of chat data, and which pictures belong to each?

The forms are those that the tools document: role/content messages with `images` (TRL, "Dataset formats", and ms-swift,
"Custom dataset"), ShareGPT's from/value `conversations` (LLaMA-Factory, `data/README.md`), ms-swift's human/assistant
pairs and its `objects`, and TRL's `prompt` and `completion`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.convert.converted import Coordinates
from sft.convert.source_rows import Row, as_value
from sft.json_text import dump_json

_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "tool", "observation", "tool_response"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_PLACEHOLDER = re.compile(r"<image>")
_OBJECT = re.compile(r"<bbox>|<ref-object>")


@dataclass
class Message:
    """One turn: its role (system, user or assistant), and the pictures that a user's turn shows."""

    role: str
    text: str
    images: list[Any] = field(default_factory=list)


def read_conversation(row: Row, coordinates: Coordinates | None) -> tuple[list[Message], Coordinates | None]:
    """Return a row's messages, and the units of the places in them: the given ones, else what the row says.

    Raises:
        ValueError: the row has no messages, or not as many pictures or objects as its texts have places for them.
    """
    messages = _find_messages(row)
    if isinstance(objects := as_value(row.get("objects")), Mapping):
        _write_objects(messages, objects)
        coordinates = _find_units(objects, coordinates)
    _give_images(messages, row)
    return messages, coordinates


def strip_placeholders(text: str) -> str:
    """Return a text without its marks for pictures."""
    return _PLACEHOLDER.sub("", text).strip()


def _find_messages(row: Row) -> list[Message]:
    for name in ("messages", "conversations", "conversation"):
        if row.get(name):
            return _read_messages(as_value(row[name]), name)
    if row.get("prompt") and row.get("completion"):
        prompt, completion = as_value(row["prompt"]), as_value(row["completion"])
        return [
            *(_read_messages(prompt, "prompt") if isinstance(prompt, list) else [Message("user", str(prompt))]),
            *(
                _read_messages(completion, "completion")
                if isinstance(completion, list)
                else [Message("assistant", dump_json(completion) if isinstance(completion, dict) else str(completion))]
            ),
        ]
    columns = ", ".join(map(str, row))[:200]
    raise ValueError(f"found the columns {columns}; expected messages, conversations, or prompt and completion")


def _read_messages(listed: Any, name: str) -> list[Message]:
    if not isinstance(listed, list) or not all(isinstance(m, Mapping) for m in listed):
        raise ValueError(f"found no list of objects in {name}; expected messages")
    messages = []
    for entry in listed:
        if "human" in entry and "assistant" in entry:  # one turn of each, as ms-swift's older form has it
            pairs = [("user", entry["human"]), ("assistant", entry["assistant"])]
        else:
            role = entry.get("role", entry.get("from"))
            content = entry.get("content", entry.get("value"))
            if not content and isinstance(entry.get("tool_calls"), list):
                content = "".join(f"<tool_call>{dump_json(call)}</tool_call>" for call in entry["tool_calls"])
            pairs = [(str(role), content)]
        for role, content in pairs:
            if role.strip().lower() not in _ROLES:
                raise ValueError(f"found a message of {role[:40]!r}; expected one of {', '.join(_ROLES)}")
            messages.append(_read_content(_ROLES[role.strip().lower()], content))
    return messages


def _read_content(role: str, content: Any) -> Message:
    """Return a message whose text has `<image>` where its parts have a picture; `images` are those in the parts."""
    if isinstance(content, str):
        return Message(role, content)
    parts = [content] if isinstance(content, Mapping) else content
    message, texts = Message(role, ""), []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and (part.get("type") in ("image", "image_url") or part.get("image")):
            held = next((v for key in ("image", "image_url", "path", "url", "bytes") if (v := part.get(key))), None)
            message.images.append({"bytes": held} if isinstance(held, bytes) else held)
            texts.append("<image>")
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"found a part {str(part)[:60]!r} of a message; expected text or an image")
    message.text = "".join(texts)
    return message


def _give_images(messages: Sequence[Message], row: Row) -> None:
    """Give each message the pictures that its placeholders stand for, in their order.

    Raises:
        ValueError: there are not as many pictures as placeholders.
    """
    held = as_value(row.get("images") or row.get("image") or [])
    listed = list(held) if isinstance(held, (list, tuple)) else [held]
    shown = [m for m in messages if m.role == "user"]
    n_open = 0
    for message in messages:
        own = iter(message.images)
        spread = [next(own, None) for _ in _PLACEHOLDER.findall(message.text)] if message.role == "user" else []
        message.images = spread
        n_open += sum(image is None for image in spread)
    if n_open == 0 and len(listed) == 1 and not any(m.images for m in shown) and shown:
        shown[0].images = listed  # as TRL and ms-swift do it: before the first user's turn
        return
    if n_open != len(listed):
        raise ValueError(
            f"found {len(listed)} pictures in images and {n_open} placeholders (<image>); expected one for each"
        )
    rest = iter(listed)
    for message in shown:
        message.images = [next(rest) if image is None else image for image in message.images]


def _write_objects(messages: Sequence[Message], objects: Mapping[str, Any]) -> None:
    """Write ms-swift's `objects` in the places of `<bbox>` and `<ref-object>`, which count through the conversation.

    Raises:
        ValueError: there are more places than objects, or `objects` holds no lists.
    """
    lists = {mark: objects.get(name) or [] for mark, name in (("<bbox>", "bbox"), ("<ref-object>", "ref"))}
    if not all(isinstance(values, (list, tuple)) for values in lists.values()):
        raise ValueError(f"found the objects {str(dict(objects))[:60]}; expected lists in bbox and ref")
    waiting = {mark: iter(values) for mark, values in lists.items()}

    def write(match: re.Match[str]) -> str:
        value = next(waiting[match[0]], None)
        if value is None:
            raise ValueError(f"found more {match[0]} than objects has; expected one for each")
        return str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)

    for message in messages:
        message.text = _OBJECT.sub(write, message.text)


def _find_units(objects: Mapping[str, Any], coordinates: Coordinates | None) -> Coordinates:
    """Return the units of ms-swift's boxes, which its `bbox_type` says: pixels, or parts of the screen."""
    return coordinates or ("fraction" if objects.get("bbox_type") == "norm1" else "pixels")
