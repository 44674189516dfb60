"""Which messages has a row of chat data, and which pictures belong to each?

The forms are those that the tools document: role/content messages with `images` (TRL, "Dataset formats", and ms-swift,
"Custom dataset"), ShareGPT's from/value `conversations` and Alpaca's `instruction` and `output` (LLaMA-Factory,
`data/README.md`), ms-swift's human/assistant pairs, `query` and `response`, and `objects`, and TRL's `prompt` and
`completion`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.convert.converted import Coordinates
from sft.convert.foreign_actions import MAX_ANSWER_CHARS, WORDS
from sft.convert.source_rows import Row, as_value
from sft.json_text import dump_json

_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "tool", "observation", "tool_response"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_PLACEHOLDER = re.compile(r"<image>")
_OBJECT = re.compile(r"<bbox>|<ref-object>")
_TOOL_CALL = re.compile(r"<tool_call>.*?</tool_call>", re.S)
_WRITTEN = re.compile(r"[{}\[\]`]|<\w|\w\s*\(|\b(?:Action|Code)s?\s*:", re.I)
_UNITS: Mapping[Any, Coordinates] = {"real": "pixels", "norm1": "fraction"}
# Keys by which a turn says that it is context, and is not learned: ms-swift's, Axolotl's, OpenAI's
_LEARNED = ("loss", "train", "weight")
# A question and its answer in columns of their own, with earlier pairs in `history`: Alpaca's form, and ms-swift's
_PAIRS = (("instruction", "output"), ("query", "response"))


@dataclass
class Message:
    """One turn: its role (system, user or assistant), and the pictures that a user's turn shows.

    `coordinates` are the units of the places in it, None where nobody said them; `is_learned` is false where the
    source has an answer for context alone.
    """

    role: str
    text: str
    images: list[Any] = field(default_factory=list)
    coordinates: Coordinates | None = None
    is_learned: bool = True


def read_conversation(row: Row, coordinates: Coordinates | None) -> list[Message]:
    """Return a row's messages; their places are in the given units, those of a turn with boxes in what the row says.

    Raises:
        ValueError: the row has no messages, or not as many pictures or objects as its texts have places for them.
    """
    messages = _find_messages(row)
    for message in messages:
        message.coordinates = coordinates
    if isinstance(objects := as_value(row.get("objects")), Mapping):
        _write_objects(messages, objects)
    _give_images(messages, row)
    return messages


def strip_placeholders(text: str) -> str:
    """Return a text without its marks for pictures."""
    return _PLACEHOLDER.sub("", text).strip()


def has_words_alone(text: str) -> bool:
    """Say whether a turn is plain words: no call, object, code, heading of an action or word that is one."""
    return text.strip() not in ("", *WORDS) and _WRITTEN.search(text) is None


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
    for asked, said in _PAIRS:
        if isinstance(row.get(asked), str) and isinstance(row.get(said), str):
            history = as_value(row.get("history")) or []
            if not isinstance(history, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in history):
                raise ValueError("found no list of pairs in history; expected [[question, answer], ...]")
            question = "\n".join(text for text in (row[asked], row.get("input")) if isinstance(text, str) and text)
            pairs = [*history, (question, row[said])]
            return [Message(role, str(text)) for pair in pairs for role, text in zip(("user", "assistant"), pair)]
    if empty := next((name for name in ("messages", "conversations", "conversation") if row.get(name) == []), None):
        raise ValueError(f"found no turn in {empty}; expected at least a question with a picture, and its answer")
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
            pairs = [(str(role), content)]
        for role, content in pairs:
            if role.strip().lower() not in _ROLES:
                raise ValueError(f"found a message of {role[:40]!r}; expected one of {', '.join(_ROLES)}")
            message = _read_content(_ROLES[role.strip().lower()], content)
            message.is_learned = not any(entry.get(key) in (False, 0) for key in _LEARNED)
            calls = as_value(entry.get("tool_calls"))
            if isinstance(calls, list) and calls:  # they are what is done, whatever is said beside them
                written = (dump_json(call).replace("</", "<\\/") for call in calls)
                is_short = len(message.text) <= MAX_ANSWER_CHARS  # a longer one is refused later
                said = _TOOL_CALL.sub("", message.text).strip() if is_short else message.text
                message.text = "\n".join(
                    [*([said] if said else []), *(f"<tool_call>{c}</tool_call>" for c in written)]
                )
            messages.append(message)
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
    if n_open == 0 and listed and shown and not any(m.images for m in shown):
        n_answers = sum(m.role == "assistant" for m in messages)
        if len(listed) > 1 and n_answers > 1:
            raise ValueError(
                f"found {len(listed)} pictures without placeholders (<image>) and {n_answers} answers; expected "
                "<image> in each turn that shows one: trainers put all of them before the first turn, where every "
                "answer sees the last"
            )
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
    said = objects.get("bbox_type")
    if said is not None and (not isinstance(said, str) or said not in _UNITS):
        raise ValueError(f"found the bbox_type {str(said)[:40]!r} in objects; expected {' or '.join(_UNITS)}")

    def write(match: re.Match[str]) -> str:
        value = next(waiting[match[0]], None)
        if value is None:
            raise ValueError(f"found more {match[0]} than objects has; expected one for each")
        return str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)

    for message in messages:
        if "<bbox>" in message.text:  # without a bbox_type, ms-swift's boxes are pixels
            message.coordinates = _UNITS.get(said) or message.coordinates or "pixels"
        message.text = _OBJECT.sub(write, message.text)
