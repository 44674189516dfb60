"""Whether memory that a data file brings along is older than the step it stands at. Knows nothing of prompts.

Published memory columns often hold what the step's own action did ("Expected action: SEGMENT"). A column is *lagged*
where its cells tell of the step before, *same-row* where they tell of their own step, *mixed* where they do both, and
*unproven* where too few cells tell anything. What a cell tells is read off three ways: a hint that names an action,
the fields `last_action` and `last_target`, and a target that no earlier step had and the goal does not name.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sft.actions import Action

MEMORY_COLUMNS = ("Short_Term_Memory", "Long_term_Memory")
Verdict = Literal["lagged", "same-row", "mixed", "unproven", "empty"]

_HINT = re.compile(
    r"(?:expected action|should use|used ground truth|ground truth action)\W{1,4}([A-Za-z]{3,20})", re.I
)
_PROVEN_SHARE = 0.9  # of the cells that are not empty and could tell
_MIN_TARGET_CHARS = 4  # a shorter target ("OK") stands in many a text by chance
_MAX_EVIDENCE = 5


@dataclass(frozen=True)
class MemoryCell:
    """One memory text, the step it stands at (`action`) and the steps before it, oldest first."""

    row: int
    text: str
    action: Action
    earlier: tuple[Action, ...]
    goal: str


@dataclass(frozen=True)
class Evidence:
    """What one cell tells: of its own step or of the step before, and how that was seen."""

    row: int
    tells: Literal["own step", "step before"]
    reason: str


@dataclass(frozen=True)
class MemoryAudit:
    """What was found in one column. `n_silent` cells tell nothing; cells that fit both steps are `n_either`."""

    column: str
    verdict: Verdict
    n_cells: int
    n_own: int
    n_before: int
    n_either: int
    n_silent: int
    evidence: tuple[Evidence, ...]


def audit_memory(column: str, cells: Sequence[MemoryCell], reads_targets: bool = True) -> MemoryAudit:
    """Judge one column of a whole file; an empty cell (also `{}`) tells nothing and is not counted.

    Without `reads_targets` a target alone is no sign: memory that describes the screen may rightly name what is next.
    """
    told = [
        (cell, _read_cell(cell, reads_targets)) for cell in cells if cell.text.strip() not in ("", "{}", "[]", "null")
    ]
    count = Counter("silent" if e is None else e.tells if isinstance(e, Evidence) else e for _, e in told)
    n_own, n_before, n_either = count["own step"], count["step before"], count["either"]
    found = [e for _, e in told if isinstance(e, Evidence)]
    own = [e for e in found if e.tells == "own step"]
    before = [e for e in found if e.tells == "step before"]
    verdict: Verdict
    if not told:
        verdict = "empty"
    elif n_own and n_before:
        verdict = "mixed"
    elif n_own:
        verdict = "same-row"
    elif n_before and n_before + n_either >= _PROVEN_SHARE * len(told):
        verdict = "lagged"
    else:
        verdict = "unproven"
    return MemoryAudit(
        column=column,
        verdict=verdict,
        n_cells=len(told),
        n_own=n_own,
        n_before=n_before,
        n_either=n_either,
        n_silent=count["silent"],
        evidence=(*own[:_MAX_EVIDENCE], *before[: 2 if own else _MAX_EVIDENCE]),
    )


def _read_cell(cell: MemoryCell, reads_targets: bool) -> Evidence | Literal["either"] | None:
    """Return what a cell tells; a sign of its own step outweighs every other."""
    signs = list(_find_signs(cell, reads_targets))
    own = next((s for s in signs if isinstance(s, Evidence) and s.tells == "own step"), None)
    return own or next((s for s in signs if isinstance(s, Evidence)), None) or next(iter(signs), None)


def _find_signs(cell: MemoryCell, reads_targets: bool) -> Iterator[Evidence | Literal["either"]]:
    before = cell.earlier[-1] if cell.earlier else None
    for kind in dict.fromkeys(m.upper() for m in _HINT.findall(cell.text)):
        yield from _compare(
            cell, kind == cell.action.kind, before is not None and kind == before.kind, f"names the action {kind}"
        )
    for told in _read_last(_load(cell.text)):
        is_own, is_before = _matches(told, cell.action), before is not None and _matches(told, before)
        yield from _compare(cell, is_own, is_before, f"its last action is {told[:60]!r}")
    if not reads_targets:
        return
    target, text = _normalise(cell.action.target), _normalise(cell.text)
    is_news = not any(target in _normalise(a.target) for a in cell.earlier) and target not in _normalise(cell.goal)
    if len(target) >= _MIN_TARGET_CHARS and is_news and target in text:
        yield Evidence(cell.row, "own step", f"names its target {cell.action.target[:40]!r}, new at this step")


def _compare(cell: MemoryCell, is_own: bool, is_before: bool, reason: str) -> Iterator[Evidence | Literal["either"]]:
    if is_own and is_before:
        yield "either"
    elif is_own:
        yield Evidence(cell.row, "own step", reason)
    elif is_before:
        yield Evidence(cell.row, "step before", reason)


def _read_last(memory: Any) -> Iterator[str]:
    """Yield the texts in which a memory says what was done last."""
    if not isinstance(memory, Mapping):
        return
    if isinstance(action := memory.get("last_action"), str) and action.strip():
        target = memory.get("last_target")
        yield f"{action} {target}" if isinstance(target, str) else action
    done = memory.get("completed_subtasks")
    if isinstance(done, list) and done and isinstance(done[-1], str):
        yield done[-1]


def _matches(told: str, action: Action) -> bool:
    """Return whether "CLICK Layout" or "Clicked on Layout" tells of an action: its kind and, if it has one, target."""
    kind, target = action.kind.casefold(), _normalise(action.target)
    return bool(re.search(rf"\b{re.escape(kind)}", told.casefold())) and (not target or target in _normalise(told))


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())
