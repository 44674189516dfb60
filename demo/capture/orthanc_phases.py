"""Phases that do something in Orthanc Explorer: read, preview, anonymise, send, query. Knows nothing of goals."""

import re

from demo.capture.orthanc_navigation import filter_list
from demo.capture.orthanc_page import (
    Phase,
    click_in_dialog,
    find_link,
    open_row,
    scroll_until_shown,
    type_filter,
)
from demo.capture.recorder import Recorder
from demo.clinic.orthanc_catalogue import RemoteStudy


def hide_tag_descriptions() -> Phase:
    label = "Show tag description"
    return Phase("hide descriptions", lambda rec: rec.click(label, "tag descriptions hidden"))


def find_tag(tag: str) -> Phase:
    """Scroll the instance's page down to the line that begins with `tag` (as in "0010,0020")."""

    def play(rec: Recorder) -> None:
        line = rec.page.locator("#dicom-tree .title").filter(has_text=re.compile(rf"^{tag}"))
        scroll_until_shown(rec, lambda: line.first)

    return Phase("find tag", play)


def preview(label: str) -> Phase:
    """Scroll to the preview link, open the picture, close it."""

    def play(rec: Recorder) -> None:
        scroll_until_shown(rec, lambda: find_link(rec.page, label))
        rec.click(label, "image preview shown")
        rec.page.wait_for_function("() => document.querySelector('#lbImage').offsetWidth > 40")
        rec.click("Close", "image preview closed")

    return Phase("preview image", play)


def cancel(name: str, question: str) -> Phase:
    """Click a link that asks for confirmation, and do not confirm."""

    def play(rec: Recorder) -> None:
        rec.click(question, "confirmation dialog shown")
        click_in_dialog(rec, "Cancel", "confirmation dialog closed")

    return Phase(name, play)


def anonymize() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click("Anonymize", "confirmation dialog shown")
        click_in_dialog(rec, "OK", "anonymized patient shown")
        find_link(rec.page, "Before anonymization").wait_for()

    return Phase("anonymize study", play)


def send(link: str, target: str) -> Phase:
    """Send what the page shows to a DICOM modality; Orthanc then shows the job."""

    def play(rec: Recorder) -> None:
        rec.click(link, "target dialog shown")
        click_in_dialog(rec, target, "job page shown")
        rec.page.wait_for_url("**#job?uuid=*")

    return Phase("send images", play)


def show_jobs() -> Phase:
    return Phase("show jobs", _show_jobs)


def _show_jobs(rec: Recorder) -> None:
    rec.click("Jobs", "job list shown")


def check_job(kind: str) -> Phase:
    """Find the newest job of a kind in the job list and open it."""

    def play(rec: Recorder) -> None:
        _show_jobs(rec)
        type_filter(rec, kind)
        open_row(rec, kind, "job page shown")

    return Phase("check job", play)


def protect() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click("Unprotected", "patient protected")

    return Phase("protect patient", play)


def check_plugin(name: str) -> Phase:
    def play(rec: Recorder) -> None:
        rec.click("Plugins", "plugin list shown")
        type_filter(rec, name)
        rec.click("Lookup", "lookup page shown")

    return Phase("check plugin", play)


def test_echo() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click("Query/Retrieve", "query form shown")
        rec.click("Test Echo", "echo result shown")
        click_in_dialog(rec, "OK", "query form shown")

    return Phase("test connection", play)


def open_query() -> Phase:
    return Phase(
        "open query form",
        lambda rec: rec.click("Query/Retrieve", "query form shown"),
    )


def query(field: str, value: str) -> Phase:
    """Search the peer; `Patient ID` is the field that the form has chosen already."""

    def play(rec: Recorder) -> None:
        if field != "Patient ID":
            rec.click(field, "query field chosen")
        rec.text("Value for this field", value, "query value filled")
        rec.click("Search studies", "query answers listed")
        rec.page.wait_for_url("**#query-retrieve-2?*")

    return Phase("search server", play)


def open_remote_study(study: RemoteStudy) -> Phase:
    return Phase("open study", lambda rec: open_row(rec, study.row, "remote series listed"))


def retrieve_series(study: RemoteStudy) -> Phase:
    def play(rec: Recorder) -> None:
        open_row(rec, study.series_row, "retrieve form shown")
        rec.click("Retrieve", "remote series listed")
        rec.page.wait_for_url("**#query-retrieve-3?*", timeout=20_000)

    return Phase("retrieve series", play)


def retrieve_study() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click("Retrieve all study", "retrieve form shown")
        rec.page.wait_for_url("**#query-retrieve-4?*")
        rec.click("Retrieve", "query answers listed")
        rec.page.wait_for_url("**#query-retrieve-2?*", timeout=20_000)

    return Phase("retrieve study", play)


def check_arrival(patient_id: str) -> Phase:
    """Go back to the lookup page and find the retrieved study in the list."""

    def play(rec: Recorder) -> None:
        rec.click("Lookup", "lookup page shown")
        filter_list(rec, "All studies", "study list shown", patient_id)

    return Phase("check arrival", play)
