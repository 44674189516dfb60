"""Split trajectory data into parts by task: seeded, the same share of every application, written with hashes.

python -m sft.split DATA [--parts train=0.7,val=0.1,test=0.2] [--output_dir DIR] [--seed N]
                         [--group_by none|screenshot|goal] [--goal_similarity 85]
                         [--hold_out_application NAME]

Tasks of one group stay together: `goal` keeps rewordings of one task in one part, `screenshot` tasks that share a
screen. With `--hold_out_application` (may be given more than once) every task that uses the application goes to the
part `test`; the other tasks are split as without it. split.json says what is where and carries the hash of every part.
Only parts that an earlier split of the same data wrote are replaced.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from sft.data.cells import read_text
from sft.data.load import TaskSet, read_table, read_task_set
from sft.data.overlap import find_overlap
from sft.data.split_file import MANIFEST_NAME, describe_part, format_split_table, list_own_parts
from sft.data.table import Table, format_csv, looks_like_dataset
from sft.errors import UserError, run_command
from sft.files import write_whole
from sft.split.grouping import GROUPINGS, assign_groups, group_tasks, hold_out_groups
from sft.verbs import build_parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python -m sft.split", __doc__)
    parser.add_argument("data", metavar="DATA", type=Path, help="trajectory CSV, or another file that holds a table")
    parser.add_argument("--image_root", type=Path, help="folder of the screenshots [folder of the CSV]")
    parser.add_argument("--output_dir", type=Path, help="folder for the parts [folder of the CSV]")
    parser.add_argument(
        "--parts", type=parse_parts, default="train=0.7,val=0.1,test=0.2", help="names and shares [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split [0]")
    parser.add_argument("--group_by", choices=GROUPINGS, default="none", help="what keeps tasks together [none]")
    parser.add_argument(
        "--goal_similarity", type=float, default=85, help="from 0 to 100: goals this alike are one group [85]"
    )
    parser.add_argument(
        "--hold_out_application",
        action="append",
        default=[],
        metavar="NAME",
        help="every task that uses this application goes to test; may be given more than once",
    )
    arguments = parser.parse_args(argv)
    if arguments.hold_out_application and "test" not in arguments.parts:
        parser.error(f"--hold_out_application: found the parts {', '.join(arguments.parts)}; expected one named test")
    if looks_like_dataset(arguments.data):
        parser.error("DATA: found a data set; expected a file: CSV, JSON Lines, Parquet or Arrow")
    if not 0 < arguments.goal_similarity <= 100:
        parser.error("--goal_similarity: expected a number above 0, at most 100")
    return arguments


def parse_parts(text: str) -> dict[str, float]:
    """Read `train=0.8,test=0.2`.

    Raises:
        argparse.ArgumentTypeError: what was found and what was expected.
    """
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, _, share = item.partition("=")
        try:
            parts[name.strip()] = float(share)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"found {item!r}; expected NAME=SHARE") from error
    if not all(name.isidentifier() for name in parts) or len(parts) != text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected different names of letters and digits")
    if not all(0 < share <= 1 for share in parts.values()) or abs(sum(parts.values()) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected shares above 0 that add up to 1")
    return parts


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    table = read_table(arguments.data, arguments.image_root)
    tasks = read_task_set(table, actions=None)  # what an action may be called is no question of a split
    groups = group_tasks(tasks, arguments.group_by, arguments.goal_similarity)
    held_out = check_applications(arguments.hold_out_application, tasks)
    kept, unseen = hold_out_groups(groups, held_out)
    part_of = assign_groups(kept, arguments.parts, arguments.seed)
    part_of |= {t.task_id: "test" for group in unseen for t in group}
    empty = [name for name in arguments.parts if name not in part_of.values()]
    if empty:
        largest = max(len(group) for group in groups)
        raise UserError(
            f"{arguments.data}: found {len(groups)} groups of tasks that stay together, the largest of {largest}; "
            f"expected enough to fill {', '.join(empty)}: choose another --group_by or fewer parts"
        )
    output_dir = arguments.output_dir or arguments.data.parent
    parts = {name: output_dir / f"{name}.csv" for name in arguments.parts}
    refuse_to_overwrite(parts.values(), table)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, path in parts.items():
        write_part(path, name, table, part_of)
    manifest = describe_split(arguments, tasks, part_of, parts, held_out, n_groups=len(groups))
    write_whole(output_dir / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    print_split(manifest, output_dir, arguments)


def check_applications(names: Iterable[str], tasks: TaskSet) -> list[str]:
    """Return the applications to hold out as the data names them.

    Raises:
        UserError: the data has none of that name.
    """
    found = sorted({name for t in tasks.trajectories for name in t.applications})
    wanted = sorted({read_text(name) for name in names})
    if unknown := [name for name in wanted if name not in found]:
        raise UserError(
            f"--hold_out_application: found {unknown[0]!r}; expected an application that the data names: "
            f"{', '.join(map(repr, found)) or 'it names none'}"
        )
    return wanted


def refuse_to_overwrite(paths: Iterable[Path], table: Table) -> None:
    """Make sure that nothing is lost: a part may replace only what this command made of the same data before.

    Raises:
        UserError: naming the file and the way out.
    """
    wanted = {path.name: path for path in paths}
    folder = next(iter(wanted.values())).parent
    for path in wanted.values():
        if path.exists() and path.samefile(table.path):
            raise UserError(f"{path}: found the data itself under a part's name; choose another --output_dir")
    own = list_own_parts(folder, table.sha256)
    way_out = "move it away, or choose another --output_dir"
    for path in wanted.values():
        if path.exists() and path.name not in own:
            raise UserError(
                f"{path}: found a file that no {MANIFEST_NAME} lists as a part of {table.path.name} as it is now, or "
                f"that was changed since; expected none: {way_out}"
            )
    if left := sorted(name for name in own if name not in wanted):
        raise UserError(
            f"{folder / left[0]}: found a part of the split before this one, which this one does not have; its tasks "
            f"would be in other parts too: {way_out}"
        )


def write_part(path: Path, name: str, table: Table, part_of: dict[str, str]) -> None:
    """Write the rows of one part, their cells as they were."""
    rows = (cells for _, cells in table.rows if part_of[read_text(cells["Task_id"])] == name)
    write_whole(path, format_csv(list(table.rows[0][1]), rows))


def describe_split(
    arguments: argparse.Namespace,
    tasks: TaskSet,
    part_of: dict[str, str],
    paths: dict[str, Path],
    held_out: list[str],
    n_groups: int,
) -> dict[str, Any]:
    """Return the content of the manifest: how the split was made, every part, and what the parts share."""
    members = {
        name: TaskSet(
            path,
            tasks.sha256,
            tasks.image_root,
            [t for t in tasks.trajectories if part_of[t.task_id] == name],
            screenshots=tasks.screenshots,
        )
        for name, path in paths.items()
    }
    names = list(members)
    overlaps = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            overlap = find_overlap(members[name], members[other])
            overlaps.append(
                {
                    "parts": [name, other],
                    "n_same_goals": len(overlap.same_goals),
                    "n_same_screenshots": overlap.n_same_screenshots,
                }
            )
    return {
        "source": arguments.data.name,
        "source_sha256": tasks.sha256,
        "image_root": str(tasks.image_root),
        "seed": arguments.seed,
        "shares": arguments.parts,
        "group_by": arguments.group_by,
        "goal_similarity": arguments.goal_similarity if arguments.group_by == "goal" else None,
        "n_groups": n_groups,
        "held_out_applications": held_out,
        "parts": {name: describe_part(part) for name, part in members.items()},
        "overlaps": overlaps,
    }


def print_split(manifest: dict[str, Any], output_dir: Path, arguments: argparse.Namespace) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 119
    console.print(format_split_table(manifest))
    if held_out := manifest["held_out_applications"]:
        console.print(f"In test alone: every task that uses {' or '.join(held_out)}", soft_wrap=True, markup=False)
    if output_dir.resolve() != arguments.data.parent.resolve() or arguments.image_root:
        console.print(f"The screenshots stay where they are: use image_root {manifest['image_root']}", soft_wrap=True)
    console.print(f"Hashes and task ids: {output_dir / MANIFEST_NAME}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
