"""The clinic: Orthanc and OHIF on this machine, for recording tasks and for agents that operate them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.environments.environment import Environment


def open_environment(step_limit_s: float = 30.0) -> "Environment":
    """Return the clinic as an environment of `eval/live.py`; nothing is started before the first `reset`.

    Raises:
        UserError: a program or a Python package that it needs is missing.
    """
    from sft.errors import UserError

    try:
        from demo.clinic.environment import Clinic
    except ModuleNotFoundError as error:
        raise UserError(
            f"found no Python package {error.name}, which the clinic needs; bash demo/clinic/start.sh installs it"
        ) from error
    clinic = Clinic(step_limit_s)
    if missing := clinic.find_missing():
        raise UserError(
            f"found no {', '.join(missing)}, which the clinic needs; bash demo/clinic/start.sh installs it"
        )
    return clinic
