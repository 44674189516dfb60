"""Cells that Python, numpy or pandas spelled: read where they can mean one thing only, else refused by name."""

import json
import math
import time

import numpy as np
import pandas as pd
import pytest
from conversion_samples import build_careflow_row, encode_screen
from hypothesis import given
from hypothesis import strategies as st
from trajectory_samples import build_tasks, write_trajectories

from sft.actions import Action
from sft.convert import __main__ as convert
from sft.data.cells import read_elements, read_grounding
from sft.data.literals import is_missing, read_literal
from sft.data.load import load_trajectories
from sft.data.memory_audit import MemoryCell, read_cell

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_value_is_read_from_json_and_from_pythons_spelling_alike(value):
    assert read_literal(json.dumps(value)) == value
    assert read_literal(str({"cell": value})) == {"cell": value}


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=5))
def test_numpys_list_of_texts_is_that_list(names):
    assert read_literal(str(np.array(names, dtype=object))) == names
    assert read_literal(repr(np.array(names, dtype=object))) == names


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['shot1.png' 'shot2.png']", ["shot1.png", "shot2.png"]),
        ("['shot1.png'\n 'shot2.png']", ["shot1.png", "shot2.png"]),
        ("[\"it's.png\" 'b.png']", ["it's.png", "b.png"]),
        ("('a.png', 'b.png')", ["a.png", "b.png"]),
        ("('a.png',)", ["a.png"]),
        ("[10 20. 90 40]", [10, 20, 90, 40]),
        ("[[1 2]\n [3 4]]", [[1, 2], [3, 4]]),
        ("array([10, 20], dtype=int32)", [10, 20]),
        ("array([], shape=(0, 4), dtype=float64)", []),
        ("{'box': array([1., 2.]), 'n': np.float64(1.5), 't': np.str_('x'), 'b': np.True_}",
         {"box": [1, 2], "n": 1.5, "t": "x", "b": True}),
        ("[{'name': 'OK', 'bbox': [1, 2, 3, 4]}\n {'name': 'Back'}]",
         [{"name": "OK", "bbox": [1, 2, 3, 4]}, {"name": "Back"}]),
        ("{'a': null, 'b': true}", {"a": None, "b": True}),
        (r"{'path': 'C:\\shots', 'quote': 'it\'s'}", {"path": "C:\\shots", "quote": "it's"}),
    ],
)  # fmt: skip
def test_spelling_of_python_and_numpy_is_read(text, value):
    assert read_literal(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("['a', 'b' 'c']", "found a list with a comma missing between two items; expected JSON: write the cell with"),
        ("{'a': ['x' 'y']}", "found a list with a comma missing"),
        ("['a' ... 'z']", r"found a list that was shortened with '\.\.\.'; expected all of it: write the cell with"),
        ("{'t': Timestamp('2024-01-01')}", r"found Python's Timestamp\(\.\.\.\), which JSON has no word for"),
        ("{'t': datetime.date(2024, 1, 1)}", r"found Python's datetime\.date\(\.\.\.\)"),
        ("{'a', 'b'}", "found a Python set, which has no order; expected a list"),
        ("{'a': b'x'}", "found Python's bytes b'x'; expected JSON"),
        ("{1: 'a'}", "found the key 1; expected text in quotes"),
        ("{'a': 1, 'a': 2}", "found the key 'a' twice in one object; expected it once"),
        ('{"a": 1, "a": 2}', "found the key 'a' twice in one object; expected it once"),
        ("{'a': <object at 0x7f>}", "found broken JSON .* expected JSON: write the cell with json.dumps"),
        ('{"a": ', "found broken JSON .* expected valid JSON"),
        ("CLICK", "found broken JSON .* expected valid JSON"),
        ("('a')", "found broken JSON"),
        (r"{'a': '\d'}", "found broken JSON"),
        ("[" * 50_000, "found broken JSON"),
        ("{'a':" * 50, "found more than 16 levels of JSON; expected fewer"),
    ],
)
def test_what_can_mean_two_things_or_nothing_is_refused_by_its_name(text, message):
    with pytest.raises(ValueError, match=message):
        read_literal(text)


@pytest.mark.parametrize("text", ["{'a': " * 8_000, "['a' " * 8_000, "{'a': '" + "\\" * 49_000, "'" * 49_999])
def test_cell_of_any_content_is_read_or_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(ValueError, match="found"):
        read_literal(text)
    assert time.perf_counter() - started < 2


def test_number_that_is_none_is_told_apart_from_a_missing_cell():
    assert math.isnan(read_literal("{'scale': nan}")["scale"])
    assert all(map(is_missing, ("", " ", "nan", "NaN", "None", "null", "<NA>", "NaT")))
    assert not any(map(is_missing, ("{}", "Nancy", "0", "-")))


def _write(folder, spell):
    rows = [
        {**row, "Output": spell(json.loads(row["Output"])), "Grounding": spell(json.loads(row["Grounding"]))}
        for row in build_tasks(3)
    ]
    return load_trajectories(write_trajectories(folder, rows), show_progress=False)


