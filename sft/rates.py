"""What is a rate, and how is it written? For scores, tables, reports and model cards alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """A share in 0..1, or the difference of two, with its interval.

    `is_exact` says that the interval is the exact binomial one, of tasks of one verdict, and not the bootstrap's.
    """

    value: float
    low: float
    high: float
    is_exact: bool = False

    def format(self, signed: bool = False) -> str:
        """Return "71.4 [68.0, 74.9]", in percent; a star marks an exact interval.

        `signed` is for a difference, whose interval is never exact.
        """
        value, low, high = (f"{100 * x:{'+' if signed else ''}.1f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]{'*' if self.is_exact and not signed else ''}"

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def read_rate(fields: Mapping[str, Any]) -> Rate:
    """Read a rate as files hold it, or a baseline, whose value is its `swa`.

    Files do not say which intervals are exact. The bootstrap gives a rate of 0 or 1 no width, so one that has a width
    is exact.
    """
    value, low, high = fields["swa"] if "swa" in fields else fields["value"], fields["low"], fields["high"]
    return Rate(value, low, high, value in (0, 1) and 0 <= low < high <= 1)
