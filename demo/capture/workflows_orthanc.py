"""The Orthanc workflows: which phases in which order, with which parameters. Goals are worded in orthanc_goals.py."""

from collections.abc import Callable
from dataclasses import dataclass

import orthanc_phases as do
import requests
from orthanc_catalogue import (
    BRAIN_LOCALIZER, BRAIN_PILOT, CQ500, CT1, FREN, GERM, HEAD, LESTRADE, LIVER, MR1, MRA_ANGIO, MRA_LOCALIZER,
    MRA_PILOT, OB, PLA, PLAN, REMOTE_BONE, REMOTE_CT, REMOTE_DOSE, REMOTE_ECG, REMOTE_LIVER, REMOTE_SEGMENTATION,
    SCOUT, SMARTSCORE, SPINE_LAT, SPINE_OBLI_1, SPINE_OBLI_2, US1, RemoteStudy, Study,
)  # fmt: skip
from orthanc_goals import WORDINGS
from playwright.sync_api import Page
from recorder import Recorder, Task
from stack import Stack

APPLICATION = "Orthanc Explorer"
# More targets for sending, on the peer's port; "remote-pacs" of stack.py stays the first in every list.
MODALITIES = {"teaching-archive": "TEACHING", "ward-7-viewer": "WARD7"}
TAGS = {
    "PatientBirthDate": "0010,0030",
    "PatientSex": "0010,0040",
    "PatientWeight": "0010,1030",
    "BodyPartExamined": "0018,0015",
    "SliceThickness": "0018,0050",
    "KVP": "0018,0060",
    "RepetitionTime": "0018,0080",
    "EchoTime": "0018,0081",
    "MagneticFieldStrength": "0018,0087",
    "SoftwareVersions": "0018,1020",
    "FlipAngle": "0018,1314",
    "PatientPosition": "0018,5100",
    "SeriesNumber": "0020,0011",
    "PhotometricInterpretation": "0028,0004",
    "Rows": "0028,0010",
    "BitsAllocated": "0028,0100",
}
PREVIEW_INSTANCE, PREVIEW_SERIES = "Preview the instance", "Preview this series"

Case = dict[str, object]


@dataclass(frozen=True)
class Workflow:
    """Cases differ in parameters; the same function makes the phases of each, so the order of steps is the same."""

    name: str
    phases: Callable[..., list[do.Phase]]
    cases: list[Case]
    new: bool = False
    changes_store: bool = False


def _rows(keys: str, *rows: tuple) -> list[Case]:
    """Name the values of each row: `_rows("s text", (CT1, "1CT1"))` is `[{"s": CT1, "text": "1CT1"}]`."""
    return [dict(zip(keys.split(), row, strict=True)) for row in rows]


def browse_to_series(s: Study, text: str) -> list[do.Phase]:
    return [do.filter_patients(text), do.open_patient(s.patient), do.open_patient_study(s), do.open_series(s)]


def scroll_to_patient(s: Study, n: int, tag: str) -> list[do.Phase]:
    find = do.find_patient_by_scrolling(s.patient)
    return [find, do.open_series_of_patient(s), do.open_instance(n), do.find_tag(TAGS[tag])]


def scroll_to_study(s: Study, n: int, tag: str) -> list[do.Phase]:
    find = do.find_study_by_scrolling(s)
    return [find, do.open_series_of_study(s), do.open_instance(n), do.find_tag(TAGS[tag])]


def lookup_by_id(s: Study, n: int, tag: str) -> list[do.Phase]:
    look_up = do.look_up(patient_id=s.patient_id)
    return [look_up, do.open_result(s), do.open_series(s), do.open_instance(n), do.find_tag(TAGS[tag])]


def lookup_by_two_fields(s: Study, lookup: dict[str, str]) -> list[do.Phase]:
    return [do.look_up(**lookup), do.open_result(s), do.open_series(s)]


def read_tag(s: Study, text: str, n: int, tag: str) -> list[do.Phase]:
    reach = [do.filter_studies(text), do.open_series_of_study(s), do.open_instance(n)]
    return [*reach, do.find_tag(TAGS[tag]), do.return_to_top()]


def hide_descriptions(s: Study, text: str, n: int, tag: str) -> list[do.Phase]:
    reach = [do.filter_patients(text), do.open_series_of_patient(s), do.open_instance(n)]
    return [*reach, do.hide_tag_descriptions(), do.find_tag(TAGS[tag])]


