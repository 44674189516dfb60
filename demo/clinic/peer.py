"""A small DICOM peer (C-ECHO, C-STORE, C-FIND, C-MOVE), so that Orthanc can send and query. Knows no browsers.

python -m demo.clinic.peer --port 8303 --destination ORTHANC=8301 --received received.jsonl FILE...
"""

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from weakref import WeakSet

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
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
# How long it takes before it keeps the first instance it is sent. Orthanc Explorer reads a job once, as soon as its
# page opens: sent to a peer that answers at once, it was shown under way or done, as chance would have it.
KEEPS_AFTER_S = 2.0
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
    """A DICOM node that holds some files; of what it is sent it notes the identifiers alone. Any title reaches it.

    Args:
        files: what it answers queries with.
        port: where it listens, on 127.0.0.1.
        destinations: application entity title -> port on 127.0.0.1, for C-MOVE.
        received: JSON Lines, a line for each echo and each instance it was sent, with the title that was called.
    """

    def __init__(self, files: list[Path], port: int, destinations: dict[str, int], received: Path):
        self.datasets = [pydicom.dcmread(path) for path in files]
        self.destinations = destinations
        self.address = ("127.0.0.1", port)
        self.received = received
        self._keeping: WeakSet[Association] = WeakSet()
        self.ae = AE(ae_title="REMOTEPACS")
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

    def serve(self) -> None:
        """Listen until the process ends."""
        handlers = [
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_MOVE, self._move),
        ]
        self.ae.start_server(self.address, block=True, evt_handlers=handlers)

    def _echo(self, event):
        self._note(event, echo=True)
        return SUCCESS

    def _store(self, event):
        if event.assoc not in self._keeping:
            self._keeping.add(event.assoc)
            time.sleep(KEEPS_AFTER_S)  # in a thread of this association's own
        self._note(event, study=event.dataset.StudyInstanceUID, instance=event.dataset.SOPInstanceUID)
        return SUCCESS

    def _note(self, event, **what):
        called = event.assoc.requestor.primitive.called_ae_title.strip()
        with self.received.open("a") as file:
            file.write(json.dumps({"called": called, **what}) + "\n")

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--destination", required=True, metavar="TITLE=PORT", help="where C-MOVE may send to")
    parser.add_argument("--received", type=Path, required=True)
    args = parser.parse_args()
    title, _, port = args.destination.partition("=")
    Peer(args.files, args.port, {title: int(port)}, args.received).serve()


if __name__ == "__main__":
    main()
