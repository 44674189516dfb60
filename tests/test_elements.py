"""Elements found by OCR: from pixels alone, each screenshot once, alike in training and rollout, never cut unsaid."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont
from trajectory_samples import TINY_AGENT, build_tasks, format_csv

from benchmarks.elements import compare
from sft.check.describe import describe
from sft.check.notices import list_warnings
from sft.data import elements_file
from sft.data.data_notes import list_data_notes
from sft.data.elements_file import find_maker, write_elements_file
from sft.data.load import load_task_set, load_trajectories, read_table, read_task_set
from sft.data.problems import TrajectoryError
from sft.data.train_val import describe_tasks
from sft.elements import __main__ as command
from sft.elements import detector, screens
from sft.elements.detector import Detection, ElementDetector, describe_detector, fit_cell, sort_by_reading
from sft.elements.screens import detect_elements, give_elements
from sft.errors import UserError
from sft.files import hash_file, write_whole
from sft.split import __main__ as split

GROUNDED = replace(TINY_AGENT, use_grounding=True)
needs_ocr = pytest.mark.skipif(
    find_spec("rapidocr") is None or find_spec("onnxruntime") is None, reason="found no rapidocr (extra ocr)"
)
TEXTS = [["Study List", "Worklist"], ["Patient Name", "Measure"], ["Save Report", "Cancel"]]


def draw_screens(folder, texts=TEXTS):
    """Write `screens/0.png`, ...: two texts beside each other and one below them."""
    (folder / "screens").mkdir()
    font = ImageFont.load_default(size=22)
    for i, (left, right) in enumerate(texts):
        image = Image.new("RGB", (640, 384), "white")
        draw = ImageDraw.Draw(image)
        for at, text in (((30, 40), left), ((380, 44), right), ((30, 200), f"Screen {i}")):
            draw.text(at, text, fill="black", font=font)
        image.save(folder / "screens" / f"{i}.png")


def build_rows(n_tasks=2):
    return [{**row, "Image_id": f"screens/{i % 3}.png"} for i, row in enumerate(build_tasks(n_tasks))]


@pytest.fixture
def data(tmp_path):
    """A CSV of two tasks on three screenshots with text on them."""
    draw_screens(tmp_path)
    (tmp_path / "data.csv").write_text(format_csv(build_rows()), encoding="utf-8")
    return tmp_path / "data.csv"


def read_column(path, column="Detected_Elements"):
    with path.open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def run_elements(data, to, *arguments):
    command.main([str(data), "--to", str(to), *arguments])
    return to


def element(name, *box):
    return {"name": name, "bbox": list(box)}


def test_elements_are_in_reading_order_line_by_line():
    """A line is what has its middle between the edges of its highest element, however its texts' heights differ."""
    lines = [
        [element("title", 10, 10, 90, 40), element("menu", 200, 14, 260, 34), element("user", 400, 22, 460, 30)],
        [element("left", 5, 50, 60, 62), element("right", 300, 47, 330, 67)],
        [element("low", 0, 64, 20, 80)],
    ]
    expected = [e["name"] for line in lines for e in line]
    mixed = [e for line in reversed(lines) for e in reversed(line)]
    assert [e["name"] for e in sort_by_reading(mixed)] == expected
    assert sort_by_reading([]) == []


def test_list_that_is_too_long_for_a_cell_loses_its_last_elements_and_says_how_many():
    elements = [element("x" * 90, i, 2, 3, 4) for i in range(1000)]
    kept = fit_cell(elements)
    assert kept.elements == tuple(elements[: len(kept.elements)]) and kept.n_left_out == 1000 - len(kept.elements) > 0
    text = json.dumps(kept.elements, separators=(",", ":"))
    assert 49_800 < len(text) <= 50_000
    assert fit_cell(elements[:3]).n_left_out == 0


def test_without_the_package_the_way_out_is_told(monkeypatch, data):
    describe_detector.cache_clear()
    monkeypatch.setattr(detector, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"found no package rapidocr.*'\.\[ocr\]'"):
        run_elements(data, data.with_name("out.csv"))
    with pytest.raises(UserError, match="rapidocr"):
        ElementDetector()


