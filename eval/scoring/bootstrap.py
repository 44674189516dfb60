"""Intervals: a bootstrap over tasks for ratios of sums, the exact one for tasks of one verdict. Knows no steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.errors import UserError
from sft.rates import Rate

FloatArray = NDArray[np.float64]

_MAX_CELLS = 2_000_000  # drawn tasks held at once: three arrays of 16 MB


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; the same three values give the same intervals, digit by digit."""

    seed: int = 0
    n_resamples: int = 10_000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed: found {self.seed}; expected 0 or more")
        if self.n_resamples < 1:
            raise UserError(f"n_resamples: found {self.n_resamples}; expected 1 or more")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence: found {self.confidence}; expected a number between 0 and 1")


def resample_sums(per_task: FloatArray, bootstrap: Bootstrap) -> FloatArray:
    """Sum the columns over tasks drawn with replacement, again and again.

    `per_task`: (n_tasks, n_columns). All columns see the same draws, so that what is computed from two
    of them is paired. Sums of whole numbers are exact, hence independent of the machine.

    Returns:
        (n_resamples, n_columns): row i sums `n_tasks` drawn tasks.
    """
    n_tasks = len(per_task)
    rng = np.random.default_rng(bootstrap.seed)
    sums = np.empty((bootstrap.n_resamples, per_task.shape[1]))
    chunk = max(1, _MAX_CELLS // n_tasks)
    for start in range(0, bootstrap.n_resamples, chunk):
        size = min(chunk, bootstrap.n_resamples - start)
        drawn = rng.integers(n_tasks, size=(size, n_tasks)) + np.arange(size)[:, None] * n_tasks
        times_drawn = np.bincount(drawn.ravel(), minlength=size * n_tasks).reshape(size, n_tasks)
        sums[start : start + size] = times_drawn.astype(np.float64) @ per_task
    return sums


class Rates:
    """Ratios of sums of named columns, one row per task; all come from one set of draws, so differences are paired."""

    def __init__(self, columns: Mapping[str, Sequence[float]], bootstrap: Bootstrap):
        per_task = np.array(list(columns.values()), dtype=np.float64).T
        self._totals = dict(zip(columns, per_task.sum(axis=0)))
        self._draws = dict(zip(columns, resample_sums(per_task, bootstrap).T))
        self._confidence = bootstrap.confidence

    def compute(self, right: str, of: str, minus: str | None = None) -> Rate | None:
        """Return `compute_interval` of right / of, or of (right - minus) / of; None where there is nothing to count.

        A draw in which nothing is to be counted says nothing and is left out of the percentiles.
        """
        if not self._totals[of]:
            return None
        above, drawn_above = self._totals[right], self._draws[right]
        if minus is not None:
            above, drawn_above = above - self._totals[minus], drawn_above - self._draws[minus]
        is_defined = self._draws[of] > 0
        draws = drawn_above[is_defined] / self._draws[of][is_defined]
        return compute_interval(above / self._totals[of], draws, self._confidence)

    def compute_share(self, right: str, of: str) -> Rate | None:
        """Return the rate of two columns of 0 and 1, the share of tasks with one verdict, with its exact interval.

        One verdict a task, and tasks are independent: that is a binomial count, which needs no resampling.
        """
        n_tasks, n_right = int(self._totals[of]), int(self._totals[right])
        if not n_tasks:
            return None
        return Rate(n_right / n_tasks, *compute_exact_interval(n_right, n_tasks, self._confidence))


def compute_interval(value: float, draws: FloatArray, confidence: float) -> Rate:
    """Return the estimate with the percentile interval of its resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Rate(float(value), float(low), float(high))


def compute_exact_interval(n_right: int, n_tasks: int, confidence: float) -> tuple[float, float]:
    """Return the binomial interval of Clopper and Pearson (1934): it holds the true share at least that often.

    `low` is the share of which `n_right` or more have a chance of half of what is left of `confidence`, `high` the one
    of which `n_right` or fewer have it.
    """
    high = _find_upper_bound(n_right, n_tasks, (1 - confidence) / 2)
    return 1 - _find_upper_bound(n_tasks - n_right, n_tasks, (1 - confidence) / 2), high


def _find_upper_bound(n_right: int, n_tasks: int, chance: float) -> float:
    """Return the share of which at most `n_right` of `n_tasks` have this chance, to 1e-12."""
    if n_right == n_tasks:
        return 1.0
    counts = np.arange(n_tasks + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    ways = (log_factorial[-1] - log_factorial - log_factorial[::-1])[: n_right + 1]
    low, high = 0.0, 1.0
    for _ in range(40):  # halvings: coarser than what differs between machines
        share = (low + high) / 2
        at_most = np.exp(ways + counts[: n_right + 1] * np.log(share) + counts[: -n_right - 2 : -1] * np.log1p(-share))
        low, high = (share, high) if at_most.sum() > chance else (low, share)
    return (low + high) / 2
