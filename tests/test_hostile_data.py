"""Data that was made to harm: pictures that swell, names and ids that deceive, files that would run code."""

import json
import os
import resource
import struct
import subprocess
import sys
import unicodedata
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT
from PIL import Image
from rollout_samples import RUN
from test_forged_states import Payload
from trajectory_samples import build_task, build_tasks, format_csv, write_screenshots, write_trajectories

from eval.rollouts.run_info import write_run
from sft.check import __main__ as check
from sft.data.load import TrajectoryError, load_task_set
from sft.data.screenshots import read_facts
from sft.files import write_new, write_whole

BIG = 60_000


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width, height, bits=8, colour=0, rows=b"\0"):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _jpeg(width, height):
    frame = b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", height, width) + b"\x01\x01\x11\x00"
    return b"\xff\xd8" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\0" * 99 + b"\xff\xd9"


def _webp(width, height):
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (width - 1).to_bytes(3, "little")
    extended += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(extended) + 4) + b"WEBP" + extended


def _gif(width, height, inner=None):
    frame = b"," + struct.pack("<HHHH", 0, 0, *(inner or (width, height))) + b"\0\x02\x02\x44\x01\0;"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame


def _bmp(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 154, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 100


BOMBS = {
    "PNG": _png(BIG, BIG),
    "PNG of one bit": _png(BIG, BIG, bits=1),
    "PNG whose pixels are 200 MB more than its size": _png(8, 8, rows=b"\0" * 200_000_000),
    "PNG of 16 bits and four channels": _png(BIG, 16_000, bits=16, colour=6),
    "JPEG": _jpeg(BIG, BIG),
    "WebP": _webp(16_000, 16_000),
    "GIF": _gif(BIG, BIG),
    "GIF with a frame larger than its screen": _gif(8, 8, (BIG, BIG)),
    "BMP": _bmp(BIG, BIG),
    "BMP upside down": _bmp(BIG, -BIG),
    "a line": _png(16_000, 1),
}
STAY_SMALL = ("PNG whose pixels are 200 MB more than its size",)


@contextmanager
def _memory(n_bytes):
    """Deny this process more memory than it has and `n_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", BOMBS)
def test_picture_that_swells_is_refused_or_stays_small(tmp_path, name):
    (tmp_path / "screen.png").write_bytes(BOMBS[name])
    with _memory(300_000_000):
        facts = read_facts(tmp_path / "screen.png", "always")
    assert facts.problem is None if name in STAY_SMALL else facts.problem.startswith("found ")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "an SVG drawing"),
        (b'\n<?xml version="1.0"?>\n<!-- x -->\n<svg onload="alert(1)"/>', "an SVG drawing"),
        (b"II*\0\x08\0\0\0" + b"\0" * 99, "a TIFF image"),
        (b"MM\0*\0\0\0\x08" + b"\0" * 99, "a TIFF image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a file that is no image"),
        (b"#define x_width 9\n#define x_height 9\n", "a file that is no image"),
        (b"\0" * 128 + b"DICM" + b"\0" * 99, "a DICOM file"),
    ],
    ids=["SVG", "XML", "TIFF", "big-endian TIFF", "PostScript", "XBM", "DICOM"],
)
def test_file_in_the_disguise_of_a_picture_is_told_and_given_to_no_decoder(tmp_path, data, kind, suffix):
    (tmp_path / f"screen.{suffix}").write_bytes(data)
    assert read_facts(tmp_path / f"screen.{suffix}", "always").problem.startswith(f"found {kind}: ")


def test_names_of_255_bytes_are_read_and_written(tmp_path):
    name = "é" * 125 + "a.png"
    assert len(name.encode()) == 255
    write_screenshots(tmp_path)
    (tmp_path / "screens/0.png").rename(tmp_path / name)
    rows = [{**row, "Image_id": name} for row in build_task("t", "goal", 2)]
    (tmp_path / "tasks.csv").write_text(format_csv(rows))
    assert len(load_task_set(tmp_path / "tasks.csv", show_progress=False).trajectories) == 1
    for write in (write_whole, lambda path, text: path.write_text(text)):
        write(tmp_path / name.replace("png", "csv"), "x")
    with write_new(tmp_path / ("ü" * 127)) as folder:
        (folder / "a").write_text("x")
    (tmp_path / "tasks.csv").write_text(format_csv([{**row, "Image_id": f"a{name}"} for row in rows]))
    with pytest.raises(TrajectoryError, match="row 2: Image_id: found "):
        load_task_set(tmp_path / "tasks.csv", show_progress=False)


HIDDEN = {"bidi": "\u202e", "zero width": "\u200b", "isolate": "\u2066", "escape": "\x1b[2J", "bell": "\x07"}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("column", ["Task_id", "Instruction", "Application", "Group"])
def test_characters_that_nobody_sees_in_ids_and_goals_are_told(tmp_path, column, name, capsys):
    rows = build_task("t1", "Open the study", 2)
    for row in rows:
        row[column] += HIDDEN[name]
    with suppress(SystemExit):
        check.main([str(write_trajectories(tmp_path, [*rows, *build_task("t2", "Close it", 2)]))])
    out = " ".join(capsys.readouterr().out.split())
    code = f"U+{ord(HIDDEN[name][0]):04X}"
    is_refused = column != "Instruction" and unicodedata.category(HIDDEN[name][0]) == "Cc"
    told = f"hold characters nobody sees; the first: {code} in row 2, {column}"
    assert (f"found the control character {code} in" if is_refused else told) in out
    assert HIDDEN[name][0] not in out


def test_application_that_would_steer_a_terminal_is_refused_in_grounding_too(tmp_path):
    rows = [{**row, "Application": "", "Grounding": json.dumps({"application": "a\x1bc"})} for row in build_tasks(1)]
    with pytest.raises(TrajectoryError, match=r"row 2: Grounding: found the control character U\+001B in 'a\\x1bc'"):
        load_task_set(write_trajectories(tmp_path, rows), show_progress=False)


def test_ids_that_differ_in_what_nobody_sees_alone_are_told(tmp_path, capsys):
    rows = [*build_task("t1", "Open the study", 2), *build_task("t1\u200b", "Close it", 2)]
    check.main([str(write_trajectories(tmp_path, rows))])
    assert "the first: U+200B in row 4, Task_id" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("column", ["Task_id", "Instruction", "Output", "Image_id"])
def test_nul_is_refused_wherever_a_table_has_it(tmp_path, column):
    rows = [{**row, column: f"a\0{row[column]}"} for row in build_tasks(1)]
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(format_csv(rows))
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tasks.parquet")
    for name in ("tasks.csv", "tasks.jsonl", "tasks.parquet"):
        with pytest.raises(TrajectoryError, match="found a NUL character"):
            load_task_set(tmp_path / name, show_progress=False)


def test_refusal_does_not_steer_the_terminal(tmp_path):
    rows = [{**row, "Task_id": "a\x1b[2J\u202eb", "Output": "{\x1b]0;title\x07"} for row in build_tasks(1)]
    path = write_trajectories(tmp_path, rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tmp_path}\ntrain_csv: {path}\n")
    done = subprocess.run([sys.executable, "sft/run.py", recipe], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 2 and b"row 2: Output: found broken JSON" in done.stderr
    assert b"\x1b" not in done.stderr and b"\x07" not in done.stderr and "\u202e".encode() not in done.stderr


DEEP = "[" * 60_000 + "]" * 60_000


@pytest.mark.parametrize(
    "cell", [DEEP[:20_000], '{"a":' * 9_000, "[" * 49_999, '{"action":"CLICK","target":' + "[" * 500]
)
@pytest.mark.parametrize("column", ["Output", "Grounding", "Also_Right", "Detected_Elements"])
def test_cell_of_endless_levels_is_refused_by_its_row(tmp_path, column, cell):
    rows = [{**row, "Also_Right": "", "Detected_Elements": ""} for row in build_tasks(1)]
    rows[0][column] = cell
    write_screenshots(tmp_path)
    (tmp_path / "tasks.csv").write_text(format_csv(rows, list(rows[0])))
    with pytest.raises(TrajectoryError, match=f"row 2: {column}: found "):
        load_task_set(tmp_path / "tasks.csv", show_progress=False)


@pytest.mark.parametrize("text", [DEEP, f'{{"a":{DEEP}}}', f'[{{"a":{DEEP}}}]'])
def test_file_of_endless_levels_is_refused(tmp_path, text):
    (tmp_path / "tasks.jsonl").write_text(text)
    with pytest.raises(TrajectoryError, match="found (broken )?JSON|found more than 100 levels"):
        load_task_set(tmp_path / "tasks.jsonl", show_progress=False)


def test_cell_larger_than_any_answer_is_refused_by_its_row(tmp_path):
    rows = [{**row, "Output": json.dumps({"action": "CLICK", "target": "x" * 1_000_000})} for row in build_tasks(1)]
    with pytest.raises(TrajectoryError, match="row 2: Output: found 1000033 characters; expected at most 50000"):
        load_task_set(write_trajectories(tmp_path, rows), show_progress=False)


@pytest.mark.parametrize("name", ["tasks.csv", "tasks.jsonl", "tasks.parquet", "saved/state.json", "saved/x.parquet"])
def test_pipe_in_the_place_of_data_is_not_waited_for(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(TrajectoryError, match="found "):
        load_task_set(tmp_path / "saved" if "saved" in name else tmp_path / name, show_progress=False)


@pytest.mark.parametrize("name", ["data.py", "saved.py", "dataset.py", "__init__.py"])
def test_loading_script_in_a_data_set_is_not_run(tmp_path, name, monkeypatch):
    import datasets

    folder, proof = tmp_path / "saved", tmp_path / "was_run"
    datasets.Dataset.from_list(build_tasks(1)).save_to_disk(folder)
    write_screenshots(folder)
    script = f"open({str(proof)!r}, 'w')\n"
    (folder / name).write_text(script)
    assert len(load_task_set(folder, show_progress=False).trajectories) == 1
    (folder / "state.json").unlink()
    (folder / "dataset_info.json").unlink()
    monkeypatch.chdir(tmp_path)
    for source in (folder, "saved", "./saved", "tmp/saved"):  # and as a name of the Hub
        with pytest.raises(TrajectoryError):
            load_task_set(source, show_progress=False)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["arrow.py_extension_type", "arrow.json", "theirs"])
def test_pickled_type_of_a_column_is_not_loaded(tmp_path, kind):
    import pickle

    proof = tmp_path / "was_run"
    rows = build_tasks(1)
    marks = {b"ARROW:extension:name": kind.encode(), b"ARROW:extension:metadata": pickle.dumps(Payload(proof))}
    table = pyarrow.Table.from_pylist(rows)
    fields = [f.with_metadata(marks) if f.name == "Group" else f for f in table.schema]
    write_screenshots(tmp_path)
    pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), tmp_path / "tasks.parquet")
    with pyarrow.ipc.new_file(str(tmp_path / "tasks.arrow"), pyarrow.schema(fields)) as writer:
        writer.write_table(table.cast(pyarrow.schema(fields)))
    for name in ("tasks.parquet", "tasks.arrow"):
        try:
            load_task_set(tmp_path / name, show_progress=False)
        except TrajectoryError as error:
            assert "found" in str(error)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["run.json.tmp", ".run.json.tmp", "run.json"])
def test_link_in_an_output_folder_is_not_written_through(tmp_path, name):
    private, folder = tmp_path / "private", tmp_path / "run"
    private.write_text("mine")
    folder.mkdir()
    (folder / name).symlink_to(private)
    write_run(folder, RUN)
    assert private.read_text() == "mine"
    assert not (folder / "run.json").is_symlink()


def test_picture_of_a_trusted_format_is_decoded_by_its_own_decoder_alone(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tiff")
    data = b"\x89PNG\r\n\x1a\n" + (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "a.png").write_bytes(data)
    assert read_facts(tmp_path / "a.png", "always").problem.startswith("found a damaged image")