def preview_instance(s: Study, text: str, n: int) -> list[do.Phase]:
    reach = [do.filter_studies(text), do.open_series_of_study(s), do.open_instance(n)]
    return [*reach, do.preview(PREVIEW_INSTANCE), do.return_to_top()]


def preview_series(s: Study, text: str) -> list[do.Phase]:
    reach = [do.filter_patients(text), do.open_series_of_patient(s)]
    return [*reach, do.preview(PREVIEW_SERIES), do.return_to_top()]


def anonymize_study(s: Study, text: str) -> list[do.Phase]:
    return [do.filter_studies(text), do.open_listed_study(s), do.anonymize(), do.check_job("ResourceModification")]


def protect_patient(s: Study, text: str) -> list[do.Phase]:
    reach = [do.filter_patients(text), do.open_patient(s.patient)]
    return [*reach, do.protect(), do.open_patient_study(s), do.open_series(s)]


def keep_study(s: Study, text: str, series_text: str) -> list[do.Phase]:
    cancel = do.cancel("cancel deletion", "Delete this study")
    return [do.filter_studies(text), do.open_listed_study(s), cancel, do.narrow_to_series(s, series_text)]


def keep_series(s: Study, text: str, series_text: str) -> list[do.Phase]:
    reach = [do.filter_patients(text), do.open_patient(s.patient), do.open_patient_study(s)]
    return [*reach, do.narrow_to_series(s, series_text), do.cancel("cancel deletion", "Delete this series")]


def send_study(s: Study, text: str, target: str) -> list[do.Phase]:
    send = do.send("Send to DICOM modality", target)
    return [do.filter_studies(text), do.open_listed_study(s), send, do.check_job("DicomModalityStore")]


def retrieve_series(r: RemoteStudy, field: str, value: str) -> list[do.Phase]:
    return [do.open_query(), do.query(field, value), do.open_remote_study(r), do.retrieve_series(r)]


def retrieve_study(r: RemoteStudy, field: str, value: str) -> list[do.Phase]:
    return [do.open_query(), do.query(field, value), do.retrieve_study(), do.check_arrival(r.patient_id)]


def echo_and_query(r: RemoteStudy, field: str, value: str) -> list[do.Phase]:
    return [do.test_echo(), do.query(field, value), do.open_remote_study(r)]


def narrow_down(s: Study, text: str, study_text: str, series_text: str) -> list[do.Phase]:
    narrow_study = do.narrow_to_study(s, study_text)
    return [do.filter_patients(text), do.open_patient(s.patient), narrow_study, do.narrow_to_series(s, series_text)]


def check_plugin(s: Study, plugin: str, text: str) -> list[do.Phase]:
    return [do.check_plugin(plugin), do.filter_studies(text), do.open_series_of_study(s)]


def protect_and_send(s: Study, text: str, target: str) -> list[do.Phase]:
    send = do.send("Send to remote modality", target)
    return [do.filter_patients(text), do.open_patient(s.patient), do.protect(), send, do.show_jobs()]


def lookup_and_keep_names(s: Study) -> list[do.Phase]:
    cancel = do.cancel("cancel anonymization", "Anonymize")
    return [do.look_up(patient_id=s.patient_id), do.open_result(s), cancel, do.open_series(s)]