@needs_ocr
def test_column_holds_every_text_with_its_box_and_the_other_cells_stay(data, capsys):
    out = run_elements(data, data.with_name("out.csv"))
    tasks = load_trajectories(out, show_progress=False)
    for i, step in enumerate(step for task in tasks for step in task.steps):
        left, right = TEXTS[i % 3]
        assert [e["name"] for e in step.elements] == [left, right, f"Screen {i % 3}"]
        x1, y1, x2, y2 = step.elements[0]["bbox"]
        assert 20 <= x1 <= 40 and 30 <= y1 <= 50 and x2 > x1 + 80 and 55 <= y2 <= 80
        assert all(isinstance(v, int) for e in step.elements for v in e["bbox"])
    rows = zip(csv.DictReader(data.open(encoding="utf-8")), csv.DictReader(out.open(encoding="utf-8")))
    assert all(before == {k: v for k, v in after.items() if k != "Detected_Elements"} for before, after in rows)
    assert "9 elements on 3 distinct screenshots, 6 rows" in capsys.readouterr().out


@needs_ocr
def test_elements_come_from_pixels_alone(data):
    """All cells that could tell an answer are emptied, and so is an earlier column: the new column is the same."""
    expected = read_column(run_elements(data, data.with_name("out.csv")))
    labels = ("Task_id", "Slide_number", "Instruction", "Output", "Grounding", "Application", "Group")
    emptied = [{**row, **dict.fromkeys(labels, ""), "Detected_Elements": '[{"name":"no"}]'} for row in build_rows()]
    columns = [*emptied[0]]
    bare = data.with_name("bare.csv")
    bare.write_text(format_csv(emptied, columns), encoding="utf-8")
    again = run_elements(bare, data.with_name("bare_out.csv"), "--cache_dir", str(data.parent / "other"))
    assert read_column(again) == expected


@needs_ocr
def test_each_content_is_read_once_and_kept(data, monkeypatch):
    shutil.copy(data.parent / "screens/0.png", data.parent / "screens/1.png")  # two names, one content
    read = []
    detect = ElementDetector.detect
    monkeypatch.setattr(ElementDetector, "detect", lambda self, image: read.append(1) or detect(self, image))
    first = read_column(run_elements(data, data.with_name("out.csv")))
    assert len(read) == 2 and first[0] == first[1] != first[2]
    assert read_column(run_elements(data, data.with_name("out.csv"))) == first
    assert len(read) == 2
    kept = next((data.parent / ".elements_cache").iterdir())
    kept.write_text("{")
    with pytest.raises(UserError, match="found a damaged file .* delete it"):
        run_elements(data, data.with_name("out.csv"))


def test_screenshot_that_another_version_has_read_is_read_anew(tmp_path, monkeypatch):
    """Needs no OCR: what is read is noted in its place."""
    Image.new("RGB", (64, 48)).save(path := tmp_path / "screen.png")
    read = []
    for version in ("1", "1", "2", "1"):
        reader = SimpleNamespace(detect=lambda image, version=version: read.append(version) or Detection(()))
        monkeypatch.setattr(screens, "describe_detector", lambda version=version: {"version": version})
        monkeypatch.setattr(screens, "ElementDetector", lambda reader=reader: reader)
        detect_elements({hash_file(path): path}, tmp_path / "cache")
    assert read == ["1", "2"]


@needs_ocr
@pytest.mark.slow
def test_workers_find_what_one_process_finds(data):
    alone = run_elements(data, data.with_name("alone.csv"), "--cache_dir", str(data.parent / "a"))
    arguments = [data, "--to", data.with_name("both.csv"), "--cache_dir", data.parent / "b", "--workers", "2"]
    subprocess.run([sys.executable, "-m", "sft.elements", *map(str, arguments)], check=True, cwd=ROOT, timeout=120)
    assert data.with_name("both.csv").read_bytes() == alone.read_bytes()


