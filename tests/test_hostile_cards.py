"""Attacks on the model card and the compute report: what names, recipes and a folder's files try to be in Markdown."""

import ast
import json
import re

import pytest
import yaml
from markdown_it import MarkdownIt
from rollout_samples import RUN_INFO, judge, make_task

from eval.scoring.metrics import compute_metrics
from sft.compute.__main__ import format_markdown
from sft.compute.fields import SECTIONS, Field
from sft.evaluations import add_evaluation
from sft.markdown import as_code_block, as_markdown_text
from sft.training.card import BEGIN, END, write_card

INFO = {**RUN_INFO, "engine": "hf", "decoding": "free", "test_csv_sha256": "c" * 64, "shard": None, "data": {}}
PAYLOADS = {
    "script": "<script>document.title='pwned'</script>",
    "image": "<img src=http://127.0.0.1:9/x onerror=\"document.title='pwned'\">",
    "style": "<style>@import 'http://127.0.0.1:9/x';</style><p style=\"background:url(http://127.0.0.1:9/x)\">",
    "frame": '<iframe srcdoc="<script>top.document.title=1</script>"></iframe><svg onload=alert(1)>',
    "remote picture": "![x](http://127.0.0.1:9/x.png)",
    "picture by reference": "![x][y]\n\n[y]: http://127.0.0.1:9/x.png",
    "link": "[click](javascript:alert(1)) [here](http://127.0.0.1:9)",
    "address": "<http://127.0.0.1:9/x> https://127.0.0.1:9 www.evil.example",
    "fence": "x\n```\n# Evil\n<b>bold</b>\n~~~\n````\n",
    "cells": "a | b | c\n| --- | --- |\n| d | e |",
    "carriage returns": "a\r\r# Evil\r| x |\r```\r",
    "lines of Unicode": "a\u2028# Evil\u2029\x0b# Evil\x0c# Evil\x85# Evil",
    "code spans": "`` ` `x` <b>",
    "backslashes": "\\\\[x](http://127.0.0.1:9/x)\\|\\<b>\\`",
    "entities": "&lt;script&gt;&#60;img src=x&#62;&#x3c;b&#x3e;",
    "comment": f"<!-- {END} {BEGIN} -->",
    "mark": END,
    "maths": "$$\\href{javascript:alert(1)}{x}$$ $`x`$",
    "emphasis": "**x** ~~y~~ *z*",
    "order": "\u202eevil\u202c\u200b\x1b[2J",
    "half a character": "\ud83d",
    "Python": '"); import os; os.system("x',
}
EVERY = {"all at once": " ".join(PAYLOADS.values())}


