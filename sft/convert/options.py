"""How is a source read whose actions are mapped by a table?"""

from dataclasses import dataclass
from pathlib import Path

from sft.convert.action_map import ActionMap
from sft.convert.converted import Coordinates


@dataclass(frozen=True)
class ReadingOptions:
    """What the user said of a source.

    `images_dir` holds its pictures, None: they are beside it. `coordinates` are the units of its places, None: those
    of the format. `application` is the program of tasks that name none. `task_column` names the column whose rows of
    one value are the steps of one task, "": a row is a task.
    """

    action_map: ActionMap
    images_dir: Path | None = None
    coordinates: Coordinates | None = None
    application: str = ""
    task_column: str = ""