WORKFLOWS = [
    Workflow("browse_to_series", browse_to_series, _rows(
        "s text", (FREN, "SCSFREN"), (CT1, "1CT1"), (MR1, "MR1"), (SPINE_LAT, "Archibald"), (SCOUT, "98890234"),
        (OB, "OB^"), (LIVER, "021234567"), (PLAN, "id00001"), (LESTRADE, "Lestrade"), (CQ500, "CQ500"))),
    Workflow("scroll_to_patient", scroll_to_patient, _rows(
        "s n tag", (PLAN, 1, "SoftwareVersions"), (LESTRADE, 1, "Rows"), (OB, 1, "PatientSex"),
        (PLA, 1, "PatientBirthDate"), (LIVER, 1, "RepetitionTime"), (GERM, 1, "SeriesNumber"), (OB, 1, "BitsAllocated"),
        (LIVER, 1, "FlipAngle"), (PLA, 1, "Rows"), (LESTRADE, 1, "SeriesNumber"), (GERM, 1, "Rows"))),
    Workflow("scroll_to_study", scroll_to_study, _rows(
        "s n tag", (US1, 2, "PatientSex"), (HEAD, 3, "KVP"), (SPINE_LAT, 1, "PatientPosition"),
        (SMARTSCORE, 4, "SliceThickness"), (MRA_ANGIO, 5, "EchoTime"), (BRAIN_PILOT, 2, "MagneticFieldStrength"),
        (SPINE_OBLI_2, 1, "KVP"), (US1, 1, "Rows"), (SCOUT, 2, "SoftwareVersions"), (HEAD, 1, "BodyPartExamined"),
        (MRA_PILOT, 3, "FlipAngle"))),
    Workflow("lookup_by_id", lookup_by_id, _rows(
        "s n tag", (CT1, 1, "PatientWeight"), (MR1, 1, "RepetitionTime"), (US1, 1, "SoftwareVersions"),
        (CQ500, 1, "KVP"), (LIVER, 1, "PatientPosition"), (OB, 1, "Rows"), (LESTRADE, 1, "BitsAllocated"),
        (PLAN, 1, "SeriesNumber"), (PLA, 1, "SeriesNumber"), (MR1, 1, "Rows"), (CQ500, 1, "SliceThickness"))),
    Workflow("lookup_by_two_fields", lookup_by_two_fields, [
        {"s": study, "lookup": {first: text, second: other}} for study, first, text, second, other in [
            (SPINE_LAT, "patient_name", "*Archibald*", "study_description", "*Spine*"),
            (HEAD, "patient_name", "Doe*", "study_description", "*BRAIN WO*"),
            (BRAIN_PILOT, "patient_id", "98890234", "study_description", "Brain"),
            (MRA_ANGIO, "patient_id", "98890234", "study_description", "*MRA"),
            (CT1, "patient_name", "Compressed*", "study_description", "e+1"),
            (LIVER, "patient_name", "Sss*", "study_description", "abdomen*"),
            (LIVER, "patient_id", "021234567", "accession_number", "8000000000330109"),
            (BRAIN_LOCALIZER, "patient_name", "Doe^Peter", "accession_number", "134"),
            (SPINE_OBLI_2, "patient_id", "77654033", "study_description", "XR*"),
            (MRA_PILOT, "patient_name", "*Peter", "study_description", "Brain-MRA"),
            (HEAD, "patient_id", "77654033", "study_description", "CT*"),
        ]]),
    Workflow("read_tag", read_tag, _rows(
        "s text n tag", (CT1, "JFK IMAGING", 1, "PatientSex"), (MR1, "TOSHIBA", 1, "EchoTime"),
        (US1, "BAPTIST", 2, "SeriesNumber"), (CQ500, "CQ500", 1, "PatientPosition"), (LIVER, "AKH - WIEN", 1, "SliceThickness"),
        (OB, "Philips", 1, "PatientBirthDate"), (LESTRADE, "Moriarty", 1, "Rows"), (HEAD, "HEAD/BRAIN", 2, "SliceThickness"),
        (SPINE_OBLI_1, "XR C Spine", 1, "BodyPartExamined"), (MRA_ANGIO, "Brain-MRA", 3, "RepetitionTime"),
        (SMARTSCORE, "January 1, 2001", 2, "KVP"))),
    Workflow("hide_descriptions", hide_descriptions, _rows(
        "s text n tag", (CT1, "CT1", 1, "SliceThickness"), (MR1, "4MR1", 1, "FlipAngle"), (CQ500, "CQ500", 1, "SoftwareVersions"),
        (LIVER, "Sssssss", 1, "BodyPartExamined"), (HEAD, "77654033", 4, "PatientSex"), (SCOUT, "Peter", 1, "PatientPosition"),
        (BRAIN_PILOT, "98890234", 1, "PatientWeight"), (US1, "13US1", 1, "BitsAllocated"), (OB, "11-05-25", 1, "SeriesNumber"),
        (SPINE_LAT, "Doe^Archibald", 1, "KVP"))),
    Workflow("preview_instance", preview_instance, _rows(
        "s text n", (CQ500, "CQ500", 1), (CT1, "1CT1", 1), (MR1, "TOSHIBA", 1), (US1, "13US1", 1), (OB, "Philips", 1),
        (LIVER, "abdomen", 1), (US1, "BAPTIST", 2), (PLA, "PLA", 1), (CT1, "JFK", 1), (LIVER, "WIEN", 1))),
    Workflow("preview_series", preview_series, _rows(
        "s text", (CQ500, "CQ500"), (CT1, "1CT1"), (MR1, "4MR1"), (US1, "US1"), (OB, "11-05-25-142825"),
        (LIVER, "Sssssss"), (PLA, "PLA"), (LIVER, "021234567"), (US1, "13US1"), (CT1, "^CT1"))),
    Workflow("anonymize_study", anonymize_study, _rows(
        "s text", (CT1, "1CT1"), (MR1, "4MR1"), (LIVER, "abdomen"), (HEAD, "HEAD/BRAIN"), (SPINE_LAT, "XR C Spine"),
        (MRA_ANGIO, "Brain-MRA"), (OB, "Philips"), (LESTRADE, "Moriarty")), changes_store=True),
    Workflow("protect_patient", protect_patient, _rows(
        "s text", (FREN, "Buc"), (CT1, "CT1"), (US1, "13US1"), (SPINE_OBLI_1, "77654033"), (SMARTSCORE, "Peter"),
        (LESTRADE, "ID1"), (PLA, "PLA"), (LIVER, "Sss"), (GERM, "SCSGERM")), changes_store=True),
    Workflow("keep_study", keep_study, _rows(
        "s text series_text", (SPINE_LAT, "XR C Spine", "LAT"), (HEAD, "HEAD/BRAIN", "Routine"), (MRA_ANGIO, "Brain-MRA", "ANGIO"),
        (MR1, "TOSHIBA", "MR"), (SCOUT, "January 1, 2001", "Scout"), (MRA_LOCALIZER, "Brain-MRA", "LOCALIZER"),
        (US1, "BAPTIST", "US"), (SPINE_OBLI_2, "C Spine", "OBLI 2"), (LIVER, "abdomen", "lesion"), (SMARTSCORE, "January 1, 2001", "Gated"))),
    Workflow("keep_series", keep_series, _rows(
        "s text series_text", (SPINE_OBLI_1, "Archibald", "OBLI 1"), (BRAIN_PILOT, "98890234", "PILOT"), (CT1, "1CT1", "CT"),
        (MRA_PILOT, "Peter", "T/S/C"), (SCOUT, "Doe^Peter", "Scout"), (LIVER, "021234567", "marked"), (PLAN, "id00001", "RTPLAN"),
        (CQ500, "CQ500", "Plain"), (HEAD, "77654033", "Brain"))),
    Workflow("send_study", send_study, _rows(
        "s text target", (CT1, "1CT1", "remote-pacs"), (MR1, "TOSHIBA", "teaching-archive"), (LIVER, "abdomen", "ward-7-viewer"),
        (HEAD, "HEAD/BRAIN", "remote-pacs"), (SPINE_LAT, "XR C Spine", "ward-7-viewer"), (MRA_ANGIO, "Brain-MRA", "teaching-archive"),
        (OB, "Philips", "ward-7-viewer"), (LESTRADE, "Moriarty", "remote-pacs"), (PLAN, "id00001", "teaching-archive")), changes_store=True),
    Workflow("retrieve_series", retrieve_series, _rows(
        "r field value", (REMOTE_BONE, "Patient Name", "CompressedSamples^NM1"), (REMOTE_ECG, "Study Description", "ECG"),
        (REMOTE_SEGMENTATION, "Accession Number", "03086212"), (REMOTE_DOSE, "Patient Name", "Lastname*"),
        (REMOTE_BONE, "Study Description", "Whole*"), (REMOTE_SEGMENTATION, "Patient Name", "JANCT*"),
        (REMOTE_LIVER, "Accession Number", "8000000000330109"), (REMOTE_CT, "Study Description", "e+1"),
        (REMOTE_ECG, "Accession Number", "03028041970546")), changes_store=True),
    Workflow("retrieve_study", retrieve_study, _rows(
        "r field value", (REMOTE_SEGMENTATION, "Patient Name", "JANCT000"), (REMOTE_BONE, "Study Description", "Whole Body Bone"),
        (REMOTE_ECG, "Accession Number", "03028041970546"), (REMOTE_DOSE, "Patient Name", "Lastname^Firstname"),
        (REMOTE_SEGMENTATION, "Accession Number", "03086212"), (REMOTE_ECG, "Study Description", "ECG*"),
        (REMOTE_BONE, "Patient Name", "*NM1"), (REMOTE_ECG, "Patient Name", "Anonymous")), changes_store=True),
    Workflow("echo_and_query", echo_and_query, _rows(
        "r field value", (REMOTE_BONE, "Patient Name", "CompressedSamples^NM1"), (REMOTE_LIVER, "Study Description", "abdomen*"),
        (REMOTE_CT, "Patient Name", "*CT1"), (REMOTE_SEGMENTATION, "Accession Number", "03086212"), (REMOTE_ECG, "Patient Name", "Anonymous"),
        (REMOTE_DOSE, "Patient Name", "Last*"), (REMOTE_LIVER, "Accession Number", "8000000000330109"),
        (REMOTE_BONE, "Study Description", "*Bone"), (REMOTE_CT, "Study Description", "e+1"))),
    Workflow("narrow_down", narrow_down, _rows(
        "s text study_text series_text", (SPINE_LAT, "Archibald", "C Spine", "LAT"), (SPINE_OBLI_1, "77654033", "XR", "OBLI 1"),
        (SPINE_OBLI_2, "Doe^Archibald", "Spine", "OBLI 2"), (HEAD, "Archibald", "HEAD", "Routine"),
        (BRAIN_PILOT, "98890234", "134", "PILOT"), (MRA_ANGIO, "Doe^Peter", "MRA", "ANGIO"), (MRA_PILOT, "Peter", "Brain-MRA", "T/S/C"),
        (MRA_LOCALIZER, "98890234", "MRA", "LOCALIZER"), (SCOUT, "Peter", "2001", "Scout"), (SMARTSCORE, "98890234", "January", "Gated"),
        (BRAIN_LOCALIZER, "Doe^Peter", "134", "FAST LOCALIZER"), (HEAD, "77654033", "1995", "Brain"))),
    Workflow("check_plugin", check_plugin, _rows(
        "s plugin text", (CT1, "dicom-web", "1CT1"), (MR1, "WADO-RS", "4MR1"), (LIVER, "dicom-web", "AKH"), (OB, "QIDO-RS", "11-05-25"),
        (HEAD, "web", "HEAD/BRAIN"), (MRA_PILOT, "dicom-web", "Brain-MRA"), (SPINE_OBLI_2, "STOW-RS", "XR C Spine"), (LESTRADE, "WADO-URI", "Lestrade"))),
    Workflow("protect_and_send", protect_and_send, _rows(
        "s text target", (CT1, "1CT1", "teaching-archive"), (LIVER, "Sssssss", "remote-pacs"), (HEAD, "Archibald", "ward-7-viewer"),
        (OB, "OB^", "remote-pacs"), (LESTRADE, "Lestrade", "teaching-archive"), (MR1, "4MR1", "ward-7-viewer")), new=True, changes_store=True),
    Workflow("lookup_and_keep_names", lookup_and_keep_names, _rows(
        "s", (CT1,), (MR1,), (LIVER,), (CQ500,), (US1,), (LESTRADE,)), new=True),
]  # fmt: skip