def build_folder(folder, payload):
    """Build a model folder whose every text is the payload."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text("{}")
    parts = {
        "csv": payload,
        "sha256": payload,
        "n_tasks": payload,
        "n_steps": [payload],
        "n_screenshots": {"a": payload},
    }
    recipe = {"model_name_or_path": payload, "warm": payload, "optim_args": [payload], payload: {payload: payload}}
    agent = {"prompt_version": payload, "actions": [{"name": payload}]}
    hardware = {"gpus": [{"name": payload}], "cpu_model": payload, "cpu_cores": payload, "ram_gb": payload}
    start = {"event": "start", "run": "a", "time": "2026-01-01T00:00:00+00:00", "kind": "training"}
    end = {"event": "end", "run": "a", "time": start["time"], "outcome": payload, "wall_s": 1, "error": payload}
    files = {
        "training_data.json": {"train": parts, payload: parts},
        "agent_config.json": agent,
        "versions.json": {payload: payload},
        "export_report.json": {
            "dtype": payload,
            "logits": [{"form": payload, "max_gap": 1, "mean_gap": 1, "same_choice": 1}],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), errors="replace")
    lines = [{**start, "hardware": hardware}, end]
    (folder / "compute_ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [step for i in range(3) for step in make_task(f"t{i}", [("CLICK", "CLICK"), ("CLICK", "TEXT")])]
    metrics = compute_metrics(judge(steps), mode="own", n_resamples=20)
    info = {**INFO, "test_csv": payload.replace("/", "\\"), "data": {"unseen_applications": [payload]}}
    add_evaluation(folder, info, metrics)
    add_evaluation(folder, {**info, "engine": payload, "decoding": payload}, metrics)


def outline(text):
    """Return what a Markdown reader makes of a text: its marks, without what stands in them."""
    tokens = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"]).parse(text)
    flat = [token for outer in tokens for token in (outer, *(outer.children or ()))]
    return [(token.type, token.tag) for token in flat if token.type not in ("text", "text_special", "softbreak")]


def read_body(folder):
    return write_card(folder).read_text(encoding="utf-8").split("---\n", 2)[2]


@pytest.mark.parametrize("payload", (PAYLOADS | EVERY).values(), ids=PAYLOADS | EVERY)
def test_text_of_others_is_text_in_the_model_card(payload, tmp_path):
    """The card has the same headings, tables and blocks whatever the names are, and none of what they try to be."""
    build_folder(tmp_path / "model", payload)
    build_folder(tmp_path / "plain", "plain")
    found, plain = outline(read_body(tmp_path / "model")), outline(read_body(tmp_path / "plain"))
    assert not {kind for kind, _ in found} & {"html_block", "html_inline", "image", "link_open", "s_open"} - {
        "html_block"
    }
    assert [kind for kind, _ in found].count("html_block") == 2  # our own marks
    assert found == plain
    first = write_card(tmp_path / "model").read_text(encoding="utf-8")
    assert write_card(tmp_path / "model").read_text(encoding="utf-8") == first  # renewed, not grown
    metadata = yaml.safe_load(first.split("---\n", 2)[1])
    assert set(metadata) <= {
        *("base_model", "base_model_relation", "library_name", "pipeline_tag", "tags", "model_name", "model-index")
    }


@pytest.mark.parametrize("name", ['x"); import os; os.system("y', "a'b", "a\\", "研究", "\u202ex", "😀"])
def test_code_of_the_model_card_is_code_whatever_the_folder_is_called(name, tmp_path):
    build_folder(tmp_path / name, "org/base")
    (code,) = re.findall(r"```python\n(.*?)\n```", read_body(tmp_path / name), re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert len(calls) == 2 and code.isascii() | (code.replace("\n", "").isprintable())
    assert name in [ast.literal_eval(keyword.value) for keyword in calls[0].keywords + calls[1].keywords]


@pytest.mark.parametrize("payload", (PAYLOADS | EVERY).values(), ids=PAYLOADS | EVERY)
def test_text_of_others_is_text_in_the_compute_report(payload):
    def write(text):
        return format_markdown([Field(section, text, text, "measured") for section in SECTIONS], [])

    assert outline(write(payload)) == outline(write("plain"))


def test_ordinary_names_stay_readable(tmp_path):
    assert as_markdown_text("outputs/qwen3_vl-8b (v2), R: 3.5 %") == "outputs/qwen3_vl-8b (v2), R: 3.5 %"
    build_folder(tmp_path / "model", "plain")
    (tmp_path / "model/versions.json").write_text('{"python": "3.11.7", "torch": "2.13.0+cpu"}')
    assert "Versions: python 3.11.7, torch 2.13.0+cpu." in read_body(tmp_path / "model")
    assert as_code_block("yaml", "a: ```\n") == "````yaml\na: ```\n````"


@pytest.mark.slow
def test_model_card_runs_no_script_and_asks_for_nothing_in_a_real_browser(browser, tmp_path):
    """Rendered with HTML let through, as no reader of cards would, so that only the card itself holds it back."""
    build_folder(tmp_path / "model", EVERY["all at once"])
    render = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
    (tmp_path / "card.html").write_text(f"<meta charset=utf-8>{render(read_body(tmp_path / 'model'))}")
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    page.goto((tmp_path / "card.html").as_uri())
    assert page.title() == "" and asked == [(tmp_path / "card.html").as_uri()]
    assert page.locator("script, img, iframe, svg, style, a, b").count() == 0
    assert "<script>document.title='pwned'</script>" in page.locator("body").inner_text()
    page.close()
