"""Whether memory that a data file brings along is older than the step it stands at, and refused where it is not.

Published memory columns often hold what the step's own action did ("Expected action: SEGMENT"). A column is *lagged*
where its cells tell of the step before, *same-row* where they tell of their own step, *mixed* where they do both, and
*unproven* where too few cells tell anything. What a cell tells is read off three ways: a hint that names an action,
fields such as `last_action` and `last_target`, and a target that no earlier step had and the goal does not name.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sft.actions import Action, as_plain_text
from sft.agent import AgentConfig
from sft.answers import Answer
from sft.data.literals import is_missing, read_literal
from sft.data.steps import Trajectory
from sft.json_text import dump_json
from sft.memory import lagged

COLUMN = "Output, shown one step later"
MEMORY_PARTS = ("short_term", "long_term")
PLAN_KEY = "remaining_subtasks"  # a plan rightly names what comes next
Verdict = Literal["lagged", "same-row", "mixed", "unproven", "empty"]

_HINT = re.compile(
    r"(?:expected action|should use|used ground truth|ground truth action)\W{1,4}([A-Za-z]{3,20})", re.I
)
_PROVEN_SHARE = 0.9  # of the cells that are not empty and could tell
_MIN_TARGET_CHARS = 4  # a shorter target ("OK") stands in many a text by chance
_MAX_EVIDENCE = 5


@dataclass(frozen=True)
class MemoryCell:
    """One memory text, the step it stands at (`action`) and the steps before it, oldest first.

    `previous` is the memory a step earlier, where it is known: what it said already tells nothing of this step.
    """

    row: int
    text: str
    action: Action
    earlier: Sequence[Action]
    goal: str
    previous: str = ""


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


def audit_memory(column: str, cells: Iterable[MemoryCell], reads_targets: bool = True) -> MemoryAudit:
    """Judge one column of a whole file; an empty cell (also `{}`) tells nothing and is not counted.

    Without `reads_targets` a target alone is no sign: memory that describes the screen may rightly name what is next.
    """
    told = [read_cell(cell, reads_targets) for cell in cells if not _is_empty(cell.text)]
    count = Counter("silent" if e is None else e.tells if isinstance(e, Evidence) else e for e in told)
    n_own, n_before, n_either = count["own step"], count["step before"], count["either"]
    found = [e for e in told if isinstance(e, Evidence)]
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


def read_cell(cell: MemoryCell, reads_targets: bool = True) -> Evidence | Literal["either"] | None:
    """Return what a cell tells, as `audit_memory` counts it; a sign of its own step outweighs every other."""
    signs = list(_find_signs(cell, reads_targets))
    own = next((s for s in signs if isinstance(s, Evidence) and s.tells == "own step"), None)
    return own or next((s for s in signs if isinstance(s, Evidence)), None) or next(iter(signs), None)


def list_shown_parts(agent: AgentConfig) -> tuple[str, ...]:
    """Return the parts of recorded memory that an agent's prompts show; none where the memory is written by rule."""
    if agent.memory_writer == "rule":
        return ()
    used = (agent.use_short_term, agent.use_long_term)
    return tuple(part for part, is_used in zip(MEMORY_PARTS, used) if is_used)


def audit_shown_memory(trajectories: Iterable[Trajectory]) -> MemoryAudit:
    """Audit the recorded memory of all tasks; its verdict is `empty` where they have none."""
    cells = (cell for t in trajectories for _, cell in _read_task(t, MEMORY_PARTS))
    return audit_memory(COLUMN, cells, reads_targets=False)


