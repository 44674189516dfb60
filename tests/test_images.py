"""Odd images: each has one defined outcome, refused with words or opened as an upright RGB picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from trajectory_samples import build_tasks, write_trajectories

from sft.data.load import load_trajectories
from sft.data.screenshots import (
    inspect_bytes,
    open_screenshot,
    read_as_shown,
    read_facts,
    read_upright_size,
    store_screenshot,
)
from sft.errors import UserError


def _save(path, image, image_format="PNG", **options):
    image.save(path, image_format, **options)
    return path


def find_image_problem(path):
    return read_facts(path, "always").problem


def _corner(path):
    return open_screenshot(path).getpixel((0, 0))


def _build_png(width, height, depth, colour_type, pixels, extra=()):
    """Return a PNG of any depth and colour type (0 grey, 2 RGB, 3 palette, 4 grey and 6 RGB with alpha)."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part(*p) for p in parts)


def _forge_png(width, height):
    """Return a small PNG whose header claims any size; its checksums are right."""
    return _build_png(width, height, 8, 0, b"\0" * 1000)


def test_decompression_bomb_is_refused_from_its_header(tmp_path):
    (tmp_path / "bomb.png").write_bytes(_forge_png(60_000, 60_000))
    problem = find_image_problem(tmp_path / "bomb.png")
    assert "pixels" in problem
    assert "expected at most 40000000" in problem


def test_area_just_above_the_limit_is_refused(tmp_path):
    (tmp_path / "large.png").write_bytes(_forge_png(10_000, 4_001))
    assert "found 10000x4001 pixels" in find_image_problem(tmp_path / "large.png")


def test_image_20000_pixels_wide_is_refused(tmp_path):
    path = _save(tmp_path / "wide.png", Image.new("L", (20_000, 400)))
    assert "found 20000x400 pixels" in find_image_problem(path)
    assert "expected at most 40000000 pixels and 16384 a side" in find_image_problem(path)


def test_sliver_that_no_processor_takes_is_refused(tmp_path):
    assert "expected a side ratio of at most 100" in find_image_problem(
        _save(tmp_path / "sliver.png", Image.new("L", (2_020, 20)))
    )


