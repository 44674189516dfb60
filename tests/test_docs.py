"""README and docs/: links lead somewhere, files that are named exist, the README shows a real prompt and answer."""

import json
import re

import pytest
from conftest import ROOT

from sft.check.__main__ import main as check

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "demo/README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _name(page):
    return str(page.relative_to(ROOT))


def _list_anchors(page):
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{_name(page)} links to {link}"
        assert not anchor or anchor in _list_anchors(target), f"{_name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_are_named_exist(page):
    folders = "sft|eval|tests|scripts|benchmarks|docs|recipes|accelerate_configs"
    for path in re.findall(rf"`((?:{folders})/[\w./]+\.\w+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{_name(page)} names {path}"


def test_readme_names_every_page():
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"(docs/{p.name})" not in README] == []


def test_functions_of_the_code_map_are_in_their_files():
    rows = re.findall(r"^\| .+ \| `(\S+\.py)` \| `(\w+)` \|$", (ROOT / "docs/code_map.md").read_text(), re.MULTILINE)
    assert len(rows) >= 20
    lost = [row for row in rows if not re.search(rf"(?:def|class) {row[1]}\b", (ROOT / row[0]).read_text())]
    assert lost == []


def test_tests_that_security_names_exist():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())
    texts = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert named and [test for file, test in named if f"def {test}(" not in texts[file]] == []


def test_readme_is_short_and_no_page_is_wide():
    assert len(README.splitlines()) <= 150
    for page in [page for page in PAGES if page.name != "CONTRIBUTING.md"]:
        lines = FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
        wide = [line for line in lines if len(line) > 130 and not line.lstrip().startswith("|") and line[:4].strip()]
        assert wide == [], _name(page)


def test_readme_shows_a_real_prompt_and_answer(tmp_path):
    """As `sft.check --dump_prompts` writes them, whatever white space the README breaks lines with."""
    dump = tmp_path / "prompts.jsonl"
    test_csv = ROOT / "demo/data/test.csv"
    check([str(test_csv), "--recipe", str(ROOT / "recipes/demo.yaml"), "--dump_prompts", str(dump)])
    lines = map(json.loads, dump.read_text(encoding="utf-8").splitlines())
    step = next(line for line in lines if (line["task_id"], line["step"]) == ("ohif_delete_region_02", 6))
    system, user = (message["content"] for message in step["messages"])
    texts = ["system", system[0]["text"], "user", f"[screenshot {user[0]['image']}]", user[1]["text"]]
    shown = re.search(r"^```\nsystem .*?^```$", README, re.MULTILINE | re.DOTALL)[0].strip("`")
    assert "".join(shown.split()) == "".join("".join([*texts, "answer", step["completion"]]).split())


def test_every_attack_of_the_security_page_is_a_test_that_is_there():
    """A test is named with its file, or as ::NAME behind another of that file."""
    text, file, named = (ROOT / "docs/security.md").read_text(encoding="utf-8"), "", 0
    for path, name in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", text):
        if path or name:
            file, named = path or file, named + 1
            content = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert name and f"def {name}(" in content, f"{file}::{name}"
    assert named > 30
