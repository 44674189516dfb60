"""The DICOM files that the clinic's known store and its peer hold: pydicom's samples."""

import hashlib
import io
from functools import cache
from pathlib import Path

import pydicom
import pydicom.data

SAMPLES = Path(pydicom.data.__file__).parent
# Read by Orthanc and by OHIF. Left out: files without Modality (OHIF's study list crashes), what OHIF cannot draw
# (JXD191021006, nuclear medicine, structured reports), and second copies of the same SOP instance.
STORE_FILES = [
    "test_files/693_J2KI.dcm",
    "test_files/CT_small.dcm",
    "test_files/MR_small.dcm",
    "test_files/examples_jpeg2k.dcm",
    "test_files/examples_rgb_color.dcm",
    "test_files/examples_overlay.dcm",
    "test_files/examples_palette.dcm",
    "test_files/examples_ybr_color.dcm",
    "test_files/SC_rgb_jpeg_gdcm.dcm",
    "test_files/rtplan.dcm",
    "charset_files/chrFren.dcm",
    "charset_files/chrGerm.dcm",
    "test_files/dicomdirtests/77654033",
    "test_files/dicomdirtests/98892001",
    "test_files/dicomdirtests/98892003",
]
# Only the peer has these, so that a query finds something that Orthanc does not hold yet.
PEER_FILES = [
    "test_files/JPEG2000.dcm",
    "test_files/rtdose.dcm",
    "test_files/liver_1frame.dcm",
    "test_files/waveform_ecg.dcm",
    "test_files/examples_overlay.dcm",
    "test_files/CT_small.dcm",
]


def find_files(names: list[str]) -> list[Path]:
    """List pydicom's sample files for names that are files or folders under its data folder."""
    paths = []
    for name in names:
        path = SAMPLES / name
        paths += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return paths


def load_without_overlay(path: Path) -> bytes:
    """Load a DICOM file without its overlay planes (groups 60xx).

    OHIF 3.12.10 raises an error on the overlay of examples_overlay.dcm and then draws no measurement on it either.
    """
    dataset = pydicom.dcmread(path)
    overlay = [element.tag for element in dataset if 0x6000 <= element.tag.group <= 0x60FF]
    if not overlay:
        return path.read_bytes()
    for tag in overlay:
        del dataset[tag]
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


@cache
def load_store_files() -> list[bytes]:
    """Load what Orthanc is given after each reset, in this order."""
    return [load_without_overlay(path) for path in find_files(STORE_FILES)]


@cache
def list_instances() -> list[str]:
    """List Orthanc's identifiers of what the known store holds, sorted."""
    contents = map(io.BytesIO, load_store_files())
    return sorted(name_instance(pydicom.dcmread(content, stop_before_pixels=True)) for content in contents)


def name_instance(dataset: pydicom.Dataset) -> str:
    """Name an instance as Orthanc does: SHA-1 of its identifiers, in five groups."""
    uids = (dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    digest = hashlib.sha1("|".join(uids).encode()).hexdigest()
    return "-".join(digest[start : start + 8] for start in range(0, 40, 8))
