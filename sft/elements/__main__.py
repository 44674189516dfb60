"""Find the texts on every screenshot by OCR and write them as the column Detected_Elements.

python -m sft.elements DATA.csv --to OUT.csv [--image_root DIR] [--workers N] [--cache_dir DIR]

Each distinct screenshot is read once, from its pixels alone: no other column is looked at but Image_id. A run that was
stopped continues where it was. OUT.elements.json says what made the elements; a training records it. All other cells
stay as they are; a column Detected_Elements that DATA has is replaced. Needs the extra ocr.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sft.data.elements_file import name_elements_file, write_elements_file
from sft.data.image_paths import resolve_image
from sft.data.load import read_table
from sft.data.problems import Problem, TrajectoryError
from sft.data.rows import check_screenshots
from sft.data.table import Table, format_csv, looks_like_dataset
from sft.elements.detector import Detection, describe_detector
from sft.elements.screens import detect_elements
from sft.errors import UserError, run_command
from sft.files import hash_file, write_whole
from sft.json_text import dump_json
from sft.verbs import build_parser

COLUMN = "Detected_Elements"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("python -m sft.elements", __doc__)
    parser.add_argument("data", metavar="DATA", type=Path, help="trajectory CSV, or another file that holds a table")
    parser.add_argument("--to", type=Path, required=True, metavar="OUT.csv", help="file to write")
    parser.add_argument("--image_root", type=Path, help="folder of the screenshots [folder of DATA]")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each [1]")
    parser.add_argument("--cache_dir", type=Path, help="folder for results by screenshot [.elements_cache beside OUT]")
    arguments = parser.parse_args(argv)
    if looks_like_dataset(arguments.data):
        parser.error("DATA: found a data set; expected a file: CSV, JSON Lines, Parquet or Arrow")
    if arguments.workers < 1:
        parser.error(f"--workers: found {arguments.workers}; expected at least 1")
    if arguments.to.suffix.lower() != ".csv":
        parser.error(f"--to: found {arguments.to}; expected a name that ends with .csv")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    refuse_to_overwrite(arguments.to, arguments.data)
    made_by = describe_detector()
    table = read_table(arguments.data, arguments.image_root)
    images, screenshots = find_screenshots(table)
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    cache_dir = arguments.cache_dir or arguments.to.parent / ".elements_cache"
    found = detect_elements(screenshots, cache_dir, arguments.workers)
    columns = [*(name for name in table.rows[0][1] if name != COLUMN), COLUMN]
    rows = ({**cells, COLUMN: dump_json(found[sha256].elements)} for (_, cells), sha256 in zip(table.rows, images))
    counts = count(found)
    described = {"source": arguments.data.name, "source_sha256": table.sha256, "made_by": made_by, **counts}
    sidecar = write_with_maker(arguments.to, format_csv(columns, rows), described)
    print_summary(arguments, table, counts, sidecar)


def write_with_maker(path: Path, text: str, described: Mapping[str, Any]) -> Path:
    """Write a CSV and, before it, what made its elements: a kill in between leaves no column without a maker.

    An earlier CSV goes first: it would be one. Return the file that says what made them.
    """
    data = text.encode("utf-8", "replace")
    path.unlink(missing_ok=True)
    sidecar = write_elements_file(path, data, described)
    write_whole(path, data)
    return sidecar


def refuse_to_overwrite(path: Path, data: Path) -> None:
    """Make sure that nothing is lost: only what this command wrote, as it wrote it, is replaced.

    Raises:
        UserError: naming the file and the way out.
    """
    if not path.exists():
        return
    if data.exists() and path.samefile(data):
        raise UserError(f"--to: found the data itself ({path}); expected another file")
    try:
        is_own = json.loads(name_elements_file(path).read_text(encoding="utf-8"))["sha256"] == hash_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        is_own = False
    if not is_own:
        raise UserError(f"{path}: found a file that is not as this command wrote it; move it away, or choose another")


def find_screenshots(table: Table) -> tuple[list[str], dict[str, Path]]:
    """Return each row's screenshot by the SHA-256 of its content, and where one file of each content is.

    Raises:
        TrajectoryError: every row that names no screenshot, or one that cannot be used.
    """
    problems, paths = list(table.bad_rows), dict[int, Path]()
    for row, cells in table.rows:
        try:
            paths[row] = resolve_image(cells["Image_id"], table.image_root.resolve())
        except ValueError as error:
            problems.append(Problem(table.path, row, "Image_id", str(error)))
    facts = check_screenshots(paths.values(), show_progress=True)
    problems += [
        Problem(table.path, row, "Image_id", str(facts[path].problem))
        for row, path in paths.items()
        if facts[path].problem
    ]
    if problems:
        raise TrajectoryError(sorted(problems, key=lambda problem: problem.row or 0))
    return [facts[path].sha256 for path in paths.values()], {facts[path].sha256: path for path in paths.values()}


def count(found: dict[str, Detection]) -> dict[str, int]:
    return {
        "n_screenshots": len(found),
        "n_elements": sum(len(detection.elements) for detection in found.values()),
        "n_left_out": sum(detection.n_left_out for detection in found.values()),
    }


def print_summary(arguments: argparse.Namespace, table: Table, counts: dict[str, int], sidecar: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{counts['n_elements']:,} elements on {counts['n_screenshots']:,} distinct screenshots, "
        f"{len(table.rows):,} rows: {arguments.to}"
    )
    if counts["n_left_out"]:
        console.print(f"{counts['n_left_out']:,} more did not fit into a cell: the last ones of their screenshots")
    if arguments.to.resolve().parent != arguments.data.resolve().parent or arguments.image_root:
        console.print(f"The screenshots stay where they are: use image_root {table.image_root}")
    console.print(f"What made them: {sidecar}")
    console.print("Next: use_grounding: true in the recipe")


if __name__ == "__main__":
    run_command(main)
