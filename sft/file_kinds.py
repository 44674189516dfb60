"""What a file is, told by its content and not by its name: so that a wrong one is refused as what it is."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

LFS_BEGINNINGS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
LFS_WAY_OUT = "expected the file itself: run `git lfs pull` in its repository, or download it again"
_HEAD_BYTES = 4096
_TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")


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
_IN_COLUMN = "screenshots are PNG, JPEG or WebP, named in the column Image_id"
LFS_POINTER = FileKind("a Git LFS pointer", "fetch the file itself: git lfs pull")

# The formats of screenshots, by Pillow's names, and how such a file begins; a text may begin with BM, without a NUL.
PICTURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM(?=.{0,27}\0)",
}
_OTHER_PICTURES = (
    (rb"II[*+]\0|MM\0[*+]", FileKind("a TIFF image", _IN_COLUMN)),
    (rb".{4}ftyp(?:avi|hei|hev|mif)", FileKind("an AVIF or HEIC image", _IN_COLUMN)),
)
_KINDS = (
    *(
        (start, FileKind(f"a picture ({name.replace('WEBP', 'WebP')})", _IN_COLUMN))
        for name, start in PICTURES.items()
    ),
    *_OTHER_PICTURES,
    (rb"PAR1", PARQUET),
    (rb"ARROW1|FEA1|\xff\xff\xff\xff", ARROW),
    (rb"PK\x03\x04", FileKind("a ZIP archive", _UNPACK)),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileKind("an old Excel workbook (or another Office file)", _EXPORT)),
    (rb"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (rb"BZh", FileKind("a bzip2 archive", _UNPACK)),
    (rb"\xfd7zXZ\x00", FileKind("an xz archive", _UNPACK)),
    (rb"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _UNPACK)),
    (rb"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (rb"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (rb".{257}ustar", FileKind("a tar archive", _UNPACK)),
    (rb"%PDF-", FileKind("a PDF", "export the table as CSV (UTF-8)")),
    (rb"SQLite format 3\x00", FileKind("an SQLite database", "export the table as CSV")),
    (rb"\x93NUMPY", FileKind("a numpy array", _AS_CSV)),
    (rb"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file", _AS_CSV)),
    (rb"\x80[\x02-\x05]", FileKind("a Python pickle", _AS_CSV)),
    (rb".{128}DICM", FileKind("a DICOM file", _IN_COLUMN)),
    (rb".{4}ftyp", FileKind("a video", _IN_COLUMN)),
    (b"|".join(map(re.escape, LFS_BEGINNINGS)), LFS_POINTER),
    (rb"\s*(?:<\?xml.*?)?<svg", FileKind("an SVG drawing", _IN_COLUMN)),
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
    return _find_zip_kind(path) if head.startswith(b"PK\x03\x04") else _recognise(head)


def find_picture_format(data: bytes) -> str | None:
    """Return which of `PICTURES` a file is by its first bytes, or None."""
    return next((name for name, start in PICTURES.items() if re.match(start, data, re.S)), None)


def describe_no_picture(data: bytes) -> str:
    """Say in words what a file is that is none of `PICTURES`."""
    kind = _recognise(data[:_HEAD_BYTES])
    if kind is None or kind in (CSV, YAML):
        return "a file that is no image" if data else "an empty file"
    return f"{kind.name} ({kind.way_out})" if kind is LFS_POINTER else kind.name


def is_arrow_file(path: Path, kind: FileKind | None) -> bool:
    """Return whether a file is read as a table of Arrow: by its content or, to be refused as one, by its name."""
    return kind in (PARQUET, ARROW) or (kind is None and path.suffix.lower() in _TABLE_SUFFIXES)


def is_lfs_pointer(data: bytes) -> bool:
    """Say whether a file's first bytes are those of a Git LFS pointer, which stands where a file was not fetched."""
    return data.startswith(LFS_BEGINNINGS)


def is_picture(data: bytes) -> bool:
    """Return whether bytes begin as a picture does, be it of a format that no screenshot may have."""
    starts = (*PICTURES.values(), *(start for start, _ in _OTHER_PICTURES))
    return any(re.match(start, data, re.S) for start in starts)


def _recognise(head: bytes) -> FileKind | None:
    kind = next((kind for start, kind in _KINDS if re.match(start, head, re.S)), None)
    return kind or _find_text_kind(head)


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
