"""Parquet and Arrow files and data sets of `datasets`, opened, and their rows as plain values. Converts no format.

Arrow gives every object of a column the keys of all of them, null where a row had none: `{"a": 1}` beside `{"b": 2}`
comes back as `{"a": 1, "b": null}`. A null that stands under a key of such an object is therefore no value but a key
the row does not have, and is left out. In a list, a map and a JSON text a null is what the user wrote, and stays.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.problems import Problem, TrajectoryError
from sft.data.table import EXACT, looks_like_dataset, split_source
from sft.file_kinds import PARQUET, find_kind
from sft.json_text import parse_json

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_SAVED_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")
# What `datasets` raises on folders that are none, and on files of a folder that are not what it wrote
_NOT_A_DATA_SET = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)
_BATCH = 8  # rows read at once: a task's pictures can be 30 MB


@dataclass(frozen=True)
class ArrowTable:
    """An opened table. `features` is how `datasets` describes its columns, empty where the file does not say."""

    path: Path
    schema: "pyarrow.Schema" = field(repr=False)
    features: Mapping[str, Any] = field(repr=False)
    n_rows: int
    read_batches: Callable[[], Iterator["pyarrow.RecordBatch | pyarrow.Table"]] = field(repr=False)


def open_table(source: str | Path) -> ArrowTable:
    """Open a Parquet or Arrow file, a folder that `datasets` saved or one of Parquet files, or a Hub data set.

    Raises:
        TrajectoryError: it cannot be opened, or has several splits and none was named.
    """
    return _open_dataset(str(source)) if looks_like_dataset(source) else _open_file(Path(source))


def iterate_rows(table: ArrowTable) -> Iterator[dict[str, Any]]:
    """Yield rows as plain values; pictures stay as they are stored, as bytes or `{"bytes", "path"}`.

    Raises:
        TrajectoryError: the file is damaged, or holds what Python has no value for.
    """
    with _name_what_cannot_be_read(table.path):
        readers = [_choose_reader(column.type, table.features.get(column.name)) for column in table.schema]
        for batch in table.read_batches():
            columns = [map(read, column.to_pylist()) for read, column in zip(readers, batch.columns)]
            yield from (dict(zip(table.schema.names, values)) for values in zip(*columns))


def read_first_values(table: ArrowTable, column: str) -> list[Any]:
    """Return the first values of a column, as they are stored.

    Raises:
        TrajectoryError: as `iterate_rows`.
    """
    with _name_what_cannot_be_read(table.path):
        first = next(iter(table.read_batches()), None)
        return [] if first is None else list(first.column(column).to_pylist())


@contextmanager
def _name_what_cannot_be_read(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, TrajectoryError):
            raise
        message = f"found rows that cannot be read ({_first_line(error)}); restore the file, or save them as text"
        raise TrajectoryError([Problem(path, None, None, message)]) from error


def _open_file(path: Path) -> ArrowTable:
    import pyarrow
    from pyarrow import feather, ipc, parquet

    try:
        if find_kind(path) is PARQUET or path.suffix.lower() == ".parquet":
            file = parquet.ParquetFile(path)
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
            return ArrowTable(path, schema, _read_features(schema), n_rows, lambda: file.iter_batches(_BATCH))
        try:
            table = feather.read_table(path, memory_map=True)
        except pyarrow.ArrowInvalid:  # a stream, as `datasets` caches tables
            with pyarrow.memory_map(str(path)) as stream:
                table = ipc.open_stream(stream).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return ArrowTable(
        path, table.schema, _read_features(table.schema), table.num_rows, lambda: iter(table.to_batches(_BATCH))
    )


def _open_dataset(source: str) -> ArrowTable:
    data = _load_dataset(source).with_format("arrow")
    features: Mapping[str, Any] = data.features.to_dict()
    return ArrowTable(Path(source), data.features.arrow_schema, features, len(data), lambda: data.iter(_BATCH))


def _load_dataset(source: str) -> "Dataset":
    import datasets

    path, split = split_source(source)
    try:
        if not path.is_dir():
            data = datasets.load_dataset(str(path))
        elif any((path / name).is_file() for name in _SAVED_FILES):
            _refuse_files_elsewhere(path)
            data = datasets.load_from_disk(str(path))
        elif any(path.rglob("*.parquet")):
            data = datasets.load_dataset("parquet", data_dir=str(path))  # the files' names tell the splits apart
        else:
            tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".csv", ".jsonl", ".json"))
            listed = f" that holds {', '.join(tables[:5])}" if tables else ""
            expected = "one of these files" if tables else "a CSV file"
            message = (
                f"found a folder without a saved data set{listed}; expected {expected} or what `save_to_disk` wrote"
            )
            raise TrajectoryError([Problem(path, None, None, message)])
    except (*_NOT_A_DATA_SET, datasets.exceptions.DatasetsError) as error:
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


def _refuse_files_elsewhere(path: Path) -> None:
    """Make sure that a saved data set names nothing outside its own folder: `datasets` opens what it names.

    Raises:
        TrajectoryError: it names a path.
    """
    named: dict[Path, list[str]] = {}
    for file in sorted(found for found in path.rglob("state.json") if found.is_file()):
        listed = parse_json(file.read_text(encoding="utf-8")).get("_data_files") or []
        named[file] = [data["filename"] for data in listed]
    if (splits := path / "dataset_dict.json").is_file():
        named[splits] = parse_json(splits.read_text(encoding="utf-8"))["splits"]
    for file, names in named.items():
        if outside := [name for name in names if Path(name).name != name or name == ".."]:
            message = f"found {outside[0]!r} in {file.relative_to(path)}; expected names beside it: save it anew"
            raise TrajectoryError([Problem(path, None, None, message)])


def _read_features(schema: "pyarrow.Schema") -> Mapping[str, Any]:
    """Return the description of the columns that `datasets` leaves in a file's metadata."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, Mapping) else {}


