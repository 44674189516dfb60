"""The audit of memory columns: what each way of writing memory is called, and on what evidence."""

import json

import pytest

from sft.actions import Action
from sft.data.memory_audit import MemoryCell, audit_memory

ACTIONS = (
    Action("CLICK", "Load Data"),
    Action("TEXT", "File name"),
    Action("SEGMENT", "Threshold"),
    Action("ZOOM", "Slice view"),
)


def _audit(texts, goal="Segment the scan", **options):
    cells = [
        MemoryCell(row, text if isinstance(text, str) else json.dumps(text), ACTIONS[i], ACTIONS[:i], goal)
        for i, (row, text) in enumerate(enumerate(texts, start=2))
    ]
    return audit_memory("Short_Term_Memory", cells, **options)


def _last(i):
    return {"last_action": ACTIONS[i].kind, "last_target": ACTIONS[i].target}


def test_memory_of_the_step_before_is_lagged():
    audit = _audit([{}, _last(0), _last(1), _last(2)])
    assert (audit.verdict, audit.n_cells, audit.n_before, audit.n_own) == ("lagged", 3, 3, 0)
    assert audit.evidence[0].reason == "its last action is 'CLICK Load Data'"
    assert audit.evidence[0].row == 3


def test_memory_of_its_own_step_is_same_row():
    audit = _audit([_last(0), _last(1), _last(2), _last(3)])
    assert (audit.verdict, audit.n_own) == ("same-row", 4)


def test_one_cell_of_its_own_step_among_lagged_ones_makes_the_column_mixed():
    audit = _audit([{}, _last(0), _last(2), _last(2)])
    assert (audit.verdict, audit.n_before, audit.n_own) == ("mixed", 2, 1)
    assert audit.evidence[0].tells == "own step"
    assert audit.evidence[0].row == 4


@pytest.mark.parametrize(
    "hint",
    [
        "Expected action: SEGMENT",
        "Action mismatch: predicted 'CLICK', should use 'SEGMENT'",
        "Used ground truth: SEGMENT",
        '{"last_lesson": "try again; expected action: segment"}',
    ],
)
def test_hint_that_names_the_action_of_its_own_step_is_evidence(hint):
    audit = _audit([{}, _last(0), hint, _last(2)])
    assert audit.verdict == "mixed"
    assert audit.evidence[0].reason == "names the action SEGMENT"


def test_sentence_about_the_last_action_is_read_like_a_name():
    audit = _audit([{}, {"last_action": "Clicked on Load Data"}, {"last_action": "text into File name"}, _last(2)])
    assert (audit.verdict, audit.n_before) == ("lagged", 3)


def test_target_that_no_step_before_had_gives_memory_away():
    audit = _audit([{}, _last(0), "next the Threshold must be set", _last(2)])
    assert audit.verdict == "mixed"
    assert "new at this step" in audit.evidence[0].reason


def test_target_that_the_goal_names_gives_nothing_away():
    audit = _audit([{}, _last(0), "the Threshold is still open", _last(2)], goal="Set the Threshold of the scan")
    assert (audit.verdict, audit.n_own, audit.n_silent) == ("unproven", 0, 1)


def test_text_that_tells_nothing_proves_nothing():
    audit = _audit(["", "working", "still working", "done soon"])
    assert (audit.verdict, audit.n_silent) == ("unproven", 3)


def test_same_action_twice_in_a_row_fits_both_steps_and_does_not_spoil_the_proof():
    cells = [
        MemoryCell(2, "{}", ACTIONS[0], (), ""),
        MemoryCell(3, json.dumps(_last(0)), ACTIONS[0], (ACTIONS[0],), ""),
        MemoryCell(4, json.dumps(_last(0)), ACTIONS[1], (ACTIONS[0], ACTIONS[0]), ""),
    ]
    audit = audit_memory("m", cells)
    assert (audit.verdict, audit.n_either, audit.n_before) == ("lagged", 1, 1)


def test_empty_column_is_called_empty():
    assert _audit(["", "{}", "null", " "]).verdict == "empty"


def test_last_completed_subtask_counts_as_the_last_action():
    texts = [{}] + [{"completed_subtasks": [f"{a.kind} {a.target}" for a in ACTIONS[:i]]} for i in (1, 2, 3)]
    assert _audit(texts).verdict == "lagged"
