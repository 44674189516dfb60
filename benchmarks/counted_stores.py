"""What a rollout's stores were asked for, counted. In a file of their own: no command line waits for torch."""

from collections.abc import Hashable, Sequence

from eval.policies.answer_store import AnswerStore
from eval.policies.prefix_store import PrefixStore


class CountedAnswers(AnswerStore):
    """Counts the tokens of all answers, and the calls of the model, answer by answer: a guess is asked for at each."""

    n_tokens = n_calls = 0
    guesses = True

    def draft(self, prompt: Sequence[int], answer: Sequence[int], limit: int) -> list[int]:
        """Guess, or nothing where guesses are switched off."""
        self.n_calls += 1
        return super().draft(prompt, answer, limit) if self.guesses else []

    def add(self, answer: Sequence[int]) -> None:
        self.n_tokens += len(answer)
        super().add(answer)


class CountedPrefixes(PrefixStore):
    """Counts the screenshots of all batches, each once a batch, and those that an earlier batch has had."""

    n_shown = n_shown_before = 0
    _seen: frozenset[Hashable] = frozenset()

    def shrink(self, used: Sequence[Hashable]) -> None:
        self.n_shown += len(used)
        self.n_shown_before += len(self._seen.intersection(used))
        self._seen |= set(used)
        super().shrink(used)
