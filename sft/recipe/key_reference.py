"""What a person or an editor reads about the keys: --help, the tables of docs/recipe.md, and the JSON schema."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from pydantic import TypeAdapter

from sft.actions import ActionType
from sft.recipe.settings import OWN_KEYS, SECTIONS, Key, describe_type, find_default, list_keys
from sft.recipe.training_keys import ACTING_KEYS, FIXED_KEYS, MOST_USED, REFUSED_KEYS, TRAINING_KEYS
from sft.recipe.unknown_keys import SPELLINGS

GENERATED = "<!-- `python -m sft.recipe` writes the rest of this page from texts in sft/recipe/ and sft/agent.py. -->"
_TITLES = {
    "data": "Data",
    "model": "Model and LoRA",
    "agent": "Prompts and answers",
    "batch": "Batches",
    "validation": "Validation rollout",
    "compute": "Compute ledger",
    "resume": "Resuming",
}
_WIDTH, _INDENT = 100, 28  # columns of --help, and where its sentences begin


def format_help() -> str:
    """Return the keys by section for a terminal of 100 columns; imports no torch."""
    lines = [
        _wrap("A key is set in the recipe (lora_r: 32) or on the command line (--lora_r 32), which wins."),
    ]
    for name, settings in SECTIONS.items():
        lines += ["", _TITLES[name].upper(), *map(_format_help_entry, list_keys(settings).values())]
    lines += [
        "",
        "KEYS OF TRL'S SFTConfig",
        _wrap("Every key of TRL's that takes effect here can be set. Those used most:", 2),
        *(_format_help_entry(TRAINING_KEYS[name]) for name in MOST_USED.split()),
        _wrap(f"Also accepted: {', '.join(sorted(set(TRAINING_KEYS) - set(MOST_USED.split())))}.", 2),
        _wrap(f"Refused, with what to do instead: {', '.join(sorted(REFUSED_KEYS))}.", 2),
        "",
        _wrap("Every key with its values, and what other tools call it: docs/recipe.md"),
    ]
    return "\n".join(lines)


def _format_help_entry(key: Key) -> str:
    default = "needed" if key.default is MISSING else f"default {_format_default(key)}"
    text = _wrap(f"{key.help} ({_describe_values(key)}; {default})", _INDENT)
    name = f"  {key.name}"
    return name + text[len(name) :] if len(name) < _INDENT - 1 else f"{name}\n{text}"


def _wrap(text: str, indent: int = 0) -> str:
    blank = " " * indent
    return textwrap.fill(
        text, _WIDTH, initial_indent=blank, subsequent_indent=blank, break_long_words=False, break_on_hyphens=False
    )


def format_tables() -> str:
    """Return the part of docs/recipe.md below `GENERATED`: every key, those refused, and other tools' names."""
    lines = ["## Keys of this package", ""]
    for name, settings in SECTIONS.items():
        intro = (settings.__doc__ or "").splitlines()[0]
        lines += [f"### {_TITLES[name]}", "", intro, "", *_format_table(list_keys(settings)), ""]
    lines += [
        "## Keys of TRL's `SFTConfig`",
        "",
        "These set the training itself and go to TRL under the same names, with TRL's defaults.",
        "",
    ]
    for title, keys in ACTING_KEYS.items():
        lines += [f"### {title.capitalize()}", "", *_format_table({key.name: key for key in keys}), ""]
    lines += [
        "## Keys of `SFTConfig` that are refused",
        "",
        "They would have no effect here, or undo what this package guarantees. A value that asks for what is",
        "done in any case is accepted.",
        "",
        "| key | why, and what to do instead |",
        "| --- | --- |",
        *(f"| `{name}` | {_escape(REFUSED_KEYS[name])} |" for name in sorted(REFUSED_KEYS)),
        "",
        "## Names from other tools",
        "",
        "Such a key is refused with the name to use here.",
        "",
        "| elsewhere | here | |",
        "| --- | --- | --- |",
        *(
            f"| `{'`, `'.join(names.split())}` | {f'`{ours}`' if ours else ''} | {_escape(sentence)} |"
            for ours, names, sentence in SPELLINGS
        ),
    ]
    return "\n".join(lines) + "\n"


def _format_table(keys: Mapping[str, Key]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in keys.values():
        default = "needed" if key.default is MISSING else f"`{_format_default(key)}`"
        yield f"| `{key.name}` | {_escape(_describe_values(key))} | {default} | {_escape(key.help)} |"


def _describe_values(key: Key) -> str:
    bounds, unit = key.describe_bounds(), f"in {key.unit}" if key.unit else ""
    says_all = key.among or key.is_share
    return ", ".join(filter(None, ("" if says_all else describe_type(key.type), bounds, unit)))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _format_default(key: Key) -> str:
    """Return a default as YAML on one line."""
    if key.type == tuple[ActionType, ...]:
        return ", ".join(action.name for action in key.default)
    if key.default == "" or isinstance(key.default, float):
        return repr(key.default)
    if isinstance(key.default, tuple):
        return f"[{', '.join(key.default)}]"
    return key.default if isinstance(key.default, str) else json.dumps(key.default)


def build_schema() -> dict[str, Any]:
    """Return what a recipe may hold as a JSON schema (draft 2020-12) for editors; imports TRL for its defaults."""
    from trl import SFTConfig

    usual = {f.name: find_default(f) for f in dataclasses.fields(SFTConfig)} | dict(FIXED_KEYS)
    definitions: dict[str, Any] = {}
    properties = {key.name: _build_property(key, definitions) for key in (*OWN_KEYS.values(), *TRAINING_KEYS.values())}
    properties |= {
        name: {"description": f"Refused: {REFUSED_KEYS[name]}.", "const": usual[name], "deprecated": True}
        for name in sorted(REFUSED_KEYS)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of sft/run.py",
        "description": "Written by `python -m sft.recipe`. Values that do not go together are found by sft/run.py.",
        "type": "object",
        "required": [key.name for key in OWN_KEYS.values() if key.default is MISSING],
        "additionalProperties": False,
        "properties": properties,
        "$defs": definitions,
    }


def _build_property(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    values = TypeAdapter(key.type).json_schema()
    definitions |= values.pop("$defs", {})
    numbers = {"minimum": key.least, "exclusiveMinimum": key.above, "maximum": key.most}
    if key.is_share:
        numbers = {"minimum": 0, "exclusiveMaximum": 1}
    bounds: dict[str, Any] = {name: bound for name, bound in numbers.items() if bound is not None}
    if key.is_filled:
        bounds["pattern"] = r"\S"
    if key.among:
        bounds["enum"] = list(key.among)
    if key.otherwise:
        bounds = {"anyOf": [bounds, {"const": key.default}]}
    if "additionalProperties" in values and isinstance(values["additionalProperties"], dict):
        values["additionalProperties"] |= bounds
        bounds = {}
    default = {}
    if key.default is not MISSING:
        default["default"] = TypeAdapter(key.type).dump_python(key.default, mode="json")
    unit = f" In {key.unit}." if key.unit else ""
    return {"description": key.help + unit, **values, **bounds, **default}