_Reader = Callable[[Any], Any]


def _choose_reader(kind: "pyarrow.DataType", feature: Any, is_nested: bool = False) -> _Reader:
    """Return what turns a value of a column into a plain one; see the first lines of this file."""
    import pyarrow
    from pyarrow import types

    described = feature if isinstance(feature, Mapping) else {}
    label = described.get("_type")
    if isinstance(kind, pyarrow.JsonType):
        return _read_json if is_nested else _read_number  # a JSON text in a cell of its own is read where it is used
    if isinstance(kind, pyarrow.ExtensionType):
        return _choose_reader(kind.storage_type, feature, is_nested)
    if label == "ClassLabel":
        return partial(_read_class, list(described.get("names") or ()))
    if types.is_struct(kind):
        inner = {} if isinstance(label, str) else described
        return partial(_read_struct, {f.name: _choose_reader(f.type, inner.get(f.name), True) for f in kind})
    if types.is_map(kind):
        return partial(_read_map, _choose_reader(kind.item_type, None, True))
    if any(is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        items = described.get("feature", feature[0] if isinstance(feature, list) and feature else None)
        return partial(_read_list, _choose_reader(kind.value_type, items, True))
    return _read_short_float if types.is_float32(kind) or types.is_float16(kind) else _read_number


def _read_struct(readers: Mapping[str, _Reader], value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    plain = {name: readers[name](v) for name, v in value.items()}
    return {name: v for name, v in plain.items() if v is not None}


def _read_map(read: _Reader, value: Sequence[tuple[Any, Any]] | None) -> dict[str, Any] | None:
    return None if value is None else {str(key): read(v) for key, v in value}


def _read_list(read: _Reader, value: Sequence[Any] | None) -> list[Any] | None:
    return None if value is None else [read(v) for v in value]


def _read_class(names: Sequence[str], value: int | None) -> str | None:
    return names[value] if value is not None and 0 <= value < len(names) else None


def _read_json(value: str | None) -> Any:
    return None if value is None else parse_json(value)


def _read_short_float(value: float | None) -> Any:
    """Return a number of single precision as it is written: 1.1, not the 1.10000002 that its bits stand for."""
    return None if value is None else _read_number(float(str(np.float32(value))))


def _read_number(value: Any) -> Any:
    """Return a number as it was before its column made a float of it: for a row that lacks one, or has a fraction."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and abs(value) < EXACT else value
    return value


def _damaged(path: Path, error: Exception) -> TrajectoryError:
    kind = "Parquet file" if path.suffix.lower() == ".parquet" else "Parquet or Arrow file"
    message = f"found a file that is no {kind} ({_first_line(error)}); restore it"
    return TrajectoryError([Problem(path, None, None, message)])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