def find_leaks(trajectory: Trajectory, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the row of every step whose memory tells the next step's action, and what is wrong with it."""
    for row, cell in _read_task(trajectory, parts):
        if told := _find_own_step(cell):
            yield (
                row,
                f"found memory that tells the answer of the next step (row {cell.row}), whose prompt would show it: "
                f"{told.reason}; expected what was known before that step: fix it, or set memory_writer: rule",
            )


def has_leak(golds: Sequence[Answer], goal: str) -> bool:
    """Return whether the memory of any right answer of a task tells the action of the answer after it."""
    cells = read_shown_memory(golds, range(len(golds)), goal, MEMORY_PARTS)
    return any(_find_own_step(cell) for _, cell in cells)


def read_shown_memory(
    golds: Sequence[Answer], rows: Sequence[int], goal: str, parts: Sequence[str]
) -> Iterator[tuple[int, MemoryCell]]:
    """Yield the row of each step but the last, and its memory as the step after it is shown it, without the plan."""
    actions = [gold.action for gold in golds]
    shown = lagged(golds, "model", budget_chars=None)
    previous = ""
    for i, memory in zip(range(len(golds)), shown):
        told = {part: {k: v for k, v in getattr(memory, part).items() if k != PLAN_KEY} for part in parts}
        text = dump_json(told) if any(told.values()) else ""
        if i:
            yield rows[i - 1], MemoryCell(rows[i], text, actions[i], actions[:i], goal, previous)
        previous = text


def _find_signs(cell: MemoryCell, reads_targets: bool) -> Iterator[Evidence | Literal["either"]]:
    before = cell.earlier[-1] if cell.earlier else None
    known_hints = Counter(_read_hints(cell.previous))
    for kind, n in Counter(_read_hints(cell.text)).items():
        is_own = kind == cell.action.kind and n > known_hints[kind]
        yield from _compare(cell, is_own, before is not None and kind == before.kind, f"names the action {kind}")
    known = _read_told(cell.previous)
    for name, told in _read_told(cell.text):
        is_own = _matches(told, cell.action, is_strict=not reads_targets) and (name, told) not in known
        is_before = before is not None and (_matches(told, before) or (is_own and _are_alike(cell.action, before)))
        yield from _compare(cell, is_own, is_before, f"its {name} is {told[:60]!r}")
    if not reads_targets:
        if _is_spelled_out(cell):
            yield Evidence(cell.row, "own step", f"holds {_spell(cell.action)[:60]!r}, new at this step")
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


def _read_hints(text: str) -> list[str]:
    return [match.upper() for match in _HINT.findall(text)]


@lru_cache(maxsize=4)  # a memory is read at its own step, and as the previous one at the next
def _read_told(text: str) -> tuple[tuple[str, str], ...]:
    """Return, each with its name, the texts in which a memory says what was or will be done, as in `last_action`."""
    found = []
    for fields in _find_mappings(_load(text)):
        for key, action in fields.items():
            if key.endswith("action") and isinstance(action, str) and action.strip():
                target = fields.get(key.removesuffix("action") + "target")
                told = f"{action} {target}" if isinstance(target, str) else action
                found.append((key.replace("_", " "), told))
        done = fields.get("completed_subtasks")
        if isinstance(done, list) and done and isinstance(done[-1], str):
            found.append(("last completed subtask", done[-1]))
    return tuple(found)


def _find_mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _find_mappings(item)


def _matches(told: str, action: Action, is_strict: bool = False) -> bool:
    """Return whether "CLICK Layout" or "Clicked on Layout" tells of an action: its kind and, if it has one, target.

    If `is_strict`, the target stands there as whole words, and an action without one is named and nothing else.
    """
    kind, target, told = action.kind.casefold(), _normalise(action.target), _normalise(told)
    if not re.search(rf"\b{re.escape(kind)}", told):
        return False
    if not is_strict:
        return target in told
    if target:
        return bool(re.search(rf"(?<!\w){re.escape(target)}(?!\w)", told))
    return bool(re.fullmatch(rf"{re.escape(kind)}\W*(?:none|n/?a|null)?\W*", told))


def _are_alike(action: Action, before: Action) -> bool:
    """Return whether one text may mean either action: the same kind, and a target whose name holds the other's."""
    return action.kind == before.kind and _normalise(action.target) in _normalise(before.target)


def _is_spelled_out(cell: MemoryCell) -> bool:
    """Return whether a memory holds its own step's action spelled out ("CLICK Layout"), for the first time."""
    spelled = _spell(cell.action)
    written = dump_json(spelled)[1:-1]
    if len(cell.action.target) < _MIN_TARGET_CHARS or written not in cell.text or written in cell.previous:
        return False
    is_whole = re.search(rf"(?<!\w){re.escape(written)}(?! ?\w)", cell.text)  # "CLICK Save" is not "CLICK Save as"
    return bool(is_whole) and spelled not in cell.goal and not any(spelled in _spell(a) for a in cell.earlier)


def _spell(action: Action) -> str:
    return f"{action.kind} {action.target}"


def _load(text: str) -> Any:
    try:
        return read_literal(text)
    except ValueError:
        return None


def _is_empty(text: str) -> bool:
    return is_missing(text) or text.strip() in ("{}", "[]")


def _normalise(text: str) -> str:
    return " ".join(as_plain_text(text).casefold().split())


def _read_task(trajectory: Trajectory, parts: Sequence[str]) -> Iterator[tuple[int, MemoryCell]]:
    rows = [step.row for step in trajectory.steps]
    return read_shown_memory(trajectory.golds, rows, trajectory.instruction, parts)


def _find_own_step(cell: MemoryCell) -> Evidence | None:
    told = read_cell(cell, reads_targets=False)
    return told if isinstance(told, Evidence) and told.tells == "own step" else None
