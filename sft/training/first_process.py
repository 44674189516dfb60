"""What the first process does for all: every process gets the result, or raises the refusal. Knows nothing of runs."""

from collections.abc import Callable
from typing import Any, TypeVar

from sft.errors import UserError

Result = TypeVar("Result")


def do_in_first_process(act: Callable[[], Result]) -> Result:
    """Call `act` in the first process alone, have the others wait for it, and return its result in every process.

    A `UserError` or `OSError` of `act` (a full disk) is raised in every process. Raised by the first alone, it would
    leave the others waiting for a process that has ended, and telling of that in place of the reason.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            outcome = [act()]
        except (UserError, OSError) as refusal:
            outcome = [refusal]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
