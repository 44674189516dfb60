"""Picture files as they are met: odd metadata never hides a picture, a cut never passes, what is invisible is told."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from trajectory_samples import build_task, build_tasks, write_trajectories

from sft.agent import AgentConfig
from sft.batches.encoder import StepEncoder
from sft.check import __main__ as check
from sft.data import rows
from sft.data.rows import check_screenshots
from sft.data.screenshots import inspect_bytes, open_screenshot, read_as_shown, read_facts, read_upright_size
from sft.models.processors import load_processor

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8))
RED_TOP = Image.new("RGB", (64, 48), (0, 0, 255))
RED_TOP.paste((255, 0, 0), (0, 0, 64, 16))
SHORT, LONG, BYTE, TEXT, RATIO, FLOAT = 3, 4, 1, 2, 5, 12
JPEG_XMP, PNG_XMP = b"http://ns.adobe.com/xap/1.0/\0", "XML:com.adobe.xmp"


def _save(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _exif(*entries, order="<"):
    """Return an EXIF block of (tag, type, count, four bytes of value) entries."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    directory = struct.pack(order + "H", len(entries))
    for tag, value_type, count, value in entries:
        directory += struct.pack(order + "HHI", tag, value_type, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + head + directory + b"\0" * 4


def _turn(value=6, order="<"):
    return 0x0112, SHORT, 1, struct.pack(order + "H", value)


ODD_EXIF = {  # a block, and whether it turns the picture
    "text where a number belongs": (_exif(_turn(), (0x0213, TEXT, 2, b"1\0")), True),
    "a date that is a ratio": (_exif(_turn(), (0x0132, RATIO, 1, b"\x26\0\0\0")), True),
    "a date that is a ratio outside the block": (_exif(_turn(), (0x0132, RATIO, 1, b"\xff\xff\0\0")), True),
    "an unknown type": (_exif((0x010F, 99, 1, b""), _turn()), True),
    "a count of billions": (_exif((0x010F, TEXT, 0xFFFFFFFF, b"\x10"), _turn()), True),
    "a pointer to itself": (_exif(_turn(), (0x8769, LONG, 1, b"\x08")), True),
    "GPS that is text": (_exif(_turn(), (0x8825, TEXT, 4, b"gps")), True),
    "a resolution of 0/0": (_exif((0x011A, RATIO, 1, b"\x26"), _turn()), True),
    "big-endian": (_exif(_turn(order=">"), order=">"), True),
    "an orientation of 32 bits": (_exif((0x0112, LONG, 1, b"\x06")), True),
    "an orientation of one byte": (_exif((0x0112, BYTE, 1, b"\x06")), True),
    "cut behind the orientation": (_exif(_turn(), (0x0132, RATIO, 1, b"\x26"))[:-10], True),
    "twice the mark before it": (b"Exif\0\0" + _exif(_turn()), True),
    "an orientation that is text": (_exif((0x0112, TEXT, 2, b"6\0")), False),
    "an orientation that is a float": (_exif((0x0112, FLOAT, 1, b"\x26")), False),
    "two orientations": (_exif((0x0112, SHORT, 2, struct.pack("<HH", 6, 6))), False),
    "orientation 0": (_exif(_turn(0)), False),
    "orientation 9": (_exif(_turn(9)), False),
    "orientation 65535": (_exif(_turn(65535)), False),
    "cut in the head": (_exif(_turn())[:10], False),
    "nothing in it": (b"Exif\0\0", False),
    "noise": (b"Exif\0\0" + bytes(RNG.integers(0, 256, 60, dtype=np.uint8)), False),
    "a directory outside the block": (b"Exif\0\0II*\0\xff\xff\xff\x7f", False),
    "half a directory": (b"Exif\0\0II*\0\x08\0\0\0\x05", False),
}


def _put_exif(image_format, exif):
    """Return RED_TOP with a block put into its file as it is."""
    if image_format == "PNG":
        return _add_png_parts(_save(RED_TOP, "PNG"), (b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return _save(RED_TOP, image_format, exif=exif, **({"lossless": True} if image_format == "WEBP" else {}))


def _add_png_parts(png, *parts, behind=False):
    """Put parts into a PNG behind its header, or behind its pixels."""
    at = len(png) - 12 if behind else 33
    added = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return png[:at] + added + png[at:]


def _is_turned(tmp_path, data):
    """Check that all that is read of a picture agrees; return whether it lies on its side."""
    (tmp_path / "x").write_bytes(data)
    facts, opened = read_facts(tmp_path / "x", "always"), open_screenshot(tmp_path / "x")
    assert facts.problem is None
    assert inspect_bytes(data, "x", "never").width_height == facts.width_height == opened.size
    assert read_upright_size(tmp_path / "x") == opened.size
    is_turned = opened.size == (48, 64)
    red, blue = ((44, 32), (4, 32)) if is_turned else ((32, 4), (32, 44))
    assert (opened.getpixel(red)[0] > 200, opened.getpixel(blue)[2] > 200) == (True, True)
    _, sent = read_as_shown(tmp_path / "x")
    with Image.open(io.BytesIO(sent)) as image:  # any reader, with or without regard for an orientation
        assert ImageOps.exif_transpose(image).size == opened.size
    return is_turned


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("exif", "is_turned"), ODD_EXIF.values(), ids=ODD_EXIF)
def test_picture_is_turned_by_its_orientation_alone_whatever_else_exif_holds(tmp_path, image_format, exif, is_turned):
    assert _is_turned(tmp_path, _put_exif(image_format, exif)) == is_turned


def _write_places():
    """Yield RED_TOP with orientation 6 in each of the places where a file may hold one."""
    exif, plain = _exif(_turn()), _save(RED_TOP, "PNG")
    profile = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    element = b"<tiff:Orientation>6</tiff:Orientation>"
    yield "JPEG, EXIF", _put_exif("JPEG", exif)
    yield "JPEG, XMP", _save(RED_TOP, "JPEG", xmp=xmp)
    yield "JPEG, XMP element", _save(RED_TOP, "JPEG", xmp=element)
    yield "JPEG, XMP beside EXIF without it", _save(RED_TOP, "JPEG", xmp=xmp, exif=_exif((0x010F, TEXT, 2, b"a\0")))
    yield (
        "JPEG, EXIF before another orientation in XMP",
        _save(RED_TOP, "JPEG", exif=exif, xmp=xmp.replace(b"6", b"3")),
    )
    yield "WebP, EXIF", _put_exif("WEBP", exif)
    yield "WebP, EXIF without its mark", _put_exif("WEBP", exif.removeprefix(b"Exif\0\0"))
    yield "WebP, XMP", _save(RED_TOP, "WEBP", xmp=xmp)
    yield "PNG, eXIf", _put_exif("PNG", exif)
    yield "PNG, eXIf behind the pixels", _add_png_parts(plain, (b"eXIf", exif[6:]), behind=True)
    yield "PNG, text of ImageMagick", _add_png_parts(plain, (b"tEXt", b"Raw profile type exif\0" + profile))
    packed = b"Raw profile type exif\0\0" + zlib.compress(profile)
    yield "PNG, packed text of ImageMagick", _add_png_parts(plain, (b"zTXt", packed), behind=True)
    text = PNG_XMP.encode() + b"\0\0\0\0\0" + xmp
    yield "PNG, XMP", _add_png_parts(plain, (b"iTXt", text))
    text = PNG_XMP.encode() + b"\0\1\0\0\0" + zlib.compress(xmp)
    yield "PNG, packed XMP behind the pixels", _add_png_parts(plain, (b"iTXt", text), behind=True)


PLACES = dict(_write_places())


@pytest.mark.parametrize("data", PLACES.values(), ids=PLACES)
def test_orientation_is_found_wherever_it_stands(tmp_path, data):
    assert _is_turned(tmp_path, data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation):
    data = _add_png_parts(_save(NOISE, "PNG"), (b"eXIf", _exif(_turn(orientation))[6:]))
    (tmp_path / "x.png").write_bytes(data)
    with Image.open(tmp_path / "x.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(open_screenshot(tmp_path / "x.png")), expected)


def test_tokens_counted_are_those_of_the_turned_picture(tmp_path, tiny_checkpoints):
    xmp = b'tiff:Orientation="8"'
    (tmp_path / "turned.jpg").write_bytes(_save(Image.new("RGB", (1600, 300)), "JPEG", xmp=xmp))
    Image.new("RGB", (300, 1600)).save(tmp_path / "upright.png")
    agent = AgentConfig(max_pixels=300_000)
    encoder = StepEncoder(load_processor(tiny_checkpoints["llama4"], agent.min_pixels, agent.max_pixels), agent)
    turned, upright = (encoder.count_image_tokens(tmp_path / name) for name in ("turned.jpg", "upright.png"))
    assert turned == upright


def _write_long_parts():
    """Yield RED_TOP with parts beside its pixels that are longer, or more broken, than decoders bear."""
    text, plain = b"a" * (3 << 20), _save(RED_TOP, "PNG")
    profile = b"ICC Profile\0\0" + zlib.compress(text)
    long_text = (b"zTXt", b"k\0\0" + zlib.compress(text))
    many = [(b"zTXt", b"k\0\0" + zlib.compress(b"b" * (1 << 20)))] * 70
    for behind in (False, True):
        where = "behind the pixels" if behind else "before the pixels"
        yield (
            f"PNG, long zTXt {where}",
            _add_png_parts(plain, long_text, behind=behind),
        )
        packed = b"k\0\1\0\0\0" + zlib.compress(text)
        yield f"PNG, long iTXt {where}", _add_png_parts(plain, (b"iTXt", packed), behind=behind)
        yield f"PNG, 70 MB of packed text {where}", _add_png_parts(plain, *many, behind=behind)
        broken = [(b"zTXt", b"k\0\7no"), (b"iTXt", b"k\0\1\0"), (b"tEXt", b""), (b"zTXt", b"\xff"), (b"gAMA", b"")]
        yield f"PNG, broken parts {where}", _add_png_parts(plain, *broken, behind=behind)
    yield "PNG, long colour profile", _add_png_parts(plain, (b"iCCP", profile))
    yield "PNG, colour profile of no known method", _add_png_parts(plain, (b"iCCP", b"p\0\7x"))
    yield "PNG, animation of one frame", _add_png_parts(plain, (b"acTL", struct.pack(">II", 1, 0)))
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "no hex at all")
    yield "PNG, EXIF text without hex", _save(RED_TOP, "PNG", pnginfo=info)
    yield "JPEG, colour profile of 1 MB", _save(RED_TOP, "JPEG", icc_profile=text[: 1 << 20])
    yield "JPEG, long comment", _save(RED_TOP, "JPEG", comment=text[:65_000])
    yield "JPEG, broken list of pictures", _add_jpeg_part(_save(RED_TOP, "JPEG"), 0xE2, b"MPF\0broken")
    yield "JPEG, broken Photoshop part", _add_jpeg_part(_save(RED_TOP, "JPEG"), 0xED, b"Photoshop 3.0\x008BIM\xff")
    yield "WebP, colour profile of 1 MB", _save(RED_TOP, "WEBP", icc_profile=text[: 1 << 20])
    yield "GIF, long comment", _save(RED_TOP, "GIF", comment=text)


def _add_jpeg_part(jpeg, marker, body):
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


LONG_PARTS = dict(_write_long_parts())


@pytest.mark.parametrize("data", LONG_PARTS.values(), ids=LONG_PARTS)
def test_picture_with_long_or_broken_parts_beside_its_pixels_is_read_whole(tmp_path, data):
    assert not _is_turned(tmp_path, data)
    _, sent = read_as_shown(tmp_path / "x")
    assert len(sent) < 20_000 or data[:4] == b"RIFF"  # a server is not sent them


def _bmp_of_runs():
    """Return a BMP whose rows are packed in runs."""
    pixels = b"".join(bytes((7, (row + i) % 256)) for row in range(40) for i in range(8)) + b"\0\1"
    pixels = b"".join(pixels[i : i + 16] + b"\0\0" for i in range(0, 640, 16)) + b"\0\1"
    palette = bytes(v for i in range(256) for v in (i, 255 - i, i // 2, 0))
    header = struct.pack("<IiiHHIIiiII", 40, 56, 40, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


WHOLE = {
    "PNG": _save(NOISE, "PNG"),
    "PNG with alpha": _save(NOISE.convert("RGBA"), "PNG"),
    "PNG with a palette": _save(NOISE.convert("P"), "PNG"),
    "JPEG": _save(NOISE, "JPEG"),
    "JPEG, progressive": _save(NOISE, "JPEG", progressive=True),
    "JPEG, CMYK": _save(NOISE.convert("CMYK"), "JPEG"),
    "JPEG with a preview": _save(NOISE, "JPEG", exif=b"Exif\0\0" + _save(RED_TOP, "JPEG")),
    "JPEG of a phone": _save(NOISE, "MPO", save_all=True, append_images=[RED_TOP]),
    "WebP": _save(NOISE, "WEBP"),
    "WebP, lossless": _save(NOISE, "WEBP", lossless=True),
    "GIF": _save(NOISE, "GIF"),
    "GIF, interlaced": _save(NOISE, "GIF", interlace=1),
    "BMP": _save(NOISE, "BMP"),
    "BMP with a palette": _save(NOISE.convert("P"), "BMP"),
    "BMP, black and white": _save(NOISE.convert("1"), "BMP"),
    "BMP of runs": _bmp_of_runs(),
}


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
def test_file_cut_anywhere_is_refused_or_is_the_whole_picture(tmp_path, whole):
    """As files behind the first are checked; what passes has lost nothing but bytes behind its pixels."""
    path = tmp_path / "x"
    path.write_bytes(whole)
    expected = np.asarray(open_screenshot(path))
    lengths = [*range(0, len(whole), 7), *range(len(whole) - 12, len(whole))]
    refused = [n for n in lengths if inspect_bytes(whole[:n], "x", "if_unproven").problem]
    assert len(refused) > len(lengths) / 2
    for n in set(lengths) - set(refused):
        path.write_bytes(whole[:n])
        assert np.array_equal(np.asarray(open_screenshot(path)), expected), n


@pytest.mark.parametrize("name", ["BMP", "GIF", "WebP", "JPEG", "PNG"])
def test_half_file_behind_the_first_ones_is_found(tmp_path, name):
    paths = [tmp_path / str(i) for i in range(rows.MAX_DECODED + 2)]
    for path in paths:
        path.write_bytes(WHOLE[name])
    paths[-1].write_bytes(WHOLE[name][: len(WHOLE[name]) // 2])
    facts = check_screenshots(paths, show_progress=False)
    assert [path for path in paths if facts[path].problem] == [paths[-1]]
    assert "found a damaged image" in facts[paths[-1]].problem


def test_png_without_pixels_is_refused_though_its_checksums_are_right():
    png = WHOLE["PNG"][:33] + WHOLE["PNG"][-12:]
    assert "it has no pixels" in inspect_bytes(png, "x", "if_unproven").problem


def _with_alpha(alpha, n_visible=0):
    pixels = np.full((20, 100, 4), (40, 60, 80, alpha), np.uint8)
    pixels.reshape(-1, 4)[:n_visible, 3] = 255
    return Image.fromarray(pixels)


def _write_invisible():
    """Yield files in which no pixel is visible; the colour behind is (40, 60, 80), or the grey 80."""
    rgba = _with_alpha(0)
    yield "PNG", _save(rgba, "PNG"), (40, 60, 80)
    yield "PNG, nearly clear", _save(_with_alpha(3), "PNG"), (40, 60, 80)
    yield "WebP", _save(rgba, "WEBP", lossless=True, exact=True), (40, 60, 80)
    grey = Image.merge("LA", (Image.new("L", (100, 20), 80), Image.new("L", (100, 20), 0)))
    yield "PNG, grey with alpha", _save(grey, "PNG"), (80, 80, 80)
    palette = Image.new("P", (100, 20), 1)
    palette.putpalette([0, 0, 0, 40, 60, 80])
    yield "PNG, palette", _save(palette, "PNG", transparency=b"\xff\0"), (40, 60, 80)
    yield "GIF", _save(palette, "GIF", transparency=1), (40, 60, 80)
    yield "PNG, RGB with a clear colour", _save(rgba.convert("RGB"), "PNG", transparency=(40, 60, 80)), (40, 60, 80)
    yield "PNG, grey with a clear value", _save(Image.new("L", (9, 9), 80), "PNG", transparency=80), (80, 80, 80)
    header = struct.pack("<IiiHHIIiiII", 108, 100, 20, 1, 32, 3, 8000, 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"\0" * 52
    bmp = b"BM" + struct.pack("<IHHI", 122 + 8000, 0, 0, 122) + header + masks + bytes((80, 60, 40, 0)) * 2000
    yield "BMP of a screen capture", bmp, (40, 60, 80)


INVISIBLE = {name: (data, colour) for name, data, colour in _write_invisible()}


@pytest.mark.parametrize(("data", "colour"), INVISIBLE.values(), ids=INVISIBLE)
def test_picture_without_a_visible_pixel_is_shown_in_its_colours_and_told(tmp_path, data, colour):
    (tmp_path / "x").write_bytes(data)
    facts = read_facts(tmp_path / "x", "if_unproven")
    assert (facts.problem, facts.note) == (
        None,
        "no pixel of it is visible (alpha 0); its colours are shown without alpha",
    )
    assert open_screenshot(tmp_path / "x").getpixel((5, 5)) == colour


def test_nearly_invisible_picture_is_white_and_told():
    facts = inspect_bytes(_save(_with_alpha(0, n_visible=40), "PNG"), "x", "if_unproven")
    assert facts.note == "only 2.0% of its pixels are visible (alpha above 0); the others are shown as white"
    assert inspect_bytes(_save(_with_alpha(0, n_visible=400), "PNG"), "x", "if_unproven").note == ""


def test_check_warns_of_an_invisible_screenshot_behind_the_first_ones_with_its_row(tmp_path, capsys):
    n = rows.MAX_DECODED + 1
    csv_path = write_trajectories(tmp_path, build_task("t", "Open the study", n, n))
    for i in range(n):
        _with_alpha(255, 0).save(tmp_path / f"screens/{i}.png")
    _with_alpha(0).save(tmp_path / f"screens/{n - 1}.png")
    check.main([str(csv_path), "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(note["row"], note["image_id"]) for note in report["screenshots"]["notes"]] == [
        (n + 1, f"screens/{n - 1}.png")
    ]
    assert f"Row {n + 1}, screens/{n - 1}.png: no pixel of it is visible" in " ".join(capsys.readouterr().out.split())


def test_clean_check_of_screenshots_with_odd_metadata_is_followed_by_no_crash(tmp_path, tiny_checkpoints):
    """Every odd file of this page in one data set: what the check lets pass is encoded as training does."""
    odd = [*PLACES.values(), *LONG_PARTS.values(), *(data for data, _ in INVISIBLE.values())]
    odd += [_put_exif(image_format, exif) for image_format in ("JPEG", "PNG", "WEBP") for exif, _ in ODD_EXIF.values()]
    csv_path = write_trajectories(tmp_path, [row for i in range(2) for row in build_tasks(1, len(odd), i + 1)])
    screens = [tmp_path / f"screens/{i}.png" for i in range(len(odd))]
    for path, data in zip(screens, odd):
        path.write_bytes(data)
    check.main([str(csv_path)])
    agent = AgentConfig(min_pixels=16_384, max_pixels=65_536)
    encoder = StepEncoder(load_processor(tiny_checkpoints["qwen3_vl"], agent.min_pixels, agent.max_pixels), agent)
    for path in screens:
        grid = encoder.encode_screenshots([path])["image_grid_thw"][0]
        assert encoder.count_image_tokens(path) == int(grid.prod()) // 4


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(tmp_path, make):
    make(tmp_path / "screen.png")
    assert "found a pipe or device" in read_facts(tmp_path / "screen.png", "always").problem


def test_file_larger_than_any_picture_is_not_read(tmp_path):
    with (tmp_path / "screen.png").open("wb") as file:
        file.truncate(50_000_000_000)  # takes no room on the disk
    problem = read_facts(tmp_path / "screen.png", "always").problem
    assert "found a file of 50000000000 bytes" in problem and "expected at most" in problem