def test_cmyk_is_opened_as_rgb(tmp_path):
    path = _save(tmp_path / "cmyk.jpg", Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG")
    assert find_image_problem(path) is None
    red, green, blue = _corner(path)
    assert red > 240
    assert green < 15
    assert blue < 15


def test_palette_is_opened_as_its_colours(tmp_path):
    image = Image.new("RGB", (64, 48), (12, 200, 34)).convert("P", palette=Image.Palette.ADAPTIVE)
    path = _save(tmp_path / "palette.png", image)
    assert (find_image_problem(path), _corner(path)) == (None, (12, 200, 34))


def _half_clear():
    """Return a picture whose upper half is clear and whose lower half is a colour."""
    image = Image.new("RGBA", (64, 48), (9, 9, 9, 0))
    image.paste((200, 10, 20, 255), (0, 24, 64, 48))
    return image


def test_transparent_parts_become_white(tmp_path):
    path = _save(tmp_path / "clear.png", _half_clear())
    assert (find_image_problem(path), _corner(path)) == (None, (255, 255, 255))


@pytest.mark.parametrize("value", [0, 300, 0x7F00, 0xFFFF])
def test_16_bit_grey_is_shown_by_its_high_byte(tmp_path, value):
    path = _save(tmp_path / "deep.png", Image.fromarray(np.full((48, 64), value, np.uint16)))
    assert (find_image_problem(path), _corner(path)) == (None, (value >> 8,) * 3)


WHITE = (255, 255, 255)
FIRST_PIXEL = {  # depth, colour type, the pixels of one row, further parts, what is seen of the first
    "palette with a clear entry": (8, 3, b"\0\1", [(b"PLTE", b"\x09" * 6), (b"tRNS", b"\0")], WHITE),
    "palette of one bit": (1, 3, b"\xff", [(b"PLTE", b"\x09\x09\x09\xc8\x0a\x14")], (200, 10, 20)),
    "grey with alpha, clear": (8, 4, b"\x09\0\x09\xff", [], WHITE),
    "grey with alpha, half": (8, 4, b"\0\x80", [], (127, 127, 127)),
    "grey with a clear value": (8, 0, b"\x09\x08", [(b"tRNS", b"\0\x09")], WHITE),
    "RGB with a clear colour": (8, 2, b"\x09\x08\x07\0\0\0", [(b"tRNS", b"\0\x09\0\x08\0\x07")], WHITE),
    "grey of four bits": (4, 0, b"\x77", [], (119, 119, 119)),
    "black and white": (1, 0, b"\xff", [], WHITE),
    "16-bit RGB": (16, 2, b"\x12\x34\x80\0\xff\xff", [], (0x12, 0x80, 0xFF)),
    "16-bit RGB with alpha, clear": (16, 6, b"\x12\x34\x80\0\xff\xff\0\0" + b"\xff" * 8, [], WHITE),
    "16-bit grey with alpha": (16, 4, b"\x80\0\xff\xff", [], (128, 128, 128)),
    "16-bit grey, another value clear": (16, 0, b"\x80\0", [(b"tRNS", b"\0\x80")], (128, 128, 128)),
}


@pytest.mark.parametrize(("depth", "colour_type", "row", "extra", "seen"), FIRST_PIXEL.values(), ids=FIRST_PIXEL)
def test_png_of_every_kind_is_opened_as_what_a_viewer_shows(tmp_path, depth, colour_type, row, extra, seen):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    width = max(1, len(row) * 8 // (depth * channels)) if depth >= 8 else 1
    (tmp_path / "x.png").write_bytes(_build_png(width, 1, depth, colour_type, b"\0" + row, extra))
    assert (find_image_problem(tmp_path / "x.png"), _corner(tmp_path / "x.png")) == (None, seen)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF"])
def test_clear_part_is_white_upright_or_turned(tmp_path, image_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if image_format == "GIF" else {"exif": exif}
    path = _save(tmp_path / "clear", _half_clear(), image_format, **options)
    size = (64, 48) if image_format == "GIF" else (48, 64)
    opened = open_screenshot(path)
    clear = (0, 0) if image_format == "GIF" else (47, 0)
    assert (read_facts(path, decode="always").width_height, opened.size, opened.getpixel(clear)) == (size, size, WHITE)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF"])
def test_animation_of_one_frame_is_a_still_image(tmp_path, image_format):
    path = _save(tmp_path / "still", Image.new("RGB", (64, 48), (9, 200, 9)), image_format, save_all=True)
    assert find_image_problem(path) is None
    assert _corner(path)[1] > 190


def test_jpeg_with_a_second_picture_is_its_first_one(tmp_path):
    """Phones put a preview or a gain map behind the picture (MPO, Ultra HDR): that is no animation."""
    path = _save(
        tmp_path / "phone.jpg",
        Image.new("RGB", (64, 48), "red"),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (32, 24), "blue")],
    )
    facts = read_facts(path, decode="always")
    assert (facts.problem, facts.format, facts.width_height) == (None, "JPEG", (64, 48))
    assert (open_screenshot(path).size, _corner(path)[0] > 240) == ((64, 48), True)
    assert store_screenshot(path.read_bytes(), facts, tmp_path / "out").endswith(".jpg")


@pytest.mark.parametrize("decode", ["always", "if_unproven"])
def test_jpeg_with_bytes_after_its_end_is_whole_and_one_cut_after_its_preview_is_not(decode):
    file, preview = io.BytesIO(), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.new("RGB", (16, 12)).save(preview, "JPEG")
    exif = b"Exif\0\0" + preview.getvalue()  # a header part that ends with an end marker of its own
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    assert inspect_bytes(data + b"SEFH" * 1_000, "x", decode).problem is None
    assert "damaged" in inspect_bytes(data[: len(data) // 2], "x", decode).problem


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF"])
def test_animation_is_refused(tmp_path, image_format):
    frames = [Image.new("RGB", (64, 48), (50 * i, 0, 0)) for i in range(3)]
    path = _save(tmp_path / "moving", frames[0], image_format, save_all=True, append_images=frames[1:], duration=100)
    assert "found an animation of 3 frames" in find_image_problem(path)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_exif_rotated_image_is_opened_upright(tmp_path, image_format):
    image = Image.new("RGB", (64, 48), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 64, 16))  # the top of the stored picture is red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the top becomes the right side
    path = _save(tmp_path / "turned", image, image_format, exif=exif)
    facts = read_facts(path, decode="always")
    assert (facts.problem, facts.width_height) == (None, (48, 64))
    opened = open_screenshot(path)
    assert opened.size == (48, 64)
    assert opened.getpixel((44, 32))[0] > 200
    assert opened.getpixel((4, 32))[2] > 200


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_plain_screenshot_is_sent_to_a_server_as_it_is(tmp_path, image_format):
    path = _save(tmp_path / "plain", Image.new("RGB", (64, 48), (12, 200, 34)), image_format)
    assert read_as_shown(path) == (f"image/{image_format.lower()}", path.read_bytes())


@pytest.mark.parametrize("orientation", [3, 6])
def test_turned_screenshot_is_sent_to_a_server_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (64, 48), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 64, 16))
    _check_sent_as_shown(_save(tmp_path / "turned", image, "JPEG", exif=exif))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (64, 48), (9, 9, 9, 0)),
        Image.fromarray(np.full((48, 64), 0x7F00, np.uint16)),
        Image.new("L", (64, 48), 200),
    ],
    ids=["transparent", "16-bit grey", "grey"],
)
def test_odd_screenshot_is_sent_to_a_server_as_the_model_saw_it(tmp_path, image):
    _check_sent_as_shown(_save(tmp_path / "odd.png", image))


