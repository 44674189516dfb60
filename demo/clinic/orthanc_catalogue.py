"""What the recorded Orthanc and its DICOM peer hold (see stack.py), as a person reads it on the screen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """One study and one of its series.

    `row` and `series_row` are the texts that name the row of the study in its patient's page and of the series in the
    study's page: the heading, or the first line that tells something where the heading is empty.
    `phrase` and `series_phrase` are how a goal calls them.
    """

    patient: str
    patient_id: str
    description: str
    row: str
    phrase: str
    series_row: str
    series_phrase: str

    @property
    def list_row(self) -> str:
        """Heading of the study in the list of all studies and among lookup results."""
        return f"{self.patient} - {self.description}".strip()


def _untitled(patient: str, patient_id: str, date: str, modality: str, series: str = "") -> Study:
    """A study without description; `date` as on the page: "Thursday, August 26, 2004", or "?"."""
    phrase = f"study of {date.split(', ', 1)[1]}" if date != "?" else "undated study"
    row, series_phrase = series or f"Modality: {modality}", f'series "{series}"' if series else f"{modality} series"
    return Study(patient, patient_id, "", f"StudyDate: {date}", phrase, row, series_phrase)


def _titled(patient: str, patient_id: str, description: str, series: str = "", modality: str = "") -> Study:
    row, phrase = series or f"Modality: {modality}", f'series "{series}"' if series else f"{modality} series"
    return Study(patient, patient_id, description, description, f'study "{description}"', row, phrase)


PETER = ("Doe^Peter", "98890234")
ARCHIBALD = ("Doe^Archibald", "77654033")

FREN = _untitled("Buc^Jérôme", "SCSFREN", "?", "OT")
CQ500 = _untitled("CQ500-CT-310", "CQ500-CT-310", "?", "CT", "5/5mm Plain")
CT1 = _titled("CompressedSamples^CT1", "1CT1", "e+1", modality="CT")
MR1 = _untitled("CompressedSamples^MR1", "4MR1", "Thursday, August 26, 2004", "MR")
US1 = _untitled("CompressedSamples^US1", "13US1", "Thursday, August 26, 2004", "US")
SPINE_LAT = _titled(*ARCHIBALD, "XR C Spine Comp Min 4 Views", "Cervical LAT")
SPINE_OBLI_1 = _titled(*ARCHIBALD, "XR C Spine Comp Min 4 Views", "Cervical OBLI 1")
SPINE_OBLI_2 = _titled(*ARCHIBALD, "XR C Spine Comp Min 4 Views", "Cervical OBLI 2")
HEAD = _titled(*ARCHIBALD, "CT, HEAD/BRAIN WO CONTRAST", "Routine Brain")
SCOUT = _untitled(*PETER, "Monday, January 1, 2001", "CT", "Scout")
SMARTSCORE = _untitled(*PETER, "Monday, January 1, 2001", "CT", "SmartScore - Gated 0.5 sec")
BRAIN_LOCALIZER = _titled(*PETER, "Brain", "FAST LOCALIZER")
BRAIN_PILOT = _titled(*PETER, "Brain", "T/S/C RF FAST PILOT")
MRA_LOCALIZER = _titled(*PETER, "Brain-MRA", "FAST LOCALIZER")
MRA_PILOT = _titled(*PETER, "Brain-MRA", "T/S/C RF FAST PILOT")
MRA_ANGIO = _titled(*PETER, "Brain-MRA", "ANGIO Projected from C")
PLAN = _untitled("Last^First^mid^pre", "id00001", "Wednesday, July 16, 2003", "RTPLAN")
LESTRADE = _untitled("Lestrade^G", "ID1", "Sunday, January 1, 2017", "OT")
OB = _untitled("OB^^^^", "11-05-25-142825", "Wednesday, May 25, 2011", "US")
PLA = _untitled("PLA", "204", "Tuesday, May 3, 2016", "US")
LIVER = _titled("Sssssss^Jsssss", "021234567", "abdomen^liver", "marked lesion<MPR Collection>")
GERM = _untitled("Äneas^Rüdiger", "SCSGERM", "?", "OT")


@dataclass(frozen=True)
class RemoteStudy:
    """A study that the peer holds; `series_row` names its one series in the list that Query/Retrieve shows."""

    patient: str
    patient_id: str
    series_row: str
    accession: str = ""
    description: str = ""

    @property
    def row(self) -> str:
        """Heading of the study among the answers of Query/Retrieve."""
        return f"{self.patient_id} - {self.patient}"


REMOTE_BONE = RemoteStudy("CompressedSamples^NM1", "8NM1", "Modality: NM", description="Whole Body Bone")
REMOTE_DOSE = RemoteStudy("Lastname^Firstname", "id11111", "Modality: RTDOSE")
REMOTE_SEGMENTATION = RemoteStudy("JANCT000", "99000", "Liver Segmentation", accession="03086212")
REMOTE_ECG = RemoteStudy("Anonymous", "642341", "Modality: ECG", accession="03028041970546", description="ECG")
REMOTE_LIVER = RemoteStudy(
    "Sssssss^Jsssss", "021234567", "marked lesion<MPR Collection>", "8000000000330109", "abdomen^liver"
)
REMOTE_CT = RemoteStudy("CompressedSamples^CT1", "1CT1", "Modality: CT", description="e+1")
