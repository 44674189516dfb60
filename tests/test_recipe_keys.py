"""One list of keys gives --help, docs/recipe.md and the schema for editors; all three are what the code says."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_config import MINIMAL, RECIPES

from sft.recipe.key_reference import GENERATED, build_schema, format_help, format_tables
from sft.recipe.recipe import RecipeError, load_yaml, parse_recipe
from sft.recipe.settings import OWN_KEYS
from sft.recipe.training_keys import MOST_USED, REFUSED_KEYS, TRAINING_KEYS

SCHEMA = ROOT / "recipes/recipe.schema.json"
TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None), "integer": int}


def is_valid(value, schema, root):
    """Whether a value keeps to a schema, as far as JSON Schema is used here."""
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = schema.get("type")
    checks = [
        kind is None or (is_number if kind in ("number", "integer") else isinstance(value, TYPES[kind])),
        kind != "integer" or isinstance(value, int),
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(is_valid(value, part, root) for part in schema["anyOf"]),
        not is_number or schema.get("minimum", value) <= value <= schema.get("maximum", value),
        not is_number or value > schema.get("exclusiveMinimum", value - 1),
        not is_number or value < schema.get("exclusiveMaximum", value + 1),
        not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None,
    ]
    if isinstance(value, list):
        checks += [is_valid(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks.append(set(schema.get("required", [])) <= set(value))
        checks += [is_valid(name, schema.get("propertyNames", {}), root) for name in value]
        checks += [is_valid(value[name], known[name], root) for name in value if name in known]
        checks += [
            others is not False and (others is True or is_valid(value[n], others, root))
            for n in value
            if n not in known
        ]
    return all(checks)


def test_page_and_schema_are_those_of_the_code():
    """Else run: python -m sft.recipe"""
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert page.partition(GENERATED)[2].strip() == format_tables().strip()
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == build_schema()


def test_every_key_has_a_row_on_the_page_with_one_sentence():
    text = format_tables()
    for key in (*OWN_KEYS.values(), *TRAINING_KEYS.values()):
        assert f"\n| `{key.name}` | " in text
        assert key.help.endswith(".") and "\n" not in key.help
    assert all(f"\n| `{name}` | " in text for name in REFUSED_KEYS)
    assert set(MOST_USED.split()) <= set(TRAINING_KEYS)


def test_help_names_every_key_within_100_columns():
    text = format_help()
    assert max(map(len, text.splitlines())) <= 100
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in (*OWN_KEYS, *MOST_USED.split()))
    assert all(re.search(rf"\b{name}\b", text) for name in (*TRAINING_KEYS, *REFUSED_KEYS))
    assert (
        "(int, at least 1 and at most 8192; default 16)" in " ".join(text.split())
        and "{action: 4.0, memory: 0.5}" in text
    )


def test_help_can_be_asked_for_behind_a_recipe_and_cut_short():
    command = f"{sys.executable} sft/run.py recipes/demo.yaml --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "Fine-tune a vision-language model on recorded trajectories.\n"
    assert done.stderr == ""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_keeps_to_the_schema_that_it_names(path):
    schema = build_schema()
    named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert (path.parent / named[1]).resolve() == SCHEMA
    assert is_valid(load_yaml(path), schema, schema)
    resolved = load_yaml(path) | json.loads(json.dumps(parse_recipe([str(path)]).training))
    assert is_valid(resolved, schema, schema)


@pytest.mark.parametrize(
    ("line", "is_legal"),
    [
        ("loss_weights: {action: 4.0, memory: 0.5}", True),
        ("loss_weights: {action: -1}", False),
        ("loss_weights: {actions: 1}", False),
        ("lora_parts: [language, merger]", True),
        ("lora_parts: [head]", False),
        ("lora_r: 0", False),
        ("lora_r: 2.7", False),
        ("lora_r: null", False),
        ("lora_dropout: 1", False),
        ("task_start: -3", True),
        ("task_end: null", True),
        ("max_steps: -1", True),
        ("max_steps: -5", False),
        ("max_steps: 20", True),
        ("eval_strategy: no", True),
        ("eval_strategy: daily", False),
        ("learning_rate: 0.1", True),
        ("learning_rate: -0.1", False),
        ("neftune_noise_alpha: -1", False),
        ("output_dir: ''", False),
        ("log_level: foo", False),
        ("report_to: [tensorboard]", True),
        ("lora_rank: 8", False),
        ("max_length: null", True),
        ("max_length: 1024", False),
        ("torch_compile: false", True),
        ("actions: [{name: BACK, description: go back, takes_target: false}]", True),
        ("actions: [{name: BACK, description: go back, target: false}]", False),
    ],
)
def test_schema_and_loader_agree(tmp_path, line, is_legal):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{MINIMAL}{line}\n")
    schema = build_schema()
    assert is_valid(load_yaml(path), schema, schema) is is_legal
    if is_legal:
        parse_recipe([str(path)])
    else:
        with pytest.raises(RecipeError):
            parse_recipe([str(path)])