def build_tasks() -> list[Task]:
    """Make every task: case i of a workflow is worded by wording i (modulo the number of wordings)."""
    return [_build_task(workflow, number) for workflow in WORKFLOWS for number in range(len(workflow.cases))]


def _build_task(workflow: Workflow, number: int) -> Task:
    case, wordings = workflow.cases[number], WORDINGS[workflow.name]
    phases = workflow.phases(**case)
    return Task(
        task_id=f"orthanc-{workflow.name}-{number + 1:02d}",
        workflow=workflow.name,
        goal=wordings[number % len(wordings)].format(**_words(case)),
        subtasks=tuple(phase.name for phase in phases),
        play=lambda rec: _play(rec, phases),
        new_workflow=workflow.new,
        changes_store=workflow.changes_store,
    )


def _words(case: Case) -> Case:
    """Turn the parameters that a goal does not quote as they are into its words."""
    words = dict(case)
    if "tag" in case:
        words["tag"] = f"{case['tag']} ({TAGS[case['tag']]})"
    if "field" in case:
        words["field"] = case["field"].lower()
    if "lookup" in case:
        named = [f'{name.replace("_id", " ID").replace("_", " ")} "{text}"' for name, text in case["lookup"].items()]
        words["fields"] = " and ".join(named)
    return words


def _play(rec: Recorder, phases: list[do.Phase]) -> None:
    for phase in phases:
        rec.subtask(phase.name)
        phase.play(rec)
    rec.complete("task complete")


def open_start(page: Page, stack: Stack) -> None:
    """Show the lookup page, where every task begins."""
    for name, aet in MODALITIES.items():
        body = {"AET": aet, "Host": "127.0.0.1", "Port": stack.peer_port}
        requests.put(f"{stack.orthanc_url}/modalities/{name}", json=body, timeout=10).raise_for_status()
    page.goto(f"{stack.orthanc_url}/app/explorer.html")
    page.locator("#lookup-submit").wait_for(state="visible")


def is_busy(page: Page) -> bool:
    """Tell whether a page transition, a request or a blocked page is under way."""
    return page.evaluate("() => jQuery.active > 0 || !!document.querySelector('.ui-mobile-viewport-transitioning, .blockUI')")
