"""What a user wrote and can fix: one error type, and how a command ends with it, on any terminal."""

import io
import os
import sys
from collections.abc import Callable

from sft.verbs import as_started


class UserError(ValueError):
    """Something wrong in what a user wrote or pointed to; its text says what was found, expected and the way out."""


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main` on the command line's arguments; a `UserError` ends it with exit code 2, no traceback.

    A terminal, pipe or file that lacks a character (LANG=C, PYTHONIOENCODING=latin-1) is given "?" in its place, and
    so is everyone for a character that would steer a terminal: messages name what data and models call themselves.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
    except UserError as problem:
        print("\n".join(map(as_printable, as_started(str(problem)).split("\n"))), file=sys.stderr)
        sys.exit(2)


def as_printable(text: str) -> str:
    """Return a text without what moves a terminal's cursor: it may hold what a page, a server or a model wrote."""
    return "".join(c if c.isprintable() else "?" for c in text)


def print_text(text: str) -> None:
    """Print a command's help; a reader such as `head` may close the pipe early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it exits
