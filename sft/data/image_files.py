"""What in a picture's file makes its pixels, which way up it stands, and is it whole? Knows neither paths nor Pillow.

A decoder is given the pixels' own parts and nothing else: a long comment, a broken EXIF block or a huge colour profile
beside them cannot keep a picture from being read, or be read in two ways by two programs.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from sft.file_kinds import LFS_BEGINNINGS

KINDS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
}
_OTHER_KINDS = {
    "a Git LFS pointer in place of a picture (run git lfs pull)": b"|".join(map(re.escape, LFS_BEGINNINGS)),
    "a TIFF image": rb"II[*+]\0|MM\0[*+]",
    "an AVIF or HEIC image": rb".{4}ftyp(avi|hei|hev|mif)",
    "a DICOM file": rb".{128}DICM",
    "a PDF file": rb"%PDF",
    "an SVG drawing": rb"\s*(<\?xml.*?)?<svg",
    "a web page": rb"\s*<(!doctype )?html",
}
_MAX_METADATA_BYTES = 1 << 20  # of one compressed text, once inflated
_ORIENTATION_TAG, _WHOLE_NUMBERS = 0x0112, {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF's type -> struct's
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>\s*)([1-8])\b""")
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.S)  # what ends the pixels of a scan


@dataclass(frozen=True)
class ImageFile:
    """A picture's file taken apart.

    `data` is the file with the parts that make its pixels alone. `orientation` is EXIF's: 1 upright, 5 to 8 on its
    side. `n_frames` is above 1 where the file itself says that it is an animation. `has_checksums` says that every
    byte of `data` has been held to one.
    """

    kind: str
    data: bytes
    orientation: int = 1
    n_frames: int = 1
    has_checksums: bool = False


class DamagedImageError(ValueError):
    """A file that is cut short or contradicts itself; the text says how."""


def find_kind(data: bytes) -> str | None:
    """Return which of `KINDS` a file is by its first bytes, or None."""
    return next((kind for kind, start in KINDS.items() if re.match(start, data, re.S)), None)


def describe_kind(data: bytes) -> str:
    """Say in words what a file is that is none of `KINDS`."""
    if not data:
        return "an empty file"
    start = data[:1000]
    found = (words for words, pattern in _OTHER_KINDS.items() if re.match(pattern, start, re.S | re.I))
    return next(found, "a file that is no image")


def take_apart(data: bytes) -> ImageFile:
    """Find the parts of a file that make its pixels; `find_kind` has told that it is one of `KINDS`.

    Raises:
        DamagedImageError: it is cut short, or a checksum is wrong.
    """
    kind = find_kind(data)
    if kind == "PNG":
        return _take_png_apart(data)
    if kind == "JPEG":
        return _take_jpeg_apart(data)
    if kind == "WEBP":
        return _take_webp_apart(data)
    return ImageFile(kind or "", data)


def _take_png_apart(data: bytes) -> ImageFile:
    """Hold every part to its checksum; keep the critical ones and `tRNS`, as the format defines them."""
    kept, exif, xmp, n_frames, has_pixels = [data[:8]], b"", b"", 1, False
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != struct.unpack(">I", data[end : end + 4])[0]:
            raise DamagedImageError(f"wrong checksum of its {kind.decode('latin-1')!r} part")
        body = data[position + 8 : end]
        has_pixels = has_pixels or kind == b"IDAT"
        is_critical = not kind[0] & 0x20
        if is_critical or (kind == b"tRNS" and not has_pixels):
            kept.append(data[position : end + 4])
        elif kind == b"eXIf":
            exif = body
        elif kind == b"acTL" and not has_pixels and length >= 4:
            n_frames = struct.unpack(">I", body[:4])[0]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _read_png_text(kind, body)
            if keyword == b"XML:com.adobe.xmp":
                xmp = text
            elif keyword == b"Raw profile type exif":  # as ImageMagick wrote it before there was eXIf
                exif = exif or _read_hex(text)
        if kind == b"IEND" and not has_pixels:
            raise DamagedImageError("it has no pixels")
        if kind == b"IEND":
            orientation = _find_orientation(exif, xmp)
            return ImageFile("PNG", b"".join(kept), orientation, n_frames, has_checksums=True)
        position = end + 4
    raise DamagedImageError("the file is cut short")


def _read_png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return keyword and text; of a compressed one as much as may count."""
    keyword, _, text = body.partition(b"\0")
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        is_compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif is_compressed:
        text = text[1:]
    if is_compressed and keyword in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        try:
            text = zlib.decompressobj().decompress(text, _MAX_METADATA_BYTES)
        except zlib.error:
            text = b""
    return keyword, text


def _read_hex(text: bytes) -> bytes:
    """Return the bytes of a raw profile: three lines of head, then hex digits."""
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""


def _take_jpeg_apart(data: bytes) -> ImageFile:
    """Keep the segments of the first picture; a phone writes a preview before and further pictures behind it."""
    kept, exif, xmp, has_scan = [data[:2]], b"", b"", False
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 2 <= len(data):
        marker = data[position + 1]
        if marker == 0xD9:
            if not has_scan:
                raise DamagedImageError("it has no pixels")
            return ImageFile("JPEG", b"".join([*kept, b"\xff\xd9"]), _find_orientation(exif, xmp))
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if length < 2 or end > len(data):
            break
        body = data[position + 4 : end]
        if marker == 0xDA:
            found = _JPEG_MARKER_IN_SCAN.search(data, end)
            if found is None:
                break
            has_scan, end = True, found.start()
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            exif = exif or body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # JFIF, Adobe: how colours are
            kept.append(data[position:end])
        position = end
    raise DamagedImageError("the file is cut short")


def _take_webp_apart(data: bytes) -> ImageFile:
    """Find the orientation; the parts beside the pixels are listed in a header, so they stay."""
    if len(data) < 12 or len(data) < (size := struct.unpack("<I", data[4:8])[0] + 8):
        raise DamagedImageError("the file is cut short")
    parts: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= size:
        kind, length = struct.unpack("<4sI", data[position : position + 8])
        parts.setdefault(kind, data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    return ImageFile("WEBP", data, _find_orientation(parts.get(b"EXIF", b""), parts.get(b"XMP ", b"")))


def _find_orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF names or else XMP; 1 where neither does."""
    if orientation := _read_exif_orientation(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")):
        return orientation
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _read_exif_orientation(tiff: bytes) -> int:
    """Return the orientation in the first directory of a TIFF block; 0 where there is none that counts.

    No other entry is looked at, so none of them, however odd, can hide it.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 0
    start = struct.unpack(order + "I", tiff[4:8])[0]
    if start + 2 > len(tiff):
        return 0
    n_entries = struct.unpack(order + "H", tiff[start : start + 2])[0]
    for position in range(start + 2, min(start + 2 + 12 * n_entries, len(tiff) - 11), 12):
        tag, value_type, count = struct.unpack(order + "HHI", tiff[position : position + 8])
        if tag == _ORIENTATION_TAG and count == 1 and value_type in _WHOLE_NUMBERS:
            value = int(struct.unpack_from(order + _WHOLE_NUMBERS[value_type], tiff, position + 8)[0])
            return value if 1 <= value <= 8 else 0
    return 0
