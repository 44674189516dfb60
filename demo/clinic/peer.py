"""A small DICOM peer (C-ECHO, C-STORE, C-FIND, C-MOVE), so that Orthanc can send and query. Knows no browsers."""

from fnmatch import fnmatchcase
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

SUCCESS, PENDING, UNKNOWN_DESTINATION = 0x0000, 0xFF00, 0xA801
LEVEL_KEYS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
NOT_COMPARED = {"QueryRetrieveLevel", "SpecificCharacterSet"}
STORED_AS = {"ModalitiesInStudy": "Modality"}


def is_match(dataset: Dataset, query: Dataset) -> bool:
    """Tell whether every non-empty key of `query` fits: `*` and `?` wildcards, `a-b` date ranges, UID lists."""
    for element in query:
        if element.keyword in NOT_COMPARED or element.VR == "SQ" or not element.value:
            continue
        found = str(dataset.get(STORED_AS.get(element.keyword, element.keyword), ""))
        wanted = [str(value) for value in element.value] if element.VM > 1 else [str(element.value)]
        if element.VR == "DA" and "-" in wanted[0]:
            first, last = wanted[0].split("-")
            if not (first or "0") <= found <= (last or "9"):
                return False
        elif not any(fnmatchcase(found.lower(), value.lower()) for value in wanted):
            return False
    return True


class Peer:
    """A DICOM node that holds some files and forgets what it is sent.

    Args:
        files: what it answers queries with.
        aet: its application entity title.
        port: where it listens, on 127.0.0.1.
        destinations: application entity title -> port on 127.0.0.1, for C-MOVE.
    """

    def __init__(self, files: list[Path], aet: str, port: int, destinations: dict[str, int]):
        self.datasets = [pydicom.dcmread(path) for path in files]
        self.destinations = destinations
        self.address = ("127.0.0.1", port)
        self.ae = AE(ae_title=aet)
        self.ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            self.ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        for model in (
            PatientRootQueryRetrieveInformationModelFind,
            PatientRootQueryRetrieveInformationModelMove,
            StudyRootQueryRetrieveInformationModelFind,
            StudyRootQueryRetrieveInformationModelMove,
        ):
            self.ae.add_supported_context(model)

    def start(self) -> None:
        """Listen in a background thread."""
        handlers = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, lambda event: SUCCESS),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_MOVE, self._move),
        ]
        self.server = self.ae.start_server(self.address, block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Stop listening."""
        self.server.shutdown()

    def _find(self, event):
        query, seen = event.identifier, set()
        level_key = LEVEL_KEYS[query.QueryRetrieveLevel]
        for dataset in self.datasets:
            key = dataset.get(level_key)
            if key in seen or not is_match(dataset, query):
                continue
            seen.add(key)
            yield PENDING, self._describe(dataset, query)

    def _describe(self, dataset: Dataset, query: Dataset) -> Dataset:
        answer = Dataset()
        for element in query:
            answer[element.tag] = dataset.get(element.tag, element)
        answer.QueryRetrieveLevel = query.QueryRetrieveLevel
        answer.SpecificCharacterSet = dataset.get("SpecificCharacterSet", "ISO_IR 100")
        answer.RetrieveAETitle = self.ae.ae_title
        return answer

    def _move(self, event):
        port = self.destinations.get(event.move_destination)
        if port is None:
            yield None, None
            return
        found = [dataset for dataset in self.datasets if is_match(dataset, event.identifier)]
        pairs = {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in found}
        yield "127.0.0.1", port, {"contexts": [build_context(sop, [syntax]) for sop, syntax in sorted(pairs)]}
        yield len(found)
        for dataset in found:
            yield PENDING, dataset
