"""`clinical-gui VERB`: every command by one name, quickly, and as it is by its path."""

import contextlib
import resource
import subprocess
import sys

import pytest
from conftest import ROOT

from sft import verbs
from sft.__main__ import main
from sft.verbs import VERBS, as_started

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets"}
HEAVY |= {"numpy", "pydantic", "rich", "yaml", "pandas", "PIL"}


def run(*arguments, **options):
    command = [sys.executable, *options.pop("python", ()), "-m", "sft", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_help_lists_every_verb_with_one_line_and_imports_nothing_heavy():
    done = run("--help", python=("-X", "importtime"), check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "sft" in imported and not imported & HEAVY
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert listed == {name: verb.summary for name, verb in VERBS.items()}
    assert run().stdout == done.stdout


def test_help_takes_less_than_a_third_of_a_second():
    """Of the processor's time, which does not grow with what else the machine does; 0.1 s was measured."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help", check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(times) < 0.3


@pytest.mark.slow
def test_every_verb_calls_itself_by_its_name_and_nothing_by_its_path(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("sft.training.signals.watch_for_preemption", lambda: None)  # of this process
    for name, verb in VERBS.items():
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert f"clinical-gui {name}" in shown
        assert not [other.form for other in VERBS.values() if other.form in shown], verb.module
        assert "python sft/run.py" not in shown, verb.module


def test_form_without_the_verb_is_a_command_that_exists():
    for name, verb in VERBS.items():
        path = ROOT / f"{verb.module.replace('.', '/')}.py"
        assert verb.form in path.read_text(encoding="utf-8"), name


def test_verb_that_does_not_exist_is_refused_with_the_nearest():
    done = run("trian", "recipe.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "clinical-gui: found trian; expected train (clinical-gui --help lists every verb)\n"
    assert "found xyz; expected one of convert, elements" in run("xyz").stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["check", "nowhere.csv"], 2, "clinical-gui check: error: nowhere.csv: found no such file"),
        (["train", "nowhere.yaml"], 2, "nowhere.yaml: found no such file; expected a recipe"),
        (["plan", "recipes/demo.yaml", "--card_gb", "x"], 2, "--card_gb: expected the card's memory in GB"),
        (["compute", "docs"], 2, "found no compute_ledger.jsonl below"),
        (["check", "demo/data/test.csv"], 0, ""),
        (["rollout", "--policy", "replay"], 2, "clinical-gui rollout: error: the following arguments are required"),
    ],
)
def test_exit_codes_and_messages_are_those_of_the_command(arguments, code, told):
    done = run(*arguments)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_messages_name_commands_as_the_user_started_them(monkeypatch):
    text = "give it alone: python eval/score.py RUN"
    assert as_started(text) == text
    monkeypatch.setattr(sys, "argv", [f"{verbs.PROGRAM} score", "merge"])
    assert as_started(text) == "give it alone: clinical-gui score RUN"


def test_completion_that_the_docs_offer_knows_every_verb():
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    words = next(line for line in page.splitlines() if "complete -o default -W" in line).split('"')[1]
    assert words.split() == list(VERBS)