@needs_ocr
@pytest.mark.slow
def test_killed_run_continues_where_it_was(tmp_path):
    draw_screens(tmp_path, [(f"Study {i}", f"Series {i}") for i in range(12)])
    data, cache = tmp_path / "data.csv", tmp_path / ".elements_cache"
    rows = [row for i in range(4) for row in build_tasks(1, first=i + 1)]
    data.write_text(format_csv([{**row, "Image_id": f"screens/{i}.png"} for i, row in enumerate(rows)]))
    process = subprocess.Popen([sys.executable, "-m", "sft.elements", data, "--to", tmp_path / "out.csv"], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (cache.is_dir() and any(cache.glob("*.json"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.json")}
    assert 1 <= len(kept) < 12 and not (tmp_path / "out.csv").exists()
    out = run_elements(data, tmp_path / "out.csv")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(list(cache.glob("*.json"))) == 12
    assert len(set(read_column(out))) == 12


@pytest.mark.parametrize("n_written", [0, 1])
def test_kill_while_files_are_written_leaves_no_column_without_a_maker(tmp_path, monkeypatch, n_written):
    out, written = tmp_path / "out.csv", []
    command.write_with_maker(out, "earlier\n", {"made_by": {"tool": "earlier"}})

    def write(path, data):
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(path)
        write_whole(path, data)

    for module in (command, elements_file):
        monkeypatch.setattr(module, "write_whole", write)
    with pytest.raises(KeyboardInterrupt):
        command.write_with_maker(out, "later\n", {"made_by": {"tool": "later"}})
    assert len(written) == n_written and not out.exists()
    monkeypatch.undo()
    command.refuse_to_overwrite(out, tmp_path / "data.csv")  # the same command can be given again
    command.write_with_maker(out, "later\n", {"made_by": {"tool": "later"}})
    assert find_maker(out) == {"tool": "later"}


@needs_ocr
def test_what_is_not_its_own_is_not_replaced(data):
    with pytest.raises(UserError, match="found the data itself"):
        run_elements(data, data)
    out = run_elements(data, data.with_name("out.csv"))
    run_elements(data, out)
    out.write_text(out.read_text() + "\n")
    with pytest.raises(UserError, match="not as this command wrote it"):
        run_elements(data, out)


@needs_ocr
def test_rows_without_a_usable_screenshot_are_refused_together(data):
    rows = build_rows()
    rows[1]["Image_id"], rows[4]["Image_id"] = "screens/9.png", ""
    data.write_text(format_csv(rows))
    with pytest.raises(TrajectoryError) as raised:
        run_elements(data, data.with_name("out.csv"))
    assert [(p.row, p.column) for p in raised.value.problems] == [(3, "Image_id"), (6, "Image_id")]


@needs_ocr
def test_screenshot_without_text_has_no_elements(tmp_path):
    Image.new("RGB", (640, 384), "white").save(path := tmp_path / "empty.png")
    assert [found.elements for found in detect_elements({hash_file(path): path}, None).values()] == [()]


@needs_ocr
def test_screenshot_that_was_replaced_is_kept_under_no_other_content(tmp_path):
    Image.new("RGB", (640, 384), "white").save(path := tmp_path / "new.png")
    with pytest.raises(UserError, match=r"new.png: found another picture than when it was checked"):
        detect_elements({"0" * 64: path}, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_ocr
def test_elements_detected_in_a_rollout_are_those_of_the_column(data):
    trained = load_trajectories(run_elements(data, data.with_name("out.csv")), show_progress=False)
    found = give_elements(load_trajectories(data, show_progress=False), None)
    assert [s.elements for t in found for s in t.steps] == [s.elements for t in trained for s in t.steps]


@needs_ocr
def test_predictor_finds_the_elements_that_training_had(data, tiny_checkpoints):
    from eval.policies.hf import ModelPolicy
    from eval.predictor import Predictor
    from sft.batches.encoder import StepEncoder
    from sft.models.model import load_for_inference
    from sft.models.processors import load_processor
    from sft.recipe.settings import ModelSettings

    folder = str(tiny_checkpoints["qwen3_vl"])
    model = load_for_inference(ModelSettings(folder, dtype="float32", load_in_4bit=False), None)
    processor = load_processor(folder, GROUNDED.min_pixels, GROUNDED.max_pixels)
    predictors = [Predictor(ModelPolicy(model, StepEncoder(processor, a)), a) for a in (GROUNDED, TINY_AGENT)]
    step = load_trajectories(run_elements(data, data.with_name("out.csv")), show_progress=False)[0].steps[0]
    asked, answer = [], ModelPolicy.answer
    for predictor in predictors:
        predictor.policy.answer = lambda requests, policy=predictor.policy: (
            asked.extend(requests) or answer(policy, requests)
        )
    given = predictors[0].predict_step(step.image_path, "Open", detected_elements=step.elements)
    assert predictors[0].predict_step(step.image_path, "Open", detect=True) == given
    assert asked[0].elements == asked[1].elements == step.elements
    with pytest.raises(UserError, match="detect: found a model that is shown no elements"):
        predictors[1].predict_step(step.image_path, "Open", detect=True)


@needs_ocr
@pytest.mark.slow
def test_rollout_detects_and_says_with_what(data):
    agent = data.with_name("agent.yaml")
    agent.write_text("use_grounding: true\nmax_pixels: 65536\nmin_pixels: 16384\n")
    options = [
        "--policy",
        "replay",
        "--test_csv",
        data,
        "--output_dir",
        data.parent / "results",
        "--agent_config",
        agent,
    ]
    options += ["--model_path", data.parent]
    arguments = [sys.executable, ROOT / "eval/rollout.py", *options, "--report_images", "link"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 2 and "python -m sft.elements makes it" in done.stderr
    done = subprocess.run([*map(str, arguments), "--detect"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    info = json.loads((data.parent / "results/run.json").read_text())
    assert info["detector"] == describe_detector()
    agent.write_text("use_grounding: false\n")
    done = subprocess.run([*map(str, arguments), "--detect"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("--detect: found an agent that is shown no elements")


@needs_ocr
def test_training_records_what_made_the_elements_and_parts_of_a_split_keep_it(data):
    data.write_text(format_csv(build_rows(8)))
    out = run_elements(data, data.with_name("out.csv"))
    tasks = load_task_set(out, show_progress=False)
    assert describe_tasks(tasks.trajectories, str(out), tasks.sha256)["elements"] == describe_detector()
    split.main([str(out), "--parts", "train=0.5,test=0.5"])
    assert find_maker(data.with_name("train.csv")) == describe_detector()
    data.with_name("test.csv").write_text(out.read_text() + "\n")
    assert find_maker(data.with_name("test.csv")) is None
    assert find_maker(data) is None


def test_model_shown_elements_of_another_origin_is_told_of():
    made, other = ({"tool": "rapidocr", "version": v} for v in ("3.10.0", "3.9.2"))
    assert list_data_notes({"elements": {"made_by": made, "trained_on": made}}) == []
    assert list_data_notes({"elements": {"made_by": made}}) == []  # it was not trained here
    (note,) = list_data_notes({"elements": {"made_by": made, "trained_on": other}})
    assert "trained on detected elements of rapidocr 3.9.2" in note and "of rapidocr 3.10.0" in note
    (note,) = list_data_notes({"elements": {"made_by": None, "trained_on": made}})
    assert note.endswith("here they are of unknown origin.")


def test_check_tells_of_elements_that_pixels_do_not_give_and_of_those_left_out(tmp_path):
    draw_screens(tmp_path)
    rows = [{**row, "Detected_Elements": json.dumps([element("OK", 1, 2, 3, 4)] * 3)} for row in build_rows()]
    path, columns = tmp_path / "data.csv", [*rows[0]]

    def warn(agent):
        path.write_text(format_csv(rows, columns))
        table = read_table(path)
        report = describe(table, read_task_set(table, show_progress=False), agent)
        return [w for w in list_warnings(report, shows_memory=True) if w.startswith("Detected_Elements")]

    (unknown,) = warn(GROUNDED)
    assert "nothing says what made them" in unknown
    rows[0]["Detected_Elements"] = json.dumps([element("Search", 1, 2, 3, 4)])
    assert "1 screenshots have other elements in one row than in another" in warn(GROUNDED)[1]
    left_out = warn(replace(GROUNDED, max_elements=2))[2]
    assert "prompts leave out 5 elements, in 5 steps" in left_out
    write_elements_file(path, path.read_bytes(), {"made_by": {"tool": "x"}})
    assert len(warn(GROUNDED)) == 1


def test_benchmark_counts_written_names_and_right_texts_by_hand():
    def listed(role, name, *box):
        return {"role": role, **element(name, *box)}

    page = [
        listed("button", "Save as", 0, 0, 100, 20),
        listed("link", "Patient ID:", 0, 30, 100, 50),
        listed("button", "Zoom", 200, 0, 240, 40),  # an icon: its name is not written
        listed("textbox", "Name", 0, 60, 100, 80),  # its name is a label elsewhere
        listed("heading", "x" * 60, 0, 90, 100, 110),  # cut in the list
    ]
    found = [
        element("as", 50, 2, 60, 18),
        element("SAVE", 5, 2, 40, 18),
        element("Patient lD", 5, 32, 60, 48),  # misread
        element("Q", 210, 10, 220, 20),  # the icon
        element("DOE", 5, 62, 40, 78),  # a value, not judged
    ]
    assert compare(page, found, "Viewer") == {
        "n_names": 2,
        "n_read": 1,
        "n_read_as_one": 0,
        "n_judged": 4,
        "n_right": 2,
        "n_texts": 5,
    }