def test_table_of_python_objects_gives_the_tasks_of_the_same_table_in_json(tmp_path):
    """`str(dict)` in a cell is what `DataFrame.to_csv` writes of a column of dicts."""
    from_json, from_python = _write(tmp_path / "a", json.dumps), _write(tmp_path / "b", str)
    assert [[(s.gold, s.grounding) for s in t.steps] for t in from_python] == [
        [(s.gold, s.grounding) for s in t.steps] for t in from_json
    ]


def test_index_column_of_pandas_changes_nothing(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(2))
    plain = load_trajectories(path, show_progress=False)
    pd.read_csv(path).to_csv(tmp_path / "with_index.csv")
    pd.read_csv(tmp_path / "with_index.csv").to_csv(tmp_path / "twice.csv")  # "Unnamed: 0" beside a nameless one
    for name in ("with_index.csv", "twice.csv"):
        read = load_trajectories(tmp_path / name, show_progress=False)
        assert [(t.task_id, t.instruction, len(t.steps)) for t in read] == [
            (t.task_id, t.instruction, len(t.steps)) for t in plain
        ]


def test_blank_record_that_pandas_numbered_is_no_row(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(2))
    frame = pd.read_csv(path)
    pd.concat([frame, pd.DataFrame([{}, {}])], ignore_index=True).to_csv(tmp_path / "blank.csv")
    assert [len(t.steps) for t in load_trajectories(tmp_path / "blank.csv", show_progress=False)] == [3, 3]


def test_grounding_and_elements_are_read_in_any_spelling():
    grounding = read_grounding("{'bbox': array([1, 2, 3, 4]), 'screen': (320, 200), 'application': None}")
    assert (grounding.bbox, grounding.screen_wh) == ((1, 2, 3, 4), (320, 200))
    assert read_elements("[{'name': 'OK', 'bbox': [1, 2, 3, 4]}]") == ({"name": "OK", "bbox": [1, 2, 3, 4]},)
    assert read_elements("nan") == ()
    assert read_elements('{"name": ["OK", "Back"], "bbox": [[1, 2, 3, 4], null]}') == (
        {"name": "OK", "bbox": [1, 2, 3, 4]},
        {"name": "Back"},
    )


def test_memory_column_of_python_objects_is_audited_like_one_of_json():
    cells = [
        MemoryCell(2, spell({"last_action": "CLICK", "last_target": "Layout"}), Action("CLICK", "Layout"), (), "goal")
        for spell in (json.dumps, str)
    ]
    assert [read_cell(cell).tells for cell in cells] == ["own step", "own step"]


@pytest.mark.parametrize("names", [str, lambda names: str(np.array(names)), json.dumps, ";".join])
@pytest.mark.parametrize("has_names", [True, False])
def test_careflow_table_that_pandas_wrote_is_converted(tmp_path, names, has_names):
    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    if not has_names:
        data["trajectory"] = [{k: v for k, v in step.items() if k != "screenshot"} for step in data["trajectory"]]
    (tmp_path / "shots").mkdir()
    for i in range(1, 6):
        (tmp_path / f"shots/shot{i}.png").write_bytes(encode_screen(i))
    row = {"task_id": "s1", "instruction": "go", "json_data": str(data)}
    row["image_sequence"] = names([f"shot{i}.png" for i in range(1, 6)])
    pd.DataFrame([row]).to_csv(tmp_path / "table.csv", index=False)
    convert.main(
        ["careflow", str(tmp_path / "table.csv"), str(tmp_path / "o"), "--images_dir", str(tmp_path / "shots")]
    )
    (task,) = load_trajectories(tmp_path / "o/data.csv", show_progress=False)
    assert [s.image_path.read_bytes() for s in task.steps] == [encode_screen(i) for i in range(1, 6)]


def test_list_of_images_that_cannot_be_read_is_named(tmp_path):
    row = {"task_id": "s1", "instruction": "go", "json_data": build_careflow_row(1)["json_data"]}
    pd.DataFrame([{**row, "image_sequence": "['shot1.png' ... 'shot9.png']"}]).to_csv(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="the names of the images: found a list that was shortened"):
        convert.main(["careflow", str(tmp_path / "table.csv"), str(tmp_path / "out")])


def test_images_column_of_texts_is_a_list_of_names(tmp_path):
    row = {"task_id": "s1", "instruction": "go", "json_data": build_careflow_row(1)["json_data"]}
    (tmp_path / "shots").mkdir()
    for i in range(1, 6):
        (tmp_path / f"shots/a{i}.png").write_bytes(encode_screen(i))
    pd.DataFrame([{**row, "images": str([f"a{i}.png" for i in range(1, 6)])}]).to_csv(tmp_path / "table.csv")
    flags = ["--images_dir", str(tmp_path / "shots")]
    convert.main(["careflow", str(tmp_path / "table.csv"), str(tmp_path / "out"), *flags])
    (task,) = load_trajectories(tmp_path / "out/data.csv", show_progress=False)
    assert [s.image_path.read_bytes() for s in task.steps] == [encode_screen(i) for i in range(1, 6)]
