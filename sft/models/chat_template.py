"""The chat template of a model folder: where it is found, and that it writes all of a prompt and opens no thought."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sft.agent import AgentConfig
from sft.errors import UserError
from sft.file_kinds import LFS_WAY_OUT, is_lfs_pointer
from sft.json_text import find_open_thought
from sft.memory import EMPTY_MEMORY
from sft.models.limits import TooMuchWorkError, limit_work
from sft.models.model_folder import read_json
from sft.prompts import build_prompt

_WAY_OUT = "copy chat_template.json or chat_template.jinja of the published vision model into the folder"
_GOAL = 'Find the study of O\'Neil & "Sons" <MRN 204>'  # what a template that changes text would change
# What a template may do wrong with messages it was not made for, beside refusing them: it is a program of its own.
_MISTAKES = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(TooMuchWorkError, MemoryError),
)


def read_chat_template(folder: Path) -> str:
    """Return the template that transformers' processor of this folder would use.

    In its order: `processor_config.json`, `chat_template.json`, `chat_template.jinja`, and last the tokenizer's own in
    `tokenizer_config.json`. Qwen2.5-VL as published has two: the vision model's in the second place, and a text
    model's in the last. Of several templates with names it is the one called "default".

    Raises:
        UserError: there is none, or none that is the default.
    """
    named = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    candidates: list[tuple[Path, Any]] = [
        (path, read_json(path).get("chat_template"))
        for path in (folder / "processor_config.json", folder / "chat_template.json")
    ]
    file = folder / "chat_template.jinja"
    candidates += [(path, _read_text(path)) for path in (file, named.get("default", file)) if path.is_file()]
    tokenizer = folder / "tokenizer_config.json"
    candidates.append((tokenizer, read_json(tokenizer).get("chat_template")))
    for path, found in candidates:
        if found:
            return _choose(path, found)
    if named:
        raise UserError(
            f"{folder}: found chat templates named {', '.join(named)}; expected one that is the default: {_WAY_OUT}"
        )
    raise UserError(f"{folder}: found no chat template; expected chat_template.jinja: copy it from the base model")


def check_chat_template(folder: str | Path, processor: Any) -> str:
    """Make sure that prompts hold the system text, then the picture, once, then the goal, all as they were given, and
    then begin the answer's turn.

    `processor` has `apply_chat_template`, `tokenizer`, `image_token` and `image_token_id`.

    Returns:
        A prompt as the template writes it.

    Raises:
        UserError: what the template does instead.
    """
    problem: str | None
    system, user = messages = build_prompt(_GOAL, EMPTY_MEMORY, AgentConfig())
    system_text, user_text = system["content"][0]["text"], user["content"][1]["text"]
    try:
        with limit_work():
            text, turns = (
                processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=adds)
                for adds in (True, False)
            )
    except _MISTAKES as error:
        problem = f"cannot write a prompt of this package ({type(error).__name__}: {error})"
    else:
        problem = _find_template_problem(text, system_text, processor.image_token, user_text)
        if problem is None and len(text) <= len(turns):
            problem = "does not begin the answer's turn (add_generation_prompt)"
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if problem is None and ids.count(processor.image_token_id) != 1:
            raise UserError(
                f"{folder}: found a tokenizer that does not know {processor.image_token} as one token; expected the "
                "vision model's own: copy tokenizer.json of the published model into the folder"
            )
    if problem is not None:
        raise UserError(
            f"{folder}: the chat template {problem}; expected the system text, the picture once, the goal, and the "
            f"beginning of an answer, in this order: {_WAY_OUT}"
        )
    return text


def close_thought(template: str, generation_prompt: str) -> str:
    """Return a chat template whose prompts leave no thought open, or the template itself where they do not.

    The templates of thinking variants (Qwen3-VL-Thinking, Qwen3.5) end the prompt with `<think>`: the answer would be
    taught as a thought. The closed one ends it as Qwen writes a turn without thought: `<think>`, an empty line,
    `</think>`, an empty line. It is saved with the processor, so that a server which is given it asks alike.

    `generation_prompt` is a prompt that the template writes, with `add_generation_prompt`.
    """
    opened = find_open_thought(generation_prompt)
    if opened is None:
        return template
    line_end = "" if generation_prompt.endswith("\n") else "\\n"
    closing = f"{line_end}\\n{_name_closing(opened)}\\n\\n"
    # Jinja drops one line break at the end of a template; with more behind it that one would be written
    return template.removesuffix("\n") + "{% if add_generation_prompt %}{{ '" + closing + "' }}{% endif %}"


def _find_template_problem(text: str, system_text: str, picture: str, user_text: str) -> str | None:
    """Return what a rendered prompt has wrong, or None."""
    if re.search(r"""\{\s*['"]type['"]\s*:\s*['"](image|text)""", text):
        return "writes no picture, but a message's parts as Python or JSON spells them"
    n_pictures = text.count(picture)
    if n_pictures == 0:
        return "writes no picture: it is a text model's"
    if n_pictures > 1:
        return f"writes the picture {n_pictures} times"
    for name, part in (("system text", system_text), ("goal", user_text)):
        if text.count(part) > 1:
            return f"writes the {name} {text.count(part)} times"
        if part not in text:
            is_changed = part.split("\n")[0] in text or part.split()[0] in text
            return f"{'changes' if is_changed else 'leaves out'} the {name}"
    if not text.index(system_text) < text.index(picture) < text.index(user_text):
        return "writes the picture in another place"
    return None


def _name_closing(opening: str) -> str:
    """Return the tag that closes what this one opens."""
    tag = re.sub(r"^(<\w+)\s.*>$", r"\1>", opening, flags=re.DOTALL)
    if tag.startswith("<|"):
        return re.sub(r"begin|start", "end", tag, flags=re.IGNORECASE)
    return f"{tag[0]}/{tag[1:]}"


def _choose(path: Path, found: Any) -> str:
    """Return the default of what a file holds: one template, or several by name, as a mapping or a list."""
    if isinstance(found, str):
        return found
    if isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, Mapping) and isinstance(found.get("default"), str):
        return str(found["default"])
    names = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise UserError(
        f"{path}: chat_template: found {names}; expected a template, or several of which one is named default"
    )


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if is_lfs_pointer(data):
        raise UserError(f"{path}: found a Git LFS pointer; {LFS_WAY_OUT}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found bytes that are not UTF-8; restore the file") from error
