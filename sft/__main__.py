"""Run a command of this package by its verb.

clinical-gui VERB [arguments]        # where the package is installed
python -m sft VERB [arguments]       # in a checkout
"""

import difflib
import importlib
import sys

from sft.errors import UserError, print_text, run_command
from sft.verbs import PROGRAM, VERBS


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print_text(format_help())
        return
    name, *rest = argv
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1) or [f"one of {', '.join(VERBS)}"]
        raise UserError(f"{PROGRAM}: found {name}; expected {near[0]} ({PROGRAM} --help lists every verb)")
    verb = VERBS[name]
    sys.argv = [f"{PROGRAM} {name}", *rest]  # what help and messages call the command
    if name == "train":
        from sft.training.signals import watch_for_preemption

        watch_for_preemption()
    importlib.import_module(verb.module).main([*verb.arguments, *rest])


def format_help() -> str:
    """Return what the verbs do, one line each."""
    lines = [f"  {name:<10}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} VERB [arguments]",
            "",
            *lines,
            "",
            f"`{PROGRAM} VERB --help` explains one of them. `train` trains in one process; for several, see",
            "docs/cluster.md: accelerate launch sft/run.py RECIPE.yaml",
        ]
    )


def start() -> None:
    """Run as `clinical-gui`; a program that an installer writes calls this."""
    run_command(main)


if __name__ == "__main__":
    start()
