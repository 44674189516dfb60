"""Which commands are there, and what does each call itself in its help? The one table of `clinical-gui`."""

import argparse
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PROGRAM = "clinical-gui"


class Verb(NamedTuple):
    """A command: where its `main` is, how it is started without `clinical-gui`, and what it does, in one line."""

    module: str
    form: str
    summary: str
    arguments: tuple[str, ...] = ()  # that the verb stands for


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "convert": Verb("sft.convert.__main__", "python -m sft.convert", "make trajectory data from another format"),
        "elements": Verb("sft.elements.__main__", "python -m sft.elements", "find the texts on screenshots by OCR"),
        "check": Verb("sft.check.__main__", "python -m sft.check", "list problems of data; show what a model sees"),
        "split": Verb("sft.split.__main__", "python -m sft.split", "split data into train, val and test by task"),
        "plan": Verb("sft.run", "python sft/run.py --plan", "estimate a training's steps and memory", ("--plan",)),
        "train": Verb("sft.run", "accelerate launch sft/run.py", "fine-tune a model by a recipe"),
        "rollout": Verb("eval.rollout", "python eval/rollout.py", "evaluate a model on tasks, with its own memory"),
        "live": Verb("eval.live", "python eval/live.py", "let a model operate a running program"),
        "score": Verb("eval.score", "python eval/score.py", "score, compare or merge finished rollouts"),
        "ablate": Verb("eval.ablate", "python eval/ablate.py", "train and score a recipe without one part at a time"),
        "export": Verb("sft.export.__main__", "python -m sft.export", "merge an adapter into its base, or upload it"),
        "compute": Verb("sft.compute.__main__", "python -m sft.compute", "report time, energy and FLOPs of all runs"),
    }
)


def as_started(text: str) -> str:
    """Return a text whose commands are named as the user started this one: as verbs of clinical-gui, or unchanged."""
    if sys.argv[0].startswith(f"{PROGRAM} "):
        for name, verb in VERBS.items():
            text = text.replace(verb.form, f"{PROGRAM} {name}")
        text = text.replace("python sft/run.py", f"{PROGRAM} train")  # of one process
    return text


def build_parser(form: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command's parser; `form` starts it without `clinical-gui`, and the description is shown as it is."""
    return argparse.ArgumentParser(
        prog=as_started(form),
        description=as_started(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
