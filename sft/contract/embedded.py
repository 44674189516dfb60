"""Data sets of the Hub or saved by `datasets`, screenshots embedded: to rows and image files. Converts no CareFlow."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sft.contract.problems import Problem, TrajectoryError
from sft.contract.screenshots import inspect_bytes, store_screenshot
from sft.contract.sources import REQUIRED_COLUMNS, Row, Table, check_columns, split_source

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")


def read_dataset(source: str, image_root: str | Path | None = None) -> Table:
    """Read row-shaped data: the columns of the CSV, and the screenshot in a column of type `Image` or as bytes.

    Embedded screenshots are written once, named by their content, to the cache of the Hub library; without any,
    `Image_id` is a path from `image_root` (default: the folder). Row numbers count as in a CSV of the same rows: the
    first one is 2.

    Raises:
        TrajectoryError: no such data set or split, or columns that are missing.
    """
    path = Path(source)
    dataset = open_dataset(source)
    image_column = find_image_column(dataset)
    columns = [*dataset.column_names, *(["Image_id"] if image_column else [])]
    if "json_data" in columns:
        message = "found a task table (json_data); expected one row a step: run python -m sft.convert careflow"
        raise TrajectoryError([Problem(path, None, None, message)])
    check_columns(columns, path)
    folder = find_cache() if image_column else Path(image_root or split_source(source)[0])
    rows: list[Row] = []
    bad_rows: list[Problem] = []
    digest = hashlib.sha256()
    bar = tqdm(iterate_rows(dataset), total=len(dataset), desc=f"Reading {path.name}", unit="row", disable=None)
    for number, fields in enumerate(bar, start=2):
        cells = {name: as_cell(fields.get(name)) for name in fields if name != image_column}
        if image_column:
            name, problem = _store(read_image_bytes(fields[image_column]), folder)
            if problem:
                bad_rows.append(Problem(path, number, image_column, problem, cells["Task_id"].strip() or None))
                continue
            cells["Image_id"] = name
        rows.append((number, {**dict.fromkeys(REQUIRED_COLUMNS, ""), **cells}))
        digest.update(json.dumps(rows[-1][1], sort_keys=True).encode("utf-8", "replace"))
    if not rows and not bad_rows:
        raise TrajectoryError([Problem(path, None, None, "found no rows; expected one row a step")])
    return Table(path, rows, digest.hexdigest(), folder, tuple(bad_rows))


def open_dataset(source: str) -> "Dataset":
    """Open one split of a saved folder, of a folder of Parquet files, or of a Hub data set.

    Raises:
        TrajectoryError: it cannot be opened, or has several splits and none was named.
    """
    import datasets

    path, split = split_source(source)
    try:
        if not path.is_dir():
            data = datasets.load_dataset(str(path))
        elif any((path / name).is_file() for name in _SAVED_FILES):
            data = datasets.load_from_disk(str(path))
        elif any(path.rglob("*.parquet")):
            data = datasets.load_dataset("parquet", data_dir=str(path))  # the files' names tell the splits apart
        else:
            message = "found a folder without a saved data set; expected a CSV file or what `save_to_disk` wrote"
            raise TrajectoryError([Problem(path, None, None, message)])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, TrajectoryError):
            raise
        message = (
            f"found no file of this name, and no data set can be opened ({_first_line(error)}); expected a trajectory "
            "CSV, a folder saved by `datasets`, or a Hub data set that can be reached"
        )
        raise TrajectoryError([Problem(Path(source), None, None, message)]) from error
    if isinstance(data, Mapping):
        splits = ", ".join(data)
        if split is None and len(data) > 1:
            message = f"found the splits {splits}; expected one to be named: {source}:{next(iter(data))}"
            raise TrajectoryError([Problem(path, None, None, message)])
        if split is not None and split not in data:
            raise TrajectoryError([Problem(path, None, None, f"found the splits {splits}; expected {split}")])
        data = data[split or next(iter(data))]
    return data


def find_image_column(dataset: "Dataset") -> str | None:
    """Return the column that holds one image a row, or None."""
    import datasets

    for name, feature in dataset.features.items():
        is_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        if is_bytes or isinstance(feature, datasets.Image):
            return str(name)
    return None


def iterate_rows(dataset: "Dataset") -> Iterator[dict[str, Any]]:
    """Yield rows with images as they are stored, `{"bytes", "path"}`: nothing is decoded or encoded again."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, (datasets.Sequence, datasets.List)) and isinstance(feature.feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    yield from dataset


def read_image_bytes(value: Any) -> bytes | None:
    """Return the bytes of an image that is stored as bytes, or as `{"bytes", "path"}`; None where it has none."""
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") and Path(value["path"]).is_file():
            return Path(value["path"]).read_bytes()
        value = value.get("bytes")
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


def as_cell(value: Any) -> str:
    """Return a value as the text a CSV cell would hold."""
    if value is None:
        return ""
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def find_cache() -> Path:
    """Return the folder that embedded screenshots are written to, beside the Hub library's own cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store(data: bytes | None, folder: Path) -> tuple[str, str | None]:
    """Write a screenshot; return its file name, or what is wrong with it."""
    if data is None:
        return "", "found no image; expected a screenshot in every row"
    facts = inspect_bytes(data, "the embedded image", decode="never")
    return ("", facts.problem) if facts.problem else (store_screenshot(data, facts, folder), None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
