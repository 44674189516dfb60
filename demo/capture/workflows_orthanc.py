"""The Orthanc workflows: which phases in which order. Parameters are in orthanc_cases.py, wordings in orthanc_goals.txt."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.capture import orthanc_navigation as go
from demo.capture import orthanc_phases as do
from demo.capture.orthanc_page import Phase
from demo.capture.recorder import Recorder, Task
from demo.clinic.orthanc_cases import TAGS
from demo.clinic.orthanc_catalogue import RemoteStudy, Study
from demo.clinic.tasks import APPLICATIONS, ClinicTask, load_tasks

APPLICATION = APPLICATIONS["orthanc"]
PREVIEW_INSTANCE, PREVIEW_SERIES = "Preview the instance", "Preview this series"


@dataclass(frozen=True)
class Workflow:
    """Its cases differ in parameters; one function makes the phases of each, so the order of steps is the same."""

    phases: Callable[..., list[Phase]]
    new: bool = False
    changes_store: bool = False

    @property
    def name(self) -> str:
        return self.phases.__name__


def browse_to_series(s: Study, text: str) -> list[Phase]:
    return [go.filter_patients(text), go.open_patient(s.patient), go.open_patient_study(s), go.open_series(s)]


def scroll_to_patient(s: Study, n: int, tag: str) -> list[Phase]:
    find = go.find_patient_by_scrolling(s.patient)
    return [find, go.open_series_of_patient(s), go.open_instance(n), do.find_tag(TAGS[tag])]


def scroll_to_study(s: Study, n: int, tag: str) -> list[Phase]:
    find = go.find_study_by_scrolling(s)
    return [find, go.open_series_of_study(s), go.open_instance(n), do.find_tag(TAGS[tag])]


def lookup_by_id(s: Study, n: int, tag: str) -> list[Phase]:
    look_up = go.look_up(patient_id=s.patient_id)
    return [look_up, go.open_result(s), go.open_series(s), go.open_instance(n), do.find_tag(TAGS[tag])]


def lookup_by_two_fields(s: Study, lookup: dict[str, str]) -> list[Phase]:
    return [go.look_up(**lookup), go.open_result(s), go.open_series(s)]


def read_tag(s: Study, text: str, n: int, tag: str) -> list[Phase]:
    reach = [go.filter_studies(text), go.open_series_of_study(s), go.open_instance(n)]
    return [*reach, do.find_tag(TAGS[tag]), go.return_to_top()]


def hide_descriptions(s: Study, text: str, n: int, tag: str) -> list[Phase]:
    reach = [go.filter_patients(text), go.open_series_of_patient(s), go.open_instance(n)]
    return [*reach, do.hide_tag_descriptions(), do.find_tag(TAGS[tag])]


def preview_instance(s: Study, text: str, n: int) -> list[Phase]:
    reach = [go.filter_studies(text), go.open_series_of_study(s), go.open_instance(n)]
    return [*reach, do.preview(PREVIEW_INSTANCE), go.return_to_top()]


def preview_series(s: Study, text: str) -> list[Phase]:
    reach = [go.filter_patients(text), go.open_series_of_patient(s)]
    return [*reach, do.preview(PREVIEW_SERIES), go.return_to_top()]


def anonymize_study(s: Study, text: str) -> list[Phase]:
    return [go.filter_studies(text), go.open_listed_study(s), do.anonymize(), do.check_job("ResourceModification")]


def protect_patient(s: Study, text: str) -> list[Phase]:
    reach = [go.filter_patients(text), go.open_patient(s.patient)]
    return [*reach, do.protect(), go.open_patient_study(s), go.open_series(s)]


def keep_study(s: Study, text: str, series_text: str) -> list[Phase]:
    cancel = do.cancel("cancel deletion", "Delete this study")
    return [go.filter_studies(text), go.open_listed_study(s), cancel, go.narrow_to_series(s, series_text)]


def keep_series(s: Study, text: str, series_text: str) -> list[Phase]:
    reach = [go.filter_patients(text), go.open_patient(s.patient), go.open_patient_study(s)]
    return [*reach, go.narrow_to_series(s, series_text), do.cancel("cancel deletion", "Delete this series")]


def send_study(s: Study, text: str, target: str) -> list[Phase]:
    send = do.send("Send to DICOM modality", target)
    return [go.filter_studies(text), go.open_listed_study(s), send, do.check_job("DicomModalityStore")]


def retrieve_series(r: RemoteStudy, field: str, value: str) -> list[Phase]:
    return [do.open_query(), do.query(field, value), do.open_remote_study(r), do.retrieve_series(r)]


def retrieve_study(r: RemoteStudy, field: str, value: str) -> list[Phase]:
    return [do.open_query(), do.query(field, value), do.retrieve_study(), do.check_arrival(r.patient_id)]


def echo_and_query(r: RemoteStudy, field: str, value: str) -> list[Phase]:
    return [do.test_echo(), do.query(field, value), do.open_remote_study(r)]


def narrow_down(s: Study, text: str, study_text: str, series_text: str) -> list[Phase]:
    narrow_study = go.narrow_to_study(s, study_text)
    return [go.filter_patients(text), go.open_patient(s.patient), narrow_study, go.narrow_to_series(s, series_text)]


def check_plugin(s: Study, plugin: str, text: str) -> list[Phase]:
    return [do.check_plugin(plugin), go.filter_studies(text), go.open_series_of_study(s)]


def lookup_and_narrow(s: Study, lookup: dict[str, str], text: str) -> list[Phase]:
    return [go.look_up(**lookup), go.filter_again("filter results", text), go.open_result(s), go.open_series(s)]


def check_arrivals(s: Study, first: str, second: str, third: str) -> list[Phase]:
    others = [go.filter_again("check second patient", second), go.filter_again("check third patient", third)]
    return [go.filter_patients(first, "check first patient"), *others, go.open_patient(s.patient)]


def skim_patients(s: Study, text: str) -> list[Phase]:
    narrow = go.filter_again("filter patients", text)
    return [go.skim_patients(), go.return_to_top(), narrow, go.open_patient(s.patient)]


def protect_and_send(s: Study, text: str, target: str) -> list[Phase]:
    send = do.send("Send to remote modality", target)
    return [go.filter_patients(text), go.open_patient(s.patient), do.protect(), send, do.show_jobs()]


def lookup_and_keep_names(s: Study) -> list[Phase]:
    cancel = do.cancel("cancel anonymization", "Anonymize")
    return [go.look_up(patient_id=s.patient_id), go.open_result(s), cancel, go.open_series(s)]


WORKFLOWS = [
    Workflow(browse_to_series),
    Workflow(scroll_to_patient),
    Workflow(scroll_to_study),
    Workflow(lookup_by_id),
    Workflow(lookup_by_two_fields),
    Workflow(read_tag),
    Workflow(hide_descriptions),
    Workflow(preview_instance),
    Workflow(preview_series),
    Workflow(anonymize_study, changes_store=True),
    Workflow(protect_patient, changes_store=True),
    Workflow(keep_study),
    Workflow(keep_series),
    Workflow(send_study, changes_store=True),
    Workflow(retrieve_series, changes_store=True),
    Workflow(retrieve_study, changes_store=True),
    Workflow(echo_and_query),
    Workflow(narrow_down),
    Workflow(check_plugin),
    Workflow(lookup_and_narrow),
    Workflow(check_arrivals),
    Workflow(skim_patients),
    Workflow(protect_and_send, new=True, changes_store=True),
    Workflow(lookup_and_keep_names, new=True),
]


def build_tasks() -> list[Task]:
    """Turn every case of every workflow into a task."""
    workflows = {workflow.name: workflow for workflow in WORKFLOWS}
    return [_build_task(task, workflows[task.workflow]) for task in load_tasks().values() if task.program == "orthanc"]


def _build_task(task: ClinicTask, workflow: Workflow) -> Task:
    phases = workflow.phases(**task.case)
    return Task(
        task_id=task.task_id,
        workflow=task.workflow,
        goal=task.goal,
        subtasks=tuple(phase.name for phase in phases),
        play=lambda rec: _play(rec, phases),
        new_workflow=workflow.new,
        changes_store=workflow.changes_store,
    )


def _play(rec: Recorder, phases: list[Phase]) -> None:
    for phase in phases:
        rec.subtask(phase.name)
        phase.play(rec)
    rec.complete("task complete")
