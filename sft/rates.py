"""What is a rate, and how is it written? For scores, tables, reports and model cards alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """A share in 0..1, or the difference of two, with its interval."""

    value: float
    low: float
    high: float

    def format(self, signed: bool = False) -> str:
        """Return "71.4 [68.0, 74.9]", in percent; `signed` is for a difference."""
        value, low, high = (f"{100 * x:{'+' if signed else ''}.1f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def read_rate(fields: Mapping[str, Any]) -> Rate:
    """Read a rate as files hold it, or a baseline, whose value is its `swa`."""
    return Rate(fields["swa"] if "swa" in fields else fields["value"], fields["low"], fields["high"])
