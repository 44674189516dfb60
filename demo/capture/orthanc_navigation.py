"""Phases that reach something in Orthanc Explorer: filters, lookups, lists. Knows nothing of goals or splits."""

from demo.capture.orthanc_page import (
    LIST_ROWS,
    Phase,
    find_row,
    open_row,
    scroll_until_shown,
    type_filter,
)
from demo.capture.recorder import Recorder
from demo.clinic.orthanc_catalogue import Study


def filter_patients(text: str, name: str = "filter patients") -> Phase:
    return Phase(name, lambda rec: filter_list(rec, "All patients", "patient list shown", text))


def filter_studies(text: str) -> Phase:
    return Phase("filter studies", lambda rec: filter_list(rec, "All studies", "study list shown", text))


def filter_list(rec: Recorder, button: str, observation: str, text: str) -> None:
    rec.click(button, observation)
    type_filter(rec, text)


def filter_again(name: str, text: str) -> Phase:
    """Filter the list that is shown, in place of what was typed before."""
    return Phase(name, lambda rec: type_filter(rec, text))


def skim_patients() -> Phase:
    """Scroll the list of all patients to its end."""

    def play(rec: Recorder) -> None:
        rec.click("All patients", "patient list shown")
        last = rec.page.locator(LIST_ROWS).last
        scroll_until_shown(rec, lambda: last)

    return Phase("skim list", play)


def return_to_top() -> Phase:
    def play(rec: Recorder) -> None:
        while rec.page.evaluate("window.scrollY") > 0:
            rec.scroll("page", "up", "page scrolled up")
            rec.page.wait_for_timeout(400)

    return Phase("return to top", play)


def find_patient_by_scrolling(patient: str) -> Phase:
    return Phase("find patient", lambda rec: _find_by_scrolling(rec, "All patients", "patient list shown", patient))


def find_study_by_scrolling(study: Study) -> Phase:
    return Phase("find study", lambda rec: _find_by_scrolling(rec, "All studies", "study list shown", study.list_row))


def _find_by_scrolling(rec: Recorder, button: str, observation: str, row: str) -> None:
    rec.click(button, observation)
    scroll_until_shown(rec, lambda: find_row(rec.page, row))


def open_patient(patient: str) -> Phase:
    return Phase("open patient", lambda rec: open_row(rec, patient, "patient page shown"))


def open_patient_study(study: Study) -> Phase:
    """From the patient's page."""
    return Phase("open study", lambda rec: open_row(rec, study.row, "study page shown"))


def open_listed_study(study: Study) -> Phase:
    """From the list of all studies or from lookup results."""
    return Phase("open study", lambda rec: open_row(rec, study.list_row, "study page shown"))


def open_series(study: Study) -> Phase:
    """From the study's page."""
    return Phase("open series", lambda rec: open_row(rec, study.series_row, "series page shown"))


def open_series_of_patient(study: Study) -> Phase:
    """From a list of patients: patient, study, series."""

    def play(rec: Recorder) -> None:
        open_row(rec, study.patient, "patient page shown")
        open_row(rec, study.row, "study page shown")
        open_row(rec, study.series_row, "series page shown")

    return Phase("open series", play)


def open_series_of_study(study: Study) -> Phase:
    """From a list of studies: study, series."""

    def play(rec: Recorder) -> None:
        open_row(rec, study.list_row, "study page shown")
        open_row(rec, study.series_row, "series page shown")

    return Phase("open series", play)


def open_instance(number: int = 1) -> Phase:
    return Phase("open instance", lambda rec: open_row(rec, f"Instance: {number}", "instance page shown"))


def narrow_to_study(study: Study, text: str) -> Phase:
    """Filter the studies of the patient that is shown, and open one."""

    def play(rec: Recorder) -> None:
        type_filter(rec, text)
        open_row(rec, study.row, "study page shown")

    return Phase("open study", play)


def narrow_to_series(study: Study, text: str) -> Phase:
    """Filter the series of the study that is shown, and open one."""

    def play(rec: Recorder) -> None:
        type_filter(rec, text)
        open_row(rec, study.series_row, "series page shown")

    return Phase("open series", play)


def look_up(**fields: str) -> Phase:
    """Fill fields of the lookup form (patient_id, patient_name, accession_number, study_description) and submit it."""

    def play(rec: Recorder) -> None:
        for name, value in fields.items():
            label = name.replace("_", " ").title().replace("Id", "ID")
            rec.text(label, value, "lookup field filled")
        rec.click("Do lookup", "lookup results listed")

    return Phase("look up study", play)


def open_result(study: Study) -> Phase:
    """Scroll to the results of a lookup, which stand below the form, and open one."""

    def play(rec: Recorder) -> None:
        scroll_until_shown(rec, lambda: find_row(rec.page, study.list_row))
        open_row(rec, study.list_row, "study page shown")

    return Phase("open study", play)
