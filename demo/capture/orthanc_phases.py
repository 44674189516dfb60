"""What a person does in Orthanc Explorer, in pieces: each Phase is one plan item. Knows nothing of goals or splits."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from orthanc_catalogue import RemoteStudy, Study
from playwright.sync_api import Locator, Page
from recorder import SCREEN, Recorder, SuspectStep

WHOLE_SCREEN = (0, 0, *SCREEN)
ACTIVE = ".ui-page-active "
DIALOG = ".ui-simpledialog-container "
ROW_HEADING_PX = 60


@dataclass(frozen=True)
class Phase:
    """One plan item: its name in the memory and the steps that carry it out."""

    name: str
    play: Callable[[Recorder], None]


def find_link(page: Page, label: str) -> Locator:
    """Return the link or button of the shown page that carries exactly `label`."""
    return page.locator(ACTIVE + "a:visible, " + ACTIVE + "button:visible, " + ACTIVE + "label:visible").filter(
        has_text=re.compile(rf"^\s*{re.escape(label)}\s*$")
    )


def find_row(page: Page, text: str) -> Locator:
    """Return the row of the shown list whose heading or one of whose lines is exactly `text`."""
    line = page.locator("h1, h3, p").filter(has_text=re.compile(rf"^\s*{_flexible(text)}\s*$"))
    return page.locator(ACTIVE + "[data-role=content] .ui-block-b li:visible, " + ACTIVE + "[data-role=content] > ul li:visible").or_(
        page.locator(ACTIVE + "#lookup-result li:visible")
    ).filter(has=line).first


def _flexible(text: str) -> str:
    """Match runs of blanks as a browser shows them: as one."""
    return r"\s+".join(re.escape(word) for word in text.split())


def scroll_until_shown(rec: Recorder, find: Callable[[], Locator], amount: int = 600, limit: int = 2) -> None:
    """Scroll the page down, at least once, until the element is wholly on the screen."""
    if _is_on_screen(find()):
        raise SuspectStep(f"on the screen without scrolling: {find()}")
    for _ in range(limit):
        rec.scroll(WHOLE_SCREEN, "page", "down", "page scrolled down", amount=amount)
        rec.page.wait_for_timeout(400)
        if _is_on_screen(find()):
            return
    raise SuspectStep(f"not on the screen after {limit} scrolls: {find()}")


def _is_on_screen(locator: Locator) -> bool:
    """Tell whether the upper part of an element, where its text is, can be read."""
    box = locator.bounding_box()
    return box is not None and box["y"] >= 0 and box["y"] + min(box["height"], ROW_HEADING_PX) <= SCREEN[1]


def open_row(rec: Recorder, text: str, observation: str) -> None:
    """Click the row named `text`, and wait until its page has taken over."""
    before = rec.page.url
    rec.click(find_row(rec.page, text), text, observation)
    rec.page.wait_for_function("before => location.href !== before", arg=before)


def filter_patients(text: str) -> Phase:
    return Phase("filter patients", lambda rec: _filter_list(rec, "All patients", "patient list shown", text))


def filter_studies(text: str) -> Phase:
    return Phase("filter studies", lambda rec: _filter_list(rec, "All studies", "study list shown", text))


def _filter_list(rec: Recorder, button: str, observation: str, text: str) -> None:
    rec.click(find_link(rec.page, button), button, observation)
    type_filter(rec, text)


def type_filter(rec: Recorder, text: str) -> None:
    """Type into the filter field of the shown list."""
    field = rec.page.locator(ACTIVE + "input[data-type=search]:visible").first
    rec.text(field, "Filter items...", text, "list filtered")


def find_patient_by_scrolling(patient: str) -> Phase:
    return Phase("find patient", lambda rec: _find_by_scrolling(rec, "All patients", "patient list shown", patient))


def find_study_by_scrolling(study: Study) -> Phase:
    return Phase("find study", lambda rec: _find_by_scrolling(rec, "All studies", "study list shown", study.list_row))


def _find_by_scrolling(rec: Recorder, button: str, observation: str, row: str) -> None:
    rec.click(find_link(rec.page, button), button, observation)
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
            rec.text(rec.page.locator(f"#lookup-{name.replace('_', '-')}"), label, value, "lookup field filled")
        rec.click(rec.page.locator("#lookup-submit").locator("xpath=.."), "Do lookup", "lookup results listed")

    return Phase("look up study", play)


def open_result(study: Study) -> Phase:
    """Scroll to the results of a lookup, which stand below the form, and open one."""

    def play(rec: Recorder) -> None:
        scroll_until_shown(rec, lambda: find_row(rec.page, study.list_row))
        open_row(rec, study.list_row, "study page shown")

    return Phase("open study", play)


def hide_tag_descriptions() -> Phase:
    label = "Show tag description"
    return Phase(
        "hide descriptions", lambda rec: rec.click(find_link(rec.page, label), label, "tag descriptions hidden")
    )


def find_tag(tag: str) -> Phase:
    """Scroll the instance's page down to the line that begins with `tag` (as in "0010,0020")."""

    def play(rec: Recorder) -> None:
        line = rec.page.locator("#dicom-tree .jqtree-title").filter(has_text=re.compile(rf"^{tag}"))
        scroll_until_shown(rec, lambda: line.first)

    return Phase("find tag", play)


