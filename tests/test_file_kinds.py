"""A file of another kind than the one that was asked for is named for what it is, and how to get the right one."""

import gzip
import io
import shutil
import sqlite3
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from trajectory_samples import build_task, build_tasks, format_csv, write_trajectories

from sft.convert import __main__ as convert
from sft.data.load import TrajectoryError, load_task_set, load_trajectories
from sft.errors import UserError
from sft.recipe.recipe import RecipeError, load_yaml


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def _picture(image_format):
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, image_format)
    return file.getvalue()


def _database():
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (x)")
        return connection.serialize()


CSV_TEXT = format_csv(build_tasks(1))
KINDS = {
    "an Excel workbook": _zip("[Content_Types].xml", "xl/workbook.xml"),
    "an OpenDocument file": _zip("mimetype", "content.xml"),
    "a ZIP archive": _zip("train.csv"),
    "a gzip archive": gzip.compress(CSV_TEXT.encode()),
    "a PDF": b"%PDF-1.7\n%\xe2\xe3",
    "a picture (PNG)": _picture("PNG"),
    "a picture (JPEG)": _picture("JPEG"),
    "a picture (WebP)": _picture("WEBP"),
    "a picture (BMP)": _picture("BMP"),
    "a picture (GIF)": _picture("GIF"),
    "an SQLite database": _database(),
    "UTF-16 text": CSV_TEXT.encode("utf-16"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a web page saved from a browser": b"\n<!DOCTYPE html>\n<html lang=en><head><title>train.csv</title>",
    "a DICOM file": b"\0" * 128 + b"DICM\x02\0\0\0",
    "a Python pickle": b"\x80\x04\x95\x00\x00",
    "a recipe (YAML)": b"# the recipe\nmodel_name_or_path: demo/base\ntrain_csv: train.csv\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train"])
def test_file_of_another_kind_is_named_for_what_it_is(tmp_path, kind, name):
    (tmp_path / name).write_bytes(KINDS[kind])
    with pytest.raises(TrajectoryError) as caught:
        load_task_set(tmp_path / name, show_progress=False)
    assert f"{tmp_path / name}: found {kind}; expected a trajectory CSV: " in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "YAML" not in kind])
def test_file_of_another_kind_given_as_a_recipe_is_named(tmp_path, kind):
    (tmp_path / "recipe.yaml").write_bytes(KINDS[kind])
    with pytest.raises(RecipeError, match="expected a recipe in YAML") as caught:
        load_yaml(tmp_path / "recipe.yaml")
    assert f"found {kind}; " in str(caught.value)


def test_table_given_as_a_recipe_is_named(tmp_path):
    (tmp_path / "train.csv").write_text(CSV_TEXT)
    with pytest.raises(RecipeError, match=r"found a CSV table; .*give it as train_csv, val_csv or --test_csv"):
        load_yaml(tmp_path / "train.csv")
    parquet.write_table(pa.table({"Task_id": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(RecipeError, match="found a Parquet file"):
        load_yaml(tmp_path / "train.parquet")
    with pytest.raises(RecipeError, match="found a folder; expected a recipe"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    ("kind", "source"), [("careflow", "a CareFlow table"), ("records", "JSONL, one line per step")]
)
def test_file_of_another_kind_given_to_the_converter_is_named(tmp_path, kind, source):
    for name, content in KINDS.items():
        (tmp_path / "in").write_bytes(content)
        with pytest.raises(UserError) as caught:
            convert.main([kind, str(tmp_path / "in"), str(tmp_path / "out")])
        assert f"found {name}; expected {source}" in str(caught.value)


@pytest.mark.parametrize("kind", ["careflow", "records"])
def test_source_that_is_not_utf8_is_refused_and_not_read_with_question_marks(tmp_path, kind):
    text = '{"Task_id": "Größe"}\n' if kind == "records" else "Größe,a,b\n"
    (tmp_path / "in").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="found bytes that are not UTF-8 at position"):
        convert.main([kind, str(tmp_path / "in"), str(tmp_path / "out")])


def test_folder_without_a_saved_data_set_names_the_tables_in_it(tmp_path):
    write_trajectories(tmp_path, build_task("t", "goal"), "train.csv")
    with pytest.raises(
        TrajectoryError, match=r"found a folder without a saved data set that holds train\.csv; expected"
    ):
        load_trajectories(tmp_path, show_progress=False)
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}.csv")
    with pytest.raises(TrajectoryError, match="found a folder; expected a trajectory CSV"):
        load_trajectories(tmp_path.parent / f"{tmp_path.name}.csv", show_progress=False)
