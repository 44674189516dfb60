"""A target's box: empty is none, upside down is refused, one that cannot be right is told with its rows."""

import json

import pytest
from trajectory_samples import build_task, write_trajectories

from sft.check import __main__ as check
from sft.data.boxes import find_doubts
from sft.data.cells import Grounding, read_box, read_grounding, read_screen

PICTURE = (320, 192)  # of the sample screenshots


@pytest.mark.parametrize(
    "cell",
    [
        "", " ", "null", "nan", "NaN", "None", "{}", "[]", '""', "[null]", "[None]", "np.nan",
        '{"bbox": []}', '{"bbox": null}', '{"bbox": ""}', '{"bbox": [null, null, null, null]}', '{"bbox": {}}',
        '{"bbox": [NaN, NaN, NaN, NaN]}', '{"bbox": NaN}', "{'bbox': nan}", '{"bbox": "null", "screen": "nan"}',
        '{"bbox": [], "screen": []}', '{"screen": [null, null]}', '{"screen": ""}',
    ],
)  # fmt: skip
def test_empty_box_and_screen_are_none(cell):
    assert read_grounding(cell) == Grounding(None, None)


@pytest.mark.parametrize("part", ["bbox", "screen", "note"])
def test_cell_of_nine_hundred_levels_is_refused_in_words(part):
    with pytest.raises(ValueError, match="found more than 100 levels of JSON; expected fewer"):
        read_grounding(f'{{"{part}": {"[" * 900}{"]" * 900}}}')


def test_box_and_screen_are_read():
    assert read_box([1, 2, 3.5, 4]) == (1, 2, 3.5, 4)
    assert read_box([1, 2, 1, 2]) == (1, 2, 1, 2)
    assert read_screen([1280.0, 800.0]) == (1280, 800)


@pytest.mark.parametrize(
    "box",
    [[20, 10, 19, 90], [10, 90, 20, 89], [1, 2, 3], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], [1, 2, 3, None],
     [True, 2, 3, 4], [0, 0, 1e6, 1], "1,2,3,4", 7],
)  # fmt: skip
def test_box_that_is_none_is_refused(box):
    with pytest.raises(ValueError, match=r"found bbox .*; expected \[x1, y1, x2, y2\] in pixels with x1 <= x2 and"):
        read_box(box)


@pytest.mark.parametrize("screen", [[0, 0], [1280], [1280, "800"], [-1280, 800], "1280x800"])
def test_screen_that_is_none_is_refused(screen):
    with pytest.raises(ValueError, match=r"found screen .*; expected \[width, height\] in pixels"):
        read_screen(screen)


@pytest.mark.parametrize(
    ("box", "screen", "doubts"),
    [
        ((10, 20, 90, 40), PICTURE, []),
        ((0, 0, 320, 192), PICTURE, []),
        ((0, 0, 321, 193), PICTURE, []),  # rounded up
        ((10, 20, 322, 40), PICTURE, ["outside"]),
        ((10, 20, 90, 194), PICTURE, ["outside"]),
        ((-2, 20, 90, 40), PICTURE, ["outside"]),
        ((10, -2, 90, 40), PICTURE, ["outside"]),
        ((1006, 170, 1203, 223), PICTURE, ["outside"]),
        ((1006, 170, 1203, 223), None, ["outside"]),  # without a screen the box is the picture's
        ((1006, 170, 1203, 223), (1280, 768), []),  # the picture's shape at another scale
        ((10, 20, 90, 40), (1280, 800), ["shape"]),
        ((10, 20, 90, 40), (192, 320), ["shape"]),
        ((10, 20, 10, 40), PICTURE, ["no area"]),
        ((10, 20, 90, 20), PICTURE, ["no area"]),
        ((0, 0, 0, 0), PICTURE, ["no area"]),
        ((0.12, 0.3, 0.4, 0.5), PICTURE, ["shares"]),
        ((0.12, 0.3, 0.4, 0.5), None, ["shares"]),
        ((0.12, 0.3, 0.4, 0.5), (1, 1), []),  # a screen of shares too
        (None, (100, 100), ["shape"]),
        (None, None, []),
    ],
)
def test_box_and_screen_that_cannot_be_right_are_doubted(box, screen, doubts):
    assert find_doubts(box, screen, PICTURE) == doubts


def test_doubts_are_counted_and_told_with_their_rows(tmp_path, capsys):
    rows = build_task("t1", "goal", 9)
    boxes = {2: [400, 20, 500, 40], 4: [0.1, 0.2, 0.3, 0.4], 5: [10, 20, 10, 20], 9: [1, 2, 3, 400]}
    for number, row in enumerate(rows, start=2):
        screen = [320, 320] if number == 7 else [320, 192]
        row["Grounding"] = json.dumps({"bbox": boxes.get(number, []), "screen": screen})
    check.main([str(write_trajectories(tmp_path, rows)), "--json", str(tmp_path / "report.json")])  # no problem
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["boxes"] == {
        "outside": {"n": 2, "rows": [2, 9]},
        "shares": {"n": 1, "rows": [4]},
        "no area": {"n": 1, "rows": [5]},
        "shape": {"n": 1, "rows": [7]},
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "Grounding: a box outside its screen in 2 rows (2, 9): is it of another screen, or of another" in printed
    assert "Grounding: a box of shares from 0 to 1 on a screen of pixels in 1 row (4)" in printed