def return_to_top() -> Phase:
    def play(rec: Recorder) -> None:
        while rec.page.evaluate("window.scrollY") > 0:
            rec.scroll(WHOLE_SCREEN, "page", "up", "page scrolled up", amount=600)

    return Phase("return to top", play)


def preview(label: str) -> Phase:
    """Scroll to the preview link, open the picture, close it."""

    def play(rec: Recorder) -> None:
        scroll_until_shown(rec, lambda: find_link(rec.page, label))
        rec.click(find_link(rec.page, label), label, "image preview shown")
        rec.page.wait_for_function("() => document.querySelector('#lbImage').offsetWidth > 100")
        rec.click(rec.page.locator("#lbCloseLink"), "Close", "image preview closed")

    return Phase("preview image", play)


def cancel(name: str, question: str) -> Phase:
    """Click a link that asks for confirmation, and do not confirm."""

    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, question), question, "confirmation dialog shown")
        click_in_dialog(rec, "Cancel", "confirmation dialog closed")

    return Phase(name, play)


def click_in_dialog(rec: Recorder, label: str, observation: str) -> None:
    button = rec.page.locator(DIALOG + "a:visible").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
    rec.click(button, label, observation)
    rec.page.locator(DIALOG).wait_for(state="hidden")


def anonymize() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, "Anonymize"), "Anonymize", "confirmation dialog shown")
        click_in_dialog(rec, "OK", "anonymized patient shown")
        find_link(rec.page, "Before anonymization").wait_for()

    return Phase("anonymize study", play)


def send(link: str, target: str) -> Phase:
    """Send what the page shows to a DICOM modality; Orthanc then shows the job."""

    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, link), link, "target dialog shown")
        click_in_dialog(rec, target, "job page shown")
        rec.page.wait_for_url("**#job?uuid=*")

    return Phase("send images", play)


def show_jobs() -> Phase:
    return Phase("show jobs", _show_jobs)


def _show_jobs(rec: Recorder) -> None:
    rec.click(find_link(rec.page, "Jobs"), "Jobs", "job list shown")


def check_job(kind: str) -> Phase:
    """Find the newest job of a kind in the job list and open it."""

    def play(rec: Recorder) -> None:
        _show_jobs(rec)
        type_filter(rec, kind)
        open_row(rec, kind, "job page shown")

    return Phase("check job", play)


def protect() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(rec.page.locator(ACTIVE + ".switch-container .ui-slider"), "Unprotected", "patient protected")

    return Phase("protect patient", play)


def check_plugin(name: str) -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, "Plugins"), "Plugins", "plugin list shown")
        type_filter(rec, name)
        rec.click(find_link(rec.page, "Lookup"), "Lookup", "lookup page shown")

    return Phase("check plugin", play)


def test_echo() -> Phase:
    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, "Query/Retrieve"), "Query/Retrieve", "query form shown")
        rec.click(rec.page.locator("#qr-echo").locator("xpath=.."), "Test Echo", "echo result shown")
        click_in_dialog(rec, "OK", "query form shown")

    return Phase("test connection", play)


def open_query() -> Phase:
    return Phase(
        "open query form",
        lambda rec: rec.click(find_link(rec.page, "Query/Retrieve"), "Query/Retrieve", "query form shown"),
    )


def query(field: str, value: str) -> Phase:
    """Search the peer; `Patient ID` is the field that the form has chosen already."""

    def play(rec: Recorder) -> None:
        if field != "Patient ID":
            rec.click(find_link(rec.page, field), field, "query field chosen")
        rec.text(rec.page.locator("#qr-value"), "Value for this field", value, "query value filled")
        rec.click(rec.page.locator("#qr-submit").locator("xpath=.."), "Search studies", "query answers listed")
        rec.page.wait_for_url("**#query-retrieve-2?*")

    return Phase("search server", play)


def open_remote_study(study: RemoteStudy) -> Phase:
    return Phase("open study", lambda rec: open_row(rec, study.row, "remote series listed"))


def retrieve_series(study: RemoteStudy) -> Phase:
    def play(rec: Recorder) -> None:
        open_row(rec, study.series_row, "retrieve form shown")
        rec.click(rec.page.locator("#retrieve-submit").locator("xpath=.."), "Retrieve", "remote series listed")
        rec.page.wait_for_url("**#query-retrieve-3?*", timeout=20_000)

    return Phase("retrieve series", play)


def retrieve_study() -> Phase:
    def play(rec: Recorder) -> None:
        button = rec.page.locator(ACTIVE + "a[title='Retrieve all study']:visible")
        rec.click(button, "Retrieve all study", "retrieve form shown")
        rec.page.wait_for_url("**#query-retrieve-4?*")
        rec.click(rec.page.locator("#retrieve-submit").locator("xpath=.."), "Retrieve", "query answers listed")
        rec.page.wait_for_url("**#query-retrieve-2?*", timeout=20_000)

    return Phase("retrieve study", play)


def check_arrival(patient_id: str) -> Phase:
    """Go back to the lookup page and find the retrieved study in the list."""

    def play(rec: Recorder) -> None:
        rec.click(find_link(rec.page, "Lookup"), "Lookup", "lookup page shown")
        _filter_list(rec, "All studies", "study list shown", patient_id)

    return Phase("check arrival", play)
