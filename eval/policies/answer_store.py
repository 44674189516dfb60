"""Guesses how an answer continues, from answers written before and from the prompt. Knows tokens only."""

from collections import deque
from collections.abc import Sequence

CAPACITY = 65_536  # tokens held, of about a thousand answers; the oldest go first
START = -1  # stands before an answer, and is no token
LENGTHS = (16, 8, 4, 2, 1)  # of the ends by which answers are looked up, the longest first


class AnswerStore:
    """Answers that a rollout has written: an answer often continues as an earlier one did after the same tokens.

    A guess is worth trying, no more: the model checks each token of it, so that the answers are those it would have
    given without.
    """

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self._answers: deque[tuple[int, ...]] = deque()
        self._n_tokens = 0
        # where in which answer something follows these tokens: the latest such place
        self._places: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}

    def add(self, answer: Sequence[int]) -> None:
        """Hold an answer that is complete; drop the oldest ones that no longer fit."""
        held = (START, *answer)
        self._answers.append(held)
        self._n_tokens += len(held)
        for end in range(1, len(held)):
            self._places.update(dict.fromkeys(_ends(held[:end]), (held, end)))
        while self._n_tokens > self.capacity:
            self._drop(self._answers.popleft())

    def _drop(self, held: tuple[int, ...]) -> None:
        self._n_tokens -= len(held)
        for end in range(1, len(held)):
            for key in _ends(held[:end]):
                if key in self._places and self._places[key][0] is held:
                    del self._places[key]

    def draft(self, prompt: Sequence[int], answer: Sequence[int], limit: int) -> list[int]:
        """Guess at most `limit` tokens that follow the answer so far.

        They are those that followed the longest end of it elsewhere: in an answer held, the latest where several
        continue the same end, or in its own prompt and the answer itself.
        """
        if limit <= 0:
            return []
        so_far = (START, *answer)
        n_equal, guess = 0, so_far[:0]
        for key in _ends(so_far):
            if key in self._places:
                held, end = self._places[key]
                n_equal, guess = _count_equal(held, end, so_far), held[end : end + limit]
                break
        text = (*prompt, *so_far)
        for end in range(len(text) - 1, 0, -1):
            if text[end - 1] == text[-1] and (n := _count_equal(text, end, answer)) > n_equal:
                n_equal, guess = n, text[end : end + limit]
        return list(guess[: guess.index(START)] if START in guess else guess)


def _ends(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tokens[-n:] for n in LENGTHS if n <= len(tokens)]


def _count_equal(text: Sequence[int], end: int, tokens: Sequence[int]) -> int:
    """Count how many tokens before `text[end]` are the last of `tokens`."""
    n, most = 0, min(end, len(tokens))
    while n < most and text[end - 1 - n] == tokens[-1 - n]:
        n += 1
    return n