def test_screenshot_in_a_format_that_servers_may_not_read_is_sent_as_png(tmp_path):
    _check_sent_as_shown(_save(tmp_path / "old.bmp", Image.new("RGB", (64, 48), (12, 200, 34))))


def _check_sent_as_shown(path):
    media_type, data = read_as_shown(path)
    with Image.open(io.BytesIO(data)) as sent:
        assert (media_type, sent.format, sent.mode, dict(sent.getexif())) == ("image/png", "PNG", "RGB", {})
        assert np.array_equal(np.asarray(sent), np.asarray(open_screenshot(path)))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "width_height"), [(1, (64, 48)), (3, (64, 48)), (5, (48, 64)), (6, (48, 64)), (8, (48, 64))]
)
def test_size_read_without_decoding_is_that_of_the_opened_image(tmp_path, image_format, orientation, width_height):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "turned", Image.new("RGB", (64, 48)), image_format, exif=exif)
    assert read_upright_size(path) == open_screenshot(path).size == width_height


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("decode", ["always", "if_unproven"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_file_cut_short_is_refused_even_without_decoding(image_format, decode, share):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    data = file.getvalue()
    assert inspect_bytes(data, "x", decode).problem is None
    assert inspect_bytes(data[: int(share * len(data))], "x", decode).problem is not None


def test_flipped_bit_in_a_png_is_found_by_its_checksum():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 1
    assert "wrong checksum of its 'IDAT' part" in inspect_bytes(bytes(data), "x", decode="if_unproven").problem


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_any_damage_ends_in_words_or_in_a_picture(image_format, tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(file, image_format)
    rng = np.random.default_rng(1)
    n_refused = 0
    for _ in range(300):
        data = bytearray(file.getvalue())
        for position in rng.integers(0, min(len(data), 200), 3):  # most of what a decoder reads first is there
            data[position] = rng.integers(256)
        facts = inspect_bytes(bytes(data), "x", decode="always")
        n_refused += facts.problem is not None
        if facts.problem is None:
            (tmp_path / "x").write_bytes(data)
            assert open_screenshot(tmp_path / "x").mode == "RGB"
    assert n_refused > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"hello", "found a file that is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "found a file that is no image"),
        (b"II*\0\x08\0\0\0", "found a TIFF image"),
        (b"\0\0\0\x20ftypheic", "found an AVIF or HEIC image"),
        (b"\0" * 128 + b"DICM\x02\0", "found a DICOM file"),
        (b"<!DOCTYPE html><html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "found a Git LFS pointer"),
        (b"RIFF", "found a file that is no image"),
        (b"%PDF-1.7\n", "found a PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns=', "found an SVG drawing"),
        (b"PK\x03\x04", "found a ZIP archive"),
        (b"width,height,path", "found a file that is no image"),
        (b"\x89PNG\r\n\x1a\n", "found a damaged image"),
    ],
)
def test_file_that_is_no_screenshot_is_refused(tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    assert message in find_image_problem(tmp_path / "x.png")
    with pytest.raises(UserError, match=message):
        open_screenshot(tmp_path / "x.png")


def test_folder_in_the_place_of_an_image_is_refused(tmp_path):
    assert "found no file" in find_image_problem(tmp_path)


def test_image_that_is_damaged_after_the_check_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"gone")
    with pytest.raises(
        UserError, match=r"found a file that is no image: .*x\.png; expected a PNG, JPEG, WebP, BMP or"
    ):
        open_screenshot(tmp_path / "x.png")


def test_odd_screenshot_is_told_with_row_and_column(tmp_path):
    csv_path = write_trajectories(tmp_path, build_tasks(1))
    (tmp_path / "screens/1.png").write_bytes(_forge_png(60_000, 60_000))
    with pytest.raises(UserError, match=r"tasks\.csv: row 2: Image_id: found too many pixels"):
        load_trajectories(csv_path, show_progress=False)
