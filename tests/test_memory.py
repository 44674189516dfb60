"""Memory: what a step passes on to the next, by either writer, and the bound on its size."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.actions import Action
from sft.answers import Answer
from sft.json_text import MAX_JSON_DEPTH, clean_json, dump_json
from sft.memory import EMPTY_MEMORY, Memory, fit_memory, lagged, memory_chars, update, written

CLICK = Action("CLICK", "OK")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
PARTS = st.dictionaries(st.text(max_size=12), VALUES, max_size=5)


def test_model_writes_the_memory_of_the_next_step():
    answer = Answer(CLICK, {"last_action": "CLICK"}, {"overall_progress": "half"})
    memory = update(Memory({"last_action": "ZOOM"}, {"known_pitfalls": []}), answer, "model", 1200)
    assert memory == Memory({"last_action": "CLICK"}, {"overall_progress": "half"})


def test_part_that_the_answer_lacks_stays_as_it_was():
    before = Memory({"last_action": "ZOOM"}, {"overall_progress": "half"})
    assert update(before, Answer(CLICK, {"last_action": "CLICK"}), "model", 1200) == Memory(
        {"last_action": "CLICK"}, {"overall_progress": "half"}
    )
    assert update(before, Answer(CLICK, None, {}), "model", 1200) == Memory({"last_action": "ZOOM"}, {})
    assert update(before, Answer(CLICK, {}, None), "model", 1200) == Memory({}, {"overall_progress": "half"}), (
        "an empty part clears what was there"
    )


def test_unparsable_answer_keeps_the_last_valid_memory():
    before = Memory({"last_action": "ZOOM"}, {"overall_progress": "half"})
    for writer in ("model", "rule"):
        assert update(before, None, writer, 1200) is before


def test_rule_writes_from_the_action_alone():
    first = update(
        EMPTY_MEMORY, Answer(CLICK, {"last_lesson": "never trust"}, {"overall_progress": "x"}), "rule", 1200
    )
    assert first == Memory({"last_action": "CLICK", "last_target": "OK"}, {"completed_subtasks": ["CLICK OK"]})
    second = update(first, Answer(Action("COMPLETE", "")), "rule", 1200)
    assert second == Memory(
        {"last_action": "COMPLETE", "last_target": ""}, {"completed_subtasks": ["CLICK OK", "COMPLETE"]}
    )


def _number(count):
    return [Answer(CLICK, {"step": i}, {"done": list(range(i + 1))}) for i in range(count)]


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(["model", "rule"]))
def test_memory_shown_at_a_step_is_made_of_the_answers_before_it_alone(count, changed, writer):
    answers = _number(count)
    shown = list(lagged(answers, writer, 1200))
    assert shown[0] == EMPTY_MEMORY and len(shown) == count + 1
    later = [*answers[:changed], *(Answer(Action("ZOOM", "else"), {"step": -1}, {}) for _ in answers[changed:])]
    assert list(lagged(later, writer, 1200))[: changed + 1] == shown[: changed + 1]
    assert changed >= count or list(lagged(later, writer, 1200))[changed + 1] != shown[changed + 1]


def test_answer_is_asked_for_after_its_own_memory_was_shown():
    answers, shown = [], []
    memories = lagged(answers, "model", 1200)
    for i, answer in enumerate(_number(3)):
        shown.append(next(memories))
        assert shown[-1].short_term == ({"step": i - 1} if i else {})
        answers.append(answer)  # as a rollout does: what is answered depends on what was shown
    assert [*shown, next(memories)] == list(lagged(answers, "model", 1200))


def test_memory_goes_on_from_where_it_was_left():
    answers = _number(4)
    whole = list(lagged(answers, "model", 40))
    assert list(lagged(answers[2:], "model", 40, whole[2])) == whole[2:]


@given(st.integers(1, 6))
def test_memory_written_after_each_step_is_what_the_next_one_is_shown(count):
    shown = [EMPTY_MEMORY, *(Memory({"step": i}, {}) for i in range(count))]
    answers = [Answer(CLICK, memory.short_term, memory.long_term) for memory in written(shown)]
    assert list(lagged(answers, "model", None))[:-1] == shown


def test_unknown_keys_are_kept():
    answer = Answer(CLICK, {"window": 3}, {"my_notes": {"a": [1]}})
    assert update(EMPTY_MEMORY, answer, "model", 1200) == Memory({"window": 3}, {"my_notes": {"a": [1]}})


def test_update_changes_neither_memory_nor_answer():
    steps = ["one" * 30, "two" * 30]
    answer = Answer(CLICK, {"last_lesson": "x" * 90}, {"completed_subtasks": steps})
    update(EMPTY_MEMORY, answer, "model", 60)
    assert answer.long_term == {"completed_subtasks": ["one" * 30, "two" * 30]}
    assert answer.short_term == {"last_lesson": "x" * 90}


def test_oldest_list_items_go_first():
    memory = Memory({"last_action": "CLICK"}, {"completed_subtasks": ["first", "second", "third"]})
    size = memory_chars(memory)
    assert fit_memory(memory, size) == memory
    assert fit_memory(memory, size - 1).long_term == {"completed_subtasks": ["second", "third"]}
    assert fit_memory(memory, size - 9).long_term == {"completed_subtasks": ["third"]}


def test_longest_list_is_shortened_before_a_shorter_one_and_any_text():
    memory = Memory({}, {"a": ["11", "22"], "b": ["1111", "2222", "3333"], "text": "y" * 40})
    assert fit_memory(memory, memory_chars(memory) - 1).long_term == {
        "a": ["11", "22"],
        "b": ["2222", "3333"],
        "text": "y" * 40,
    }


def test_text_loses_its_beginning():
    memory = Memory({"last_observation": "old then new"}, {})
    assert fit_memory(memory, memory_chars(memory) - 9).short_term == {"last_observation": "new"}


def test_whole_keys_go_last_and_long_term_first():
    memory = Memory({"a": 111111}, {"b": 222222})
    assert fit_memory(memory, 14) == Memory({"a": 111111}, {})
    assert fit_memory(memory, 4) == EMPTY_MEMORY


@given(PARTS, PARTS, st.integers(4, 300))
def test_fitted_memory_is_within_its_budget(short_term, long_term, budget):
    fitted = fit_memory(Memory(short_term, long_term), budget)
    assert memory_chars(fitted) <= budget
    assert set(fitted.short_term) <= set(short_term)
    assert set(fitted.long_term) <= set(long_term)


@given(PARTS, PARTS)
def test_memory_within_its_budget_is_left_alone(short_term, long_term):
    memory = Memory(short_term, long_term)
    assert fit_memory(memory, memory_chars(memory)) == memory


@given(st.lists(st.text(max_size=20), max_size=12), st.integers(40, 200))
def test_what_remains_of_a_list_is_its_end(items, budget):
    kept = fit_memory(Memory({}, {"completed_subtasks": items}), budget).long_term["completed_subtasks"]
    assert kept == items[len(items) - len(kept) :]


def test_json_is_one_line_without_spaces_and_keeps_letters():
    assert dump_json({"a": ["ü", "患者\n"], "b": 1}) == '{"a":["ü","患者\\n"],"b":1}'


def test_half_characters_are_written_as_question_marks():
    assert dump_json({"a\udc00": "x\ud83d"}) == '{"a?":"x?"}'


@given(PARTS)
def test_clean_json_is_stable_and_can_be_stored(part):
    cleaned = clean_json(part)
    assert clean_json(cleaned) == cleaned
    assert json.loads(dump_json(cleaned).encode("utf-8")) == cleaned


def test_clean_json_breaks_up_control_tokens_in_keys_and_values():
    assert clean_json({"<|im_end|>": ["<|image_pad|>", {"k": "\ud800"}]}) == {
        "< |im_end|>": ["< |image_pad|>", {"k": "?"}]
    }


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_clean_json_refuses_numbers_that_json_lacks(number):
    with pytest.raises(ValueError, match="expected a finite one"):
        clean_json({"a": [number]})


def test_clean_json_bounds_the_depth():
    value = "leaf"
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    assert clean_json(value) == value
    with pytest.raises(ValueError, match="more than 16 levels"):
        clean_json([value])


@pytest.mark.parametrize(
    ("budget", "short_term", "long_term"),
    [
        (58, {"note": "seen"}, {"done": ["one", "two"], "left": ["six", "ten"]}),
        (57, {"note": "seen"}, {"done": ["two"], "left": ["six", "ten"]}),  # of equals, the first list
        (51, {"note": "seen"}, {"done": ["two"], "left": ["ten"]}),  # then the one that is longest now
        (45, {"note": "seen"}, {"done": [], "left": ["ten"]}),
        (40, {"note": "seen"}, {"done": [], "left": []}),
        (33, {"note": "n"}, {"done": [], "left": []}),  # no list has an item left: texts lose their beginning
        (32, {"note": ""}, {"done": [], "left": []}),
        (31, {"note": ""}, {"left": []}),  # no text is left: keys go, the first of long-term memory first
        (21, {"note": ""}, {}),
        (12, {}, {}),
    ],
)
def test_lists_give_way_to_texts_and_texts_to_keys(budget, short_term, long_term):
    memory = Memory({"note": "seen"}, {"done": ["one", "two"], "left": ["six", "ten"]})
    fitted = fit_memory(memory, budget)
    assert (fitted.short_term, fitted.long_term) == (short_term, long_term)


def test_memory_of_a_hundred_thousand_entries_is_shortened_at_once():
    memory = Memory({f"key {i}": "x" for i in range(100_000)}, {"done": [f"step {i}" for i in range(100_000)]})
    started = time.perf_counter()
    assert fit_memory(memory, 60) == Memory({"key 99997": "", "key 99998": "", "key 99999": ""}, {})
    assert time.perf_counter() - started < 60  # dropping one entry at a time and measuring anew takes hours
