"""What a file is, told by its content and not by its name: so that a wrong one is refused as what it is."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

LFS_BEGINNINGS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
LFS_WAY_OUT = "expected the file itself: run `git lfs pull` in its repository, or download it again"
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class FileKind:
    """`name` with its article, as in "an Excel workbook"; `way_out` says how to get the file that was meant."""

    name: str
    way_out: str


PARQUET = FileKind("a Parquet file", "give it where a table is read")
ARROW = FileKind("an Arrow file", "give it where a table is read")
JSON = FileKind("JSON", "give it where a table is read")
CSV = FileKind("a CSV table", "give it as train_csv, val_csv or --test_csv")
YAML = FileKind("a recipe (YAML)", "give a recipe before all flags, or with --recipe")

_EXPORT = "export the sheet as CSV (UTF-8)"
_UNPACK = "unpack it first"
_AS_CSV = "write its rows as CSV or Parquet"
_MAGIC = (
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"FEA1", ARROW),
    (b"\xff\xff\xff\xff", ARROW),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileKind("an old Excel workbook (or another Office file)", _EXPORT)),
    (b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (b"BZh", FileKind("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\x00", FileKind("an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (b"%PDF-", FileKind("a PDF", "export the table as CSV (UTF-8)")),
    (b"SQLite format 3\x00", FileKind("an SQLite database", "export the table as CSV")),
    (b"\x93NUMPY", FileKind("a numpy array", _AS_CSV)),
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file", _AS_CSV)),
    *((start, FileKind("a Git LFS pointer", "fetch the file itself: git lfs pull")) for start in LFS_BEGINNINGS),
)
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_ZIP_MARKS = (
    ("xl/", FileKind("an Excel workbook", _EXPORT)),
    ("word/", FileKind("a Word document", "export the table as CSV (UTF-8)")),
    ("content.xml", FileKind("an OpenDocument file", _EXPORT)),
)
_WEB_PAGE = FileKind("a web page saved from a browser", "download the raw file")


def find_kind(path: Path) -> FileKind | None:
    """Return what a file is by its first bytes, or None where it may be any text.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _find_zip_kind(path)
    if is_picture(head):
        return FileKind(f"a picture ({_name_format(head)})", "screenshots are named in the column Image_id")
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", _UNPACK)
    if head[128:132] == b"DICM":
        return FileKind("a DICOM file", "screenshots are PNG, JPEG or WebP, named in the column Image_id")
    if head[4:8] == b"ftyp":
        return FileKind("a video", "screenshots are PNG, JPEG or WebP, named in the column Image_id")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind("a Python pickle", _AS_CSV)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None) or _find_text_kind(head)


def is_lfs_pointer(data: bytes) -> bool:
    """Say whether a file's first bytes are those of a Git LFS pointer, which stands where a file was not fetched."""
    return data.startswith(LFS_BEGINNINGS)


def is_picture(data: bytes) -> bool:
    """Return whether bytes begin as a picture does."""
    return _name_format(data) != ""


def _name_format(head: bytes) -> str:
    if head.startswith(b"RIFF"):
        return "WebP" if head[8:12] == b"WEBP" else ""
    if head.startswith(b"BM"):
        return "BMP" if b"\0" in head[:30] else ""  # text may begin with these two letters
    return next((name for magic, name in _PICTURES if head.startswith(magic)), "")


def _find_zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return FileKind("a damaged ZIP archive", "restore it and unpack it")
    for mark, kind in _ZIP_MARKS:
        if any(name.startswith(mark) for name in names):
            return kind
    return FileKind("a ZIP archive", _UNPACK)


def _find_text_kind(head: bytes) -> FileKind | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_every_second_byte_nul(head):
        return FileKind("UTF-16 text", "save the file as UTF-8")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text[:1] in ("{", "["):
        return JSON
    if re.match(r"<!doctype html|<(?:html|head|body|table|div|meta)\b", text, re.I):
        return _WEB_PAGE
    if text.startswith("<?xml"):
        return FileKind("an XML file", _AS_CSV)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and re.fullmatch(r"---|[a-z][a-z0-9_]*:(\s.*)?", lines[0].rstrip()):
        return YAML
    if lines and lines[0].count(",") >= 2 and ":" not in lines[0]:
        return CSV
    return None


def _is_every_second_byte_nul(head: bytes) -> bool:
    return len(head) >= 8 and (head[0::2].count(0) > len(head) // 3) != (head[1::2].count(0) > len(head) // 3)
