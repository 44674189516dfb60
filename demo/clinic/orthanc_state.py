"""What Orthanc holds and which of its pages is open, read by REST and from the address; changes nothing."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydicom
from playwright.sync_api import Page

from demo.clinic.orthanc_catalogue import RemoteStudy, Study
from demo.clinic.samples import PEER_FILES, find_files, name_instance
from demo.clinic.stack import Stack
from demo.clinic.verification import State

# The address says which page is open; what the address does not hold is read from the page's own widgets.
READ_PAGE = """() => {
  const isShown = (element) => !!element && element.offsetParent !== null;
  const active = document.querySelector(".ui-page-active");
  const filters = [...document.querySelectorAll(".ui-page-active input[data-type=search]")];
  const dialogs = [...document.querySelectorAll(".ui-simpledialog-container")];
  const [path, query] = location.hash.replace(/^#/, "").split("?");
  const isOnScreen = (box) => box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
  return {
    page: active ? active.id : path,
    address: Object.fromEntries(new URLSearchParams(query || "")),
    filter: (filters.find(isShown) || {value: ""}).value,
    scrolled: Math.round(scrollY),
    isAtEnd: scrollY + innerHeight >= document.documentElement.scrollHeight - 1,
    tags: active && active.id === "instance" ? [...document.querySelectorAll("#dicom-tree .title")]
      .filter(line => isOnScreen(line.getBoundingClientRect())).map(line => line.innerText.trim().slice(0, 9)) : [],
    hasDescriptions: !document.querySelector("#show-tag-name") || document.querySelector("#show-tag-name").checked,
    hasPreview: (document.querySelector("#lbImage") || {offsetWidth: 0}).offsetWidth > 40,
    lookup: Object.fromEntries([...document.querySelectorAll("#lookup input[id^=lookup-]")]
      .filter(field => field.value.trim())
      .map(field => [field.id.replace("lookup-", "").replaceAll("-", "_"), field.value.trim()])),
    hasLookedUp: isShown(document.querySelector("#lookup-result")),
    dialog: dialogs.filter(isShown).map(box => box.innerText).join(" "),
  };
}"""


def read_state(page: Page, stack: Stack) -> State:
    """Read the store, its jobs, what the peer received, and the open page."""
    lines = stack.received.read_text().splitlines() if stack.received.exists() else []
    return page.evaluate(READ_PAGE) | {
        "store": stack.describe_store(),
        "jobs": {job: stack.get(f"/jobs/{job}") for job in stack.get("/jobs")},
        "copies": [
            {"of": study["AnonymizedFrom"], "instances": sorted(i["ID"] for i in stack.get(f"{path}/instances"))}
            for study in stack.get("/studies?expand")
            if study.get("AnonymizedFrom") and (path := f"/studies/{study['ID']}")
        ],
        "received": [json.loads(line) for line in lines],
    }


@dataclass(frozen=True)
class Resources:
    """The identifiers of one study of the catalogue; more than one series may be called what a goal calls it."""

    patient: str
    studies: frozenset[str]
    series: frozenset[str]


class Store:
    """What the known store holds, to turn names of the catalogue into Orthanc's identifiers."""

    def __init__(self, stack: Stack):
        self.patients = stack.get("/patients?expand")
        self.studies = {study["ID"]: study for study in stack.get("/studies?expand")}
        self.series = {series["ID"]: series for series in stack.get("/series?expand")}
        self.instances = {instance["ID"]: instance for instance in stack.get("/instances?expand")}

    def find(self, study: Study) -> Resources:
        """Find a study of the catalogue."""
        patient = next(p["ID"] for p in self.patients if p["MainDicomTags"]["PatientID"] == study.patient_id)
        studies = {i for i, s in self.studies.items() if s["ParentPatient"] == patient and _is_study(s, study)}
        series = {i for i, s in self.series.items() if s["ParentStudy"] in studies and _is_series(s, study)}
        if not series:
            raise LookupError(f"the known store lacks {study}")
        return Resources(patient, frozenset(self.series[i]["ParentStudy"] for i in series), frozenset(series))

    def list_instances(self, studies: frozenset[str]) -> set[str]:
        """Return the SOP instance UIDs of studies."""
        series = {i for i, one in self.series.items() if one["ParentStudy"] in studies}
        return {i["MainDicomTags"]["SOPInstanceUID"] for i in self.instances.values() if i["ParentSeries"] in series}

    def find_instances(self, series: frozenset[str], number: int) -> set[str]:
        """Return the instances of series that have a number."""
        return {
            name
            for name, instance in self.instances.items()
            if instance["ParentSeries"] in series and instance["MainDicomTags"].get("InstanceNumber") == str(number)
        }


def find_remote_study(remote: RemoteStudy) -> tuple[str, set[str]]:
    """Return the StudyInstanceUID of a study that the peer holds, and what Orthanc calls its instances."""
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in find_files(PEER_FILES)]
    study = next(str(d.StudyInstanceUID) for d in datasets if str(d.PatientID) == remote.patient_id)
    return study, {name_instance(d) for d in datasets if d.StudyInstanceUID == study}


def _is_study(found: dict[str, Any], study: Study) -> bool:
    tags = found["MainDicomTags"]
    if study.description:
        return _clean(tags.get("StudyDescription", "")) == study.description
    date = tags.get("StudyDate", "")
    shown = f"{datetime.strptime(date, '%Y%m%d'):%A, %B %d, %Y}".replace(" 0", " ") if date else "?"
    return study.row == f"StudyDate: {shown}" and not tags.get("StudyDescription", "").strip()


def _clean(text: str) -> str:
    """Return a text as a browser shows it: runs of blanks are one."""
    return " ".join(text.split())


def _is_series(found: dict[str, Any], study: Study) -> bool:
    tags = found["MainDicomTags"]
    named = _clean(tags.get("SeriesDescription", ""))
    return study.series_row == (named or f"Modality: {tags.get('Modality', '')}")
