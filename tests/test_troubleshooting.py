"""docs/troubleshooting.md: every message it explains is one that the code writes."""

import ast
import re

import pytest
from conftest import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
MESSAGES = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
GAP = "…"  # on the page, what differs from case to case; below, what the code puts in


def _read_texts():
    """Return the texts that stand in the code of both packages, what an f-string puts in as a gap."""
    trees = [ast.parse(p.read_text(encoding="utf-8")) for name in ("sft", "eval") for p in (ROOT / name).rglob("*.py")]
    return {text for tree in trees for node in ast.walk(tree) if (text := _read_text(node))}


def _read_text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%\d*[sd]|%\.\d+f", GAP, node.value)  # a logger puts these in
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_read_text(node.left) or GAP) + (_read_text(node.right) or GAP)
    return ""


TEXTS = _read_texts()


def test_page_explains_twenty_messages_or_more():
    assert len(MESSAGES) == len(set(MESSAGES)) >= 20


@pytest.mark.parametrize("message", MESSAGES)
def test_message_of_the_page_is_written_by_the_code(message):
    """Its words stand in one text of the code, in their order, with gaps only where the code puts something in."""
    pattern = re.compile(".*?".join(re.escape(words.strip()) for words in message.split(GAP)), re.DOTALL)
    assert any(pattern.search(text) for text in TEXTS)


def test_message_that_no_code_writes_would_be_noticed():
    pattern = re.compile(re.escape("found no model in the drawer"))
    assert not any(pattern.search(text) for text in TEXTS)
