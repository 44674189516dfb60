"""What is guessed of an answer: examples worked out by hand, tokens as numbers."""

import pytest

from eval.policies.answer_store import AnswerStore


def build_store(*answers, **options):
    store = AnswerStore(**options)
    for answer in answers:
        store.add(answer)
    return store


@pytest.mark.parametrize(
    ("held", "prompt", "answer", "limit", "expected"),
    [
        ([], [], [], 4, []),
        ([], [7, 8, 9], [], 4, []),
        ([[1, 2, 3]], [], [], 4, [1, 2, 3]),  # a new answer begins as the latest one
        ([[1, 2, 3], [4, 5]], [], [], 4, [4, 5]),
        ([[1, 2, 3]], [], [1], 4, [2, 3]),
        ([[1, 2, 3]], [], [1], 1, [2]),
        ([[1, 2, 3]], [], [1], 0, []),
        ([[1, 2, 3]], [], [1], -3, []),
        ([[1, 2, 3]], [], [1, 2, 3], 4, []),  # nothing follows
        ([[1, 2, 3]], [], [9], 4, []),
        ([[1, 2, 3, 4], [8, 3, 5]], [], [1, 2, 3], 4, [4]),  # two tokens before the end are equal, not one
        ([[1, 2, 3, 4], [1, 2, 3, 5]], [], [1, 2, 3], 4, [5]),  # the latest of equals
        ([[2, 3, 4]], [2, 3, 6], [2, 3], 4, [4]),  # its beginning is equal too
        ([[1, 3, 4]], [3, 6], [8, 3], 4, [4]),  # as far in both: the answer held
        ([[1, 3, 4]], [8, 3, 6], [8, 3], 4, [6]),
        ([], [5, 6, 7, 5, 8], [5], 4, [8]),  # the latest place in the prompt, up to its end
        ([], [], [5, 6, 7, 5], 4, [6, 7, 5]),  # the answer itself
        ([], [5], [5], 4, []),  # what follows in the prompt is the answer's own beginning
        ([list(range(40))], [], list(range(20)), 5, [20, 21, 22, 23, 24]),
        ([[*range(20), 50], [99, *range(1, 20), 60]], [], list(range(20)), 5, [60]),  # equal in 16 tokens: the latest
    ],
)
def test_an_answer_continues_as_its_longest_end_did_elsewhere(held, prompt, answer, limit, expected):
    assert build_store(*held).draft(prompt, answer, limit) == expected


def test_the_oldest_answers_make_room():
    store = build_store([1, 2], [1, 3], [4, 5], capacity=6)  # each counts its beginning too
    assert store.draft([], [1], 4) == [3]
    store.add([6, 7])
    assert store.draft([], [1], 4) == []
    assert store.draft([], [4], 4) == [5]
    assert store.draft([], [6], 4) == [7]


def test_nothing_of_a_dropped_answer_is_left():
    store = build_store(*([n, n + 1, n + 2] for n in range(1000)), capacity=40)
    assert len(store._answers) == 10
    assert len(store._places) < 10 * 3 * 3
