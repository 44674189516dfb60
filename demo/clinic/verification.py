"""Is the goal reached? By states of the program that were read outside the screen; nothing here knows a program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

State = Mapping[str, Any]  # plain data: what one program held and showed at one moment


@dataclass(frozen=True)
class Fact:
    """Something that a goal asks for, in words, and how two states in a row show that it came about.

    For a fact about a moment, `holds` looks at the second state alone.
    """

    words: str
    holds: Callable[[State, State], bool]


@dataclass(frozen=True)
class Check:
    """What makes a goal reached: `way` happened in this order, one state after the other, and `end` is true now.

    How something was found (by a filter, a lookup, a scroll) is free, except where the goal is about just that.
    """

    way: Sequence[Fact]
    end: Sequence[Fact]

    def judge(self, states: Sequence[State]) -> tuple[bool, str]:
        """Return whether the goal is reached after these states, the first being that before any action, and why."""
        position = 0
        for fact in self.way:
            pairs = zip(states[position:], states[position + 1 :])
            found = next((n for n, pair in enumerate(pairs, position) if fact.holds(*pair)), None)
            if found is None:
                return False, f"not yet: {fact.words}"
            position = found + 1
        missing = [fact.words for fact in self.end if len(states) < 2 or not fact.holds(states[-2], states[-1])]
        return not missing, f"not so: {'; '.join(missing)}" if missing else "reached"


def now(words: str, holds: Callable[[State], bool]) -> Fact:
    """Make a fact about one moment."""
    return Fact(words, lambda before, after: holds(after))
