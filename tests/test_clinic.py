"""The clinic: Orthanc and OHIF are operated, reset and judged; whatever happens to them has a defined outcome."""

import csv
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, load_demo

from demo.clinic.tasks import load_tasks
from demo.clinic.verification import Check, Fact, now
from eval.environments.environment import EnvironmentFailure
from sft.actions import Action


def find_missing():
    """Return why no clinic can be started here, or None."""
    if missing := [name for name in ("playwright", "pydicom", "pynetdicom", "requests") if find_spec(name) is None]:
        return f"found no Python package {', '.join(missing)}; bash demo/clinic/start.sh installs what is missing"
    from demo.clinic.environment import Clinic

    missing = Clinic().find_missing()
    return f"found no {', '.join(missing)}; bash demo/clinic/start.sh installs what is missing" if missing else None


MISSING = find_missing()
needs_clinic = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
REPLAYED = [
    "orthanc-browse_to_series-09",
    "orthanc-hide_descriptions-06",
    "orthanc-anonymize_study-02",
    "orthanc-protect_and_send-01",
    "orthanc-lookup_and_keep_names-01",
    "orthanc-retrieve_study-03",
    "orthanc-check_arrivals-01",
    "ohif_measure_zoomed_06",
    "ohif_layout_annotate_01",
    "ohif_window_segment_01",
]


@pytest.fixture(scope="module")
def tasks():
    return {task.task_id: task for task in load_demo(ROOT / "demo/data/test.csv")}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A clinic of this worker's own: its folder and its four ports are nobody else's."""
    from demo.clinic.environment import Clinic

    environment = Clinic(step_limit_s=15, folder=tmp_path_factory.mktemp("clinic"), port_base=find_free_ports())
    yield environment
    environment.close()


def find_free_ports():
    """Return the first of four free ports, which no other worker of pytest-xdist looks at."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for base in range(21_000 + 100 * worker, 21_100 + 100 * worker, 4):
        with socket.socket() as first, socket.socket() as last:
            if first.connect_ex(("127.0.0.1", base)) and last.connect_ex(("127.0.0.1", base + 2)):
                return base
    raise AssertionError("no free ports")


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize("task_id", REPLAYED)
def test_recorded_actions_reach_their_goal_and_that_of_no_other_patient(clinic, tasks, task_id):
    from demo.clinic.prove import compute_difference, find_others, replay

    task = tasks[task_id]
    seen = replay(clinic, task)  # asserts that the goal is not reached before, and that every action can be done
    verdict = clinic.verify()
    assert verdict.is_reached, verdict.reason
    assert clinic.verify() == verdict, "judging changes nothing"
    others = find_others(task_id)
    assert len(others) > 2 and not [other.task_id for other in others if clinic.judge_as(other).is_reached]
    assert (
        compute_difference(seen[0].screenshot, task.steps[0].image_path) < 1
    )  # fonts and Chromium may be others here
    assert compute_difference(seen[-2].screenshot, task.steps[-2].image_path) < 4
    assert clinic.outside_requests == []


def ask_orthanc(clinic, method, path, content=b""):
    import requests

    answer = requests.request(method, f"{clinic.stack.orthanc_url}{path}", data=content, timeout=60)
    answer.raise_for_status()
    return answer.json() if answer.content else None


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize(
    "task_id",
    [
        "orthanc-anonymize_study-02",
        "orthanc-retrieve_series-02",
        "orthanc-retrieve_study-03",
        "orthanc-send_study-02",
        "orthanc-protect_and_send-01",
        "orthanc-protect_patient-06",
    ],
)
def test_goal_is_not_reached_with_a_change_beside_it(clinic, tasks, task_id):
    """A file too many, another patient protected, another's study anonymised, and a study sent to the peer."""
    from demo.clinic.prove import replay
    from demo.clinic.samples import PEER_FILES, find_files

    replay(clinic, tasks[task_id])
    assert clinic.verify().is_reached
    state = clinic._states[-1]
    other = next(s for s in clinic.stack.get("/studies?expand") if s["PatientMainDicomTags"]["PatientID"] == "204")
    dose = next(path for path in find_files(PEER_FILES) if path.name == "rtdose.dcm").read_bytes()

    added = ask_orthanc(clinic, "POST", "/instances", dose)["ID"]
    assert "nothing else in the store has changed" in clinic.verify().reason
    ask_orthanc(clinic, "DELETE", f"/instances/{added}")
    assert clinic.verify().is_reached, "undone, it is reached again"

    protected = f"/patients/{other['ParentPatient']}/protected"
    ask_orthanc(clinic, "PUT", protected, "1")
    assert not clinic.verify().is_reached
    ask_orthanc(clinic, "PUT", protected, "0")
    assert clinic.verify().is_reached

    ask_orthanc(clinic, "POST", f"/studies/{other['ID']}/anonymize", "{}")
    assert not clinic.verify().is_reached
    sent = {**state, "received": [*state["received"], {"called": "WARD7", "study": "1", "instance": "1.2.3"}]}
    assert not clinic._check.judge([*clinic._states, sent, sent])[0], "and what the peer was sent beside it"


@needs_clinic
@pytest.mark.slow
def test_retrieval_counts_by_what_arrived_and_at_the_level_that_was_asked(clinic, tasks):
    from demo.clinic.prove import replay

    for task_id, asked, other in (
        ("orthanc-retrieve_study-03", "STUDY", "SERIES"),
        ("orthanc-retrieve_series-02", "SERIES", "STUDY"),
    ):
        replay(clinic, tasks[task_id])
        states = [json.loads(json.dumps(state).replace(f'"{asked}"', f'"{other}"')) for state in clinic._states]
        assert states != clinic._states and clinic._check.judge(clinic._states)[0]
        assert clinic._check.judge(states) == (
            False,
            f"not yet: the {asked.lower()}, and no other, was retrieved from the server",
        )
        (added,) = set(clinic.stack.get("/instances")) - set(clinic._states[0]["store"]["instances"])
        ask_orthanc(clinic, "DELETE", f"/instances/{added}")
        assert "was retrieved from the server" in clinic.verify().reason


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_id", "is_way"),
    [
        ("orthanc-narrow_down-07", lambda state: state["page"] == "find-patients" and state["filter"]),
        ("orthanc-narrow_down-07", lambda state: state["page"] == "patient" and state["filter"]),
        ("orthanc-narrow_down-07", lambda state: state["page"] == "study" and state["filter"]),
        ("orthanc-lookup_and_narrow-06", lambda state: state["hasLookedUp"] and state["filter"]),
        ("orthanc-lookup_and_narrow-06", lambda state: state["page"] == "lookup" and not state["filter"]),
        ("orthanc-lookup_by_two_fields-05", lambda state: len(state["lookup"]) == 2),
        ("orthanc-lookup_by_two_fields-05", lambda state: state["page"] == "lookup" and state["hasLookedUp"]),
        ("orthanc-lookup_by_id-03", lambda state: state["page"] == "lookup" and state["hasLookedUp"]),
        ("orthanc-lookup_and_keep_names-01", lambda state: state["page"] == "lookup" and state["hasLookedUp"]),
        ("ohif_narrow_list_05", lambda state: len(state["filters"]) == 5),
    ],
)
def test_way_that_a_goal_names_is_asked_for(clinic, replayed, task_id, is_way):
    """The states of the recorded actions, without those that show the way."""
    check, states = replayed(task_id)
    assert check.judge(states)[0]
    others = [state for state in states if not is_way(state)]
    is_reached, reason = check.judge(others)
    assert len(others) < len(states) and not is_reached and reason.startswith("not yet: ")


@pytest.fixture(scope="module")
def replayed(clinic, tasks):
    """Replay a task once; its check, and the states that its recorded actions led to."""
    from demo.clinic.prove import replay

    seen = {}

    def find(task_id):
        if task_id not in seen:
            replay(clinic, tasks[task_id])
            seen[task_id] = clinic._check, clinic._states
        return seen[task_id]

    return find


@needs_clinic
@pytest.mark.parametrize(
    ("tool", "points", "lies_there"),
    [
        ("Rectangle", [[0.25, 0.38], [0.33, 0.5]], True),
        ("Rectangle", [[0.2, 0.33], [0.38, 0.55]], True),
        ("Rectangle", [[-0.4, -0.4], [0.99, 1.28]], False),
        ("Rectangle", [[0.0, 0.15], [0.58, 0.73]], False),
        ("Ellipse", [[0.29, 0.1], [0.29, 0.78], [0.26, 0.44], [0.32, 0.44]], False),
        ("Freehand ROI", [[0.29, 0.38], [0.33, 0.44], [0.9, 0.9], [0.25, 0.44]], False),
        ("Length", [[0.245, 0.44], [0.337, 0.44]], True),
        ("Length", [[0.29, 0.44], [0.99, 0.99]], False),
        ("Length", [[0.05, 0.44], [0.53, 0.44]], False),
        ("Annotation", [[0.29, 0.44], [0.6, 0.1]], True),
        ("Annotation", [[0.6, 0.1], [0.29, 0.44]], False),
        ("Circle", [[0.29, 0.44], [0.34, 0.44]], True),
        ("Circle", [[0.29, 0.44], [0.9, 0.44]], False),
        ("Circle", [[0.1, 0.44], [0.29, 0.44]], False),
        ("Ellipse", [], False),
    ],
)
def test_drawing_lies_on_a_structure_by_ends_middle_and_size(tool, points, lies_there):
    from demo.clinic.ohif_checks import _lies_on

    assert _lies_on(tool, points, (0.245, 0.378, 0.337, 0.503)) is lies_there  # the liver lesion


@needs_clinic
@pytest.mark.slow
def test_structure_is_painted_where_most_of_the_paint_is(clinic, replayed):
    check, states = replayed("ohif_window_segment_01")
    painted = states[-1]["painted"]
    assert check.judge(states)[0] and painted
    elsewhere = [[x / 64, 0.01] for x in range(64)] * (len(painted) // 64 + 1)

    def paint(more):
        return [{**state, "painted": [*state["painted"], *more]} if state["painted"] else state for state in states]

    assert check.judge(paint(elsewhere[: len(painted) // 2]))[0]
    assert not check.judge(paint(elsewhere[: 2 * len(painted)]))[0]


@needs_clinic
def test_full_disk_is_no_failure_of_a_program(tmp_path, small_disk):
    """It ends the run, which the same command continues; a task would count as failed."""
    from demo.clinic.environment import Clinic

    disk, resize = small_disk
    resize(1 << 16)
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    clinic = Clinic(folder=disk, port_base=find_free_ports())
    with pytest.raises(OSError, match="No space left") as raised, clinic._failures(2):
        clinic.stack.reset()
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(EnvironmentFailure, match="Permission denied"), clinic._failures(2):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@needs_clinic
@pytest.mark.slow
def test_page_of_a_job_shows_it_under_way_however_slow_the_page_is(clinic, tasks, monkeypatch):
    """Orthanc Explorer reads a job once, when its page opens; the job list that follows shows it as done."""
    from demo.clinic.prove import compute_difference

    monkeypatch.setattr(clinic, "step_limit_s", 60)
    task = tasks["orthanc-protect_and_send-01"]
    clinic.reset(task)
    session = clinic.page.context.new_cdp_session(clinic.page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": 8})
    for answer in task.golds[:6]:
        shown = clinic.step(answer.action).observation
    assert compute_difference(shown.screenshot, task.steps[6].image_path) < 4
    (job,) = clinic.stack.get("/jobs?expand")
    assert job["State"] == "Success", "a step ends when what it began has ended"


@needs_clinic
@pytest.mark.slow
def test_list_is_shown_as_it_is_filtered_however_slow_the_server_is(clinic, tasks):
    from demo.clinic.prove import compute_difference

    task = tasks["ohif_measure_zoomed_06"]
    clinic.reset(task)
    session = clinic.page.context.new_cdp_session(clinic.page)
    session.send("Network.enable")
    slow = {"offline": False, "latency": 2000, "downloadThroughput": -1, "uploadThroughput": -1}
    session.send("Network.emulateNetworkConditions", slow)
    shown = clinic.step(task.golds[0].action).observation
    assert compute_difference(shown.screenshot, task.steps[1].image_path) < 1


def begin(clinic, task, n_actions):
    """Carry out the first recorded actions of a task."""
    clinic.reset(task)
    for answer in task.golds[:n_actions]:
        clinic.step(answer.action)


@needs_clinic
@pytest.mark.slow
def test_half_of_the_actions_do_not_reach_the_goal(clinic, tasks):
    task = tasks["orthanc-protect_and_send-01"]
    begin(clinic, task, 4)
    assert "received" in clinic.verify().reason  # protected, but not sent


@needs_clinic
@pytest.mark.slow
def test_nothing_of_a_task_is_left_after_a_reset(clinic, tasks):
    from demo.clinic.prove import replay

    clean = clinic.reset(tasks["orthanc-browse_to_series-09"]).screenshot
    replay(clinic, tasks["orthanc-protect_and_send-01"])
    assert clinic.stack.describe_store()["protected"] and clinic.stack.received.exists()
    assert clinic.reset(tasks["orthanc-browse_to_series-09"]).screenshot == clean
    assert not clinic.stack.describe_store()["protected"] and not clinic.stack.received.exists()


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        (Action("CLICK", "x" * 2_000), "not_found"),
        (Action("CLICK", """'"]); alert(1); //<img src=x onerror=alert(1)> \\ \u202e\u0000"""), "not_found"),
        (Action("CLICK", "*"), "not_found"),
        (Action("CLICK", "a:visible >> nth=0"), "not_found"),
        (Action("CLICK", "Twice"), "ambiguous"),
        (Action("TEXT", "All patients", {"text": "a"}), "impossible"),
        (Action("TEXT", "Patient ID"), "impossible"),
        (Action("TEXT", "anything", {"text": "a", "point": [175.0, 750.0]}), "impossible"),
        (Action("SCROLL", "page"), "impossible"),
        (Action("ZOOM", "All patients", {"direction": "in"}), "impossible"),
        (Action("SEGMENT", "Length"), "impossible"),
        (Action("WAIT", ""), "impossible"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind} {value.target[:20]!a}",
)
def test_action_that_cannot_be_done_has_an_outcome_and_changes_nothing(first_screen, action, outcome):
    clinic, shown = first_screen
    execution = clinic.step(action)
    assert execution.outcome == outcome, execution.reason
    assert execution.point is None and execution.reason and len(execution.reason) < 200
    assert execution.observation == shown


@pytest.fixture(scope="module")
def first_screen(clinic, tasks):
    """The lookup page with two unseen buttons of one name: what is done on it does nothing."""
    shown = clinic.reset(tasks["orthanc-browse_to_series-09"])
    clinic.page.evaluate(
        """() => [0, 80].forEach(left => document.querySelector(".ui-page-active").insertAdjacentHTML("beforeend",
            `<button style="position: fixed; bottom: 0; opacity: 0; left: ${left}px">Twice</button>`))"""
    )
    return clinic, shown


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize(
    "action",
    [Action("CLICK", "all  PATIENTS:"), Action("CLICK", "anything", {"point": [175.0, 750.0]})],
    ids=["by a name that is written another way", "by a point"],
)
def test_action_is_done_where_its_name_or_its_point_is(clinic, tasks, action):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    execution = clinic.step(action)
    assert execution.outcome == "done" and execution.observation.description == "app/explorer.html#find-patients"
    assert execution.point == pytest.approx((223.5, 600), abs=2)


@pytest.fixture
def listener():
    """A server on another address of this machine, which a browser could reach: what is asked of it, and its port."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.2:{server.server_port}/alive", timeout=10):
        assert asked == ["/alive"]
    asked.clear()
    yield asked, server.server_port
    server.shutdown()
    server.server_close()


ASK = """async url => {
  fetch(url + "fetch", {mode: "no-cors"}).catch(String);
  new Image().src = url + "image";
  navigator.sendBeacon(url + "beacon");
  new WebSocket(url.replace("http", "ws") + "socket");
  const socket = url.replace("http", "ws") + "worker_socket";
  const script = `fetch("${url}worker", {mode: "no-cors"}).catch(String); new WebSocket("${socket}")`;
  new Worker(URL.createObjectURL(new Blob([script])));
  await new Promise(resolve => setTimeout(resolve, 1000));
}"""


@needs_clinic
@pytest.mark.slow
def test_no_request_leaves_this_machine(clinic, tasks, listener):
    """Nor goes to another address of it, where a server would answer; the step after says so to the reader."""
    asked, port = listener
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    addresses = (f"http://127.0.0.2:{port}/", f"http://localhost:{port}/", "https://example.com/")
    for address in addresses:
        clinic.page.evaluate(ASK, address)
    assert asked == []
    for address in addresses:
        for kind in ("fetch", "image", "beacon", "worker", "socket", "worker_socket"):
            url = address + kind if "socket" not in kind else address.replace("http", "ws") + kind
            assert url in clinic.outside_requests
    execution = clinic.step(Action("SCROLL", "page", {"direction": "down"}))
    assert execution.outcome == "done"
    assert execution.reason.startswith(f"asked beyond this machine, and not reached: http://127.0.0.2:{port}/")
    assert clinic.step(Action("SCROLL", "page", {"direction": "up"})).reason == ""
    clinic.outside_requests.clear()


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize(
    "address", ["file:///etc/hostname", "view-source:file:///etc/hostname", "chrome://version", "data:text/html,out"]
)
def test_page_reaches_no_file_and_none_of_the_browsers_own_pages(clinic, tasks, address):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    page, contexts = clinic.page, clinic.page.context
    at = page.url
    page.evaluate(
        """address => document.querySelector(".ui-page-active").insertAdjacentHTML("beforeend",
            `<a href="${address}" rel="external" style="position: fixed; bottom: 0; left: 0">Here</a>
             <a href="${address}" target="_blank" style="position: fixed; bottom: 0; left: 80px">There</a>`)
        """,
        address,
    )
    for name in ("Here", "There"):
        assert clinic.step(Action("CLICK", name)).outcome == "done"
        assert (page.url, len(contexts.pages)) == (at, 2), "the browser's first page and this one"
    page.evaluate("address => { location.href = address }", address)
    page.evaluate(
        """address => document.body.insertAdjacentHTML("beforeend",
            `<iframe src="${address}" style="position: fixed; bottom: 0; left: 200px; border: 0"></iframe>`)""",
        address,
    )
    inner = [frame.url for frame in page.frames[1:]]
    if not address.startswith("data:"):  # which is the page's own text
        assert "Failed to fetch" in page.evaluate("address => fetch(address).catch(String)", address)
        assert inner and not any(url.startswith(address.partition(":")[0]) for url in inner), inner
    assert clinic.step(Action("SCROLL", "page", {"direction": "down"})).outcome == "done"
    assert page.url == at


@needs_clinic
@pytest.mark.slow
def test_download_and_upload_move_no_file(clinic, tasks):
    """A study has links for its images; the page to upload has a button that opens the browser's choice of files."""
    from demo.clinic.samples import list_instances

    task = tasks["orthanc-protect_and_send-01"]
    begin(clinic, task, 3)
    asked = []
    clinic.page.on("download", lambda download: asked.append(download.failure()))
    for name in ("Download ZIP", "Download DICOMDIR"):
        assert clinic.step(Action("CLICK", name)).outcome == "done"
    assert len(asked) == 2 and all(asked), "both were refused by the browser"
    clinic.step(Action("CLICK", "Upload"))
    assert clinic.step(Action("CLICK", "Select files to upload ...")).outcome == "done"
    assert clinic.step(Action("TEXT", "Select files to upload ...", {"text": "/etc/hostname"})).outcome == "impossible"
    clinic.step(Action("CLICK", "Start the upload"))
    assert clinic.page.evaluate(
        "[...document.querySelectorAll('input[type=file]')].map(field => field.files.length)"
    ) == [0]
    assert clinic.stack.describe_store()["instances"] == list_instances()


SCRIPTS = (
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    '"><script>window.hacked=1</script>',
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
)


@needs_clinic
@pytest.mark.slow
def test_answer_runs_no_script_in_orthanc(clinic, tasks):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    text = " ".join(SCRIPTS)
    for action in (
        Action("TEXT", "Patient Name", {"text": text}),
        Action("CLICK", "Do lookup"),
        Action("CLICK", "Lookup"),
        Action("CLICK", "All patients"),
        Action("TEXT", "Filter items...", {"text": text}),
        Action("CLICK", "Query/Retrieve"),
        Action("TEXT", "Value for this field", {"text": text}),
        Action("CLICK", "Search studies"),
    ):
        assert clinic.step(action).outcome == "done", action
    assert clinic.page.evaluate("() => window.hacked === undefined && !document.querySelector('[onerror], [onload]')")
    assert not clinic.verify().is_reached and clinic.outside_requests == []


@needs_clinic
@pytest.mark.slow
def test_answer_runs_no_script_in_ohif(clinic, tasks):
    """What is typed stands in the study list's filter, and in its address."""
    clinic.reset(tasks["ohif_measure_zoomed_06"])
    assert clinic.step(Action("TEXT", "Patient Name", {"text": " ".join(SCRIPTS)})).outcome == "done"
    assert clinic.page.evaluate("() => window.hacked === undefined && !document.querySelector('[onerror], [onload]')")
    assert clinic.outside_requests == []


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize("text", ["X\t\t \n1", "X\r\x1b\x08\ue00c\ud800", "Control+l"])
def test_text_is_typed_into_its_field_and_presses_no_other_key(clinic, tasks, text):
    """Neither Enter, which sends a form off, nor a shortcut of the browser, nor a field beside it."""
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    clinic.page.evaluate(
        """() => { window.pressed = []; document.addEventListener("keydown", event => pressed.push(event.key)); }"""
    )
    at = clinic.page.url
    assert clinic.step(Action("TEXT", "Patient ID", {"text": text})).outcome == "done"
    fields = clinic.page.evaluate(
        "[...document.querySelectorAll('[id^=lookup-][type=text]')].map(field => field.value)"
    )
    assert fields[0][0] == text[0] and fields[1:] == ["", "", ""] and clinic.page.url == at
    assert clinic.page.evaluate("document.activeElement.id") == "lookup-patient-id"
    pressed = set(clinic.page.evaluate("window.pressed"))
    assert not pressed & {"Enter", "Tab", "Escape", "Backspace", "F6", "Alt", "Meta"}


@needs_clinic
@pytest.mark.slow
def test_window_that_a_link_opens_is_closed(clinic, tasks):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    clinic.page.evaluate(
        """() => document.querySelector(".ui-page-active").insertAdjacentHTML("beforeend",
            `<a href="/system" target="_blank" style="position: fixed; bottom: 0; left: 0; opacity: 0">There</a>`)"""
    )
    assert clinic.step(Action("CLICK", "There")).outcome == "done"
    assert len(clinic.page.context.pages) == 2, "the browser's first page and the program's"


@needs_clinic
@pytest.mark.slow
def test_other_machine_is_refused_over_http_and_dicom(clinic, tasks):
    """Asked from an address of this machine that is not the loopback's, as another machine would ask."""
    import requests
    from pynetdicom import AE

    clinic.reset(tasks["orthanc-browse_to_series-09"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; names the interface that would
        except OSError:
            pytest.skip("this machine has no other interface than the loopback")
        outside = probe.getsockname()[0]
    stack = clinic.stack
    assert requests.get(f"http://{outside}:{stack.orthanc_port}/system", timeout=10).status_code == 401
    stranger = AE("STRANGER")
    stranger.add_requested_context("1.2.840.10008.1.1")  # echo
    association = stranger.associate(outside, stack.dicom_port, ae_title="ORTHANC")
    status = association.send_c_echo().get("Status") if association.is_established else None
    association.abort()
    assert status != 0


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize("address", ["/system", "https://example.com/"], ids=["raw JSON", "another site"])
def test_agent_that_leaves_the_program_is_told_so_by_no_failure(clinic, tasks, address):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    clinic.page.evaluate("address => { setTimeout(() => { location.href = address; }, 200); }", address)
    assert clinic.step(Action("SCROLL", "page", {"direction": "down"})).outcome == "done"
    assert clinic.step(Action("CLICK", "All patients")).outcome == "not_found"
    assert not clinic.verify().is_reached
    clinic.outside_requests.clear()


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize("program", ["orthanc", "nginx", "peer", "chromium"])
def test_program_that_dies_in_a_task_is_a_failure_and_back_at_the_next_reset(clinic, tasks, program):
    from demo.clinic.prove import replay

    task = tasks["orthanc-browse_to_series-09"]
    clinic.reset(task)
    if program == "chromium":
        clinic.kill_browser()
    else:
        os.kill(int((clinic.stack.folder / f"{program}.pid").read_text()), signal.SIGKILL)
    with pytest.raises(EnvironmentFailure, match=program if program != "chromium" else "browser"):
        clinic.step(task.golds[0].action)
        clinic.step(task.golds[1].action)
    replay(clinic, task)
    assert clinic.verify().is_reached


@needs_clinic
@pytest.mark.slow
def test_page_that_never_settles_is_said_to_be_unsettled(clinic, tasks):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    clinic.page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", "<p id=noise style='position: fixed; top: 0'></p>");
            setInterval(() => { document.querySelector("#noise").innerText = Math.random(); }, 30);
        }"""
    )
    began = time.monotonic()
    execution = clinic.step(Action("SCROLL", "page", {"direction": "down"}))
    assert execution.outcome == "unsettled" and execution.observation.screenshot
    assert clinic.step_limit_s <= time.monotonic() - began < 3 * clinic.step_limit_s


@needs_clinic
@pytest.mark.slow
def test_page_that_hangs_is_ended(clinic, tasks, monkeypatch):
    task = tasks["orthanc-browse_to_series-09"]
    clinic.reset(task)
    monkeypatch.setattr(clinic, "step_limit_s", 3)
    clinic.page.evaluate("() => { setTimeout(() => { for (;;); }, 100); }")
    with pytest.raises(EnvironmentFailure, match="browser"):
        clinic.step(Action("CLICK", "All patients"))
    monkeypatch.undo()
    clinic.reset(task)


@needs_clinic
@pytest.mark.slow
def test_reset_that_does_not_work_is_a_failure(clinic, tasks):
    """Another program holds Orthanc's port; and a store that holds something else is noticed."""
    import requests

    task = tasks["orthanc-browse_to_series-09"]
    clinic.reset(task)
    patient = clinic.stack.get("/patients")[0]
    requests.put(f"{clinic.stack.orthanc_url}/patients/{patient}/protected", data="1", timeout=10).raise_for_status()
    with pytest.raises(RuntimeError, match="not in its known state; found .*protected"):
        clinic.stack.check()
    clinic.stack.stop(["orthanc"])
    with (
        socket.create_server(("127.0.0.1", clinic.stack.orthanc_port)),
        pytest.raises(EnvironmentFailure, match="port"),
    ):
        clinic.reset(task)
    clinic.reset(task)


@needs_clinic
@pytest.mark.slow
def test_second_run_in_the_same_folder_is_refused(clinic, tasks):
    from demo.clinic.environment import Clinic

    clinic.reset(tasks["orthanc-browse_to_series-09"])
    other = Clinic(folder=clinic.stack.folder, port_base=clinic.stack.orthanc_port)
    with pytest.raises(EnvironmentFailure, match="in use by another run"):
        other.reset(tasks["orthanc-browse_to_series-09"])
    other.close()
    assert clinic.stack.is_running("orthanc"), "what it did not start it does not stop"


@needs_clinic
@pytest.mark.slow
def test_start_starts_once_and_stop_ends_it(tmp_path):
    def run(command):
        arguments = ["--folder", str(tmp_path / "clinic"), "--port_base", str(find_free_ports() + 40)]
        command = [sys.executable, "-m", "demo.clinic.stack", command, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout

    try:
        assert run("start").startswith("started: peer, orthanc, nginx\nOrthanc http://127.0.0.1:")
        assert run("start").startswith("runs already\n")
    finally:
        stopped = run("stop")
    assert stopped == "stopped: nginx, peer, orthanc\n"
    assert run("stop") == "stopped: nothing ran\n"


CLINIC = """
from pathlib import Path
from demo.clinic.environment import Clinic

def open_environment(step_limit_s):
    return Clinic(step_limit_s, Path({folder!r}), port_base={port_base})
"""


@needs_clinic
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_asked_to_end_leaves_no_program_running(tmp_path, number):
    folder = tmp_path / "clinic"
    (tmp_path / "own_clinic.py").write_text(CLINIC.format(folder=str(folder), port_base=find_free_ports() + 60))
    given = ["--policy", "replay", "--environment", "own_clinic", "--tasks", ROOT / "demo/data/test.csv"]
    command = [sys.executable, ROOT / "eval/live.py", *given, "--output_dir", tmp_path / "live"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as run:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("live/screens/*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(list_processes(folder)) >= 4, "three programs and the browser"
        run.send_signal(number)
        printed = run.communicate(timeout=120)[1]
    assert run.returncode == (128 + number if number == signal.SIGTERM else -number), printed
    assert list_processes(folder) == []


def list_processes(folder):
    """List the processes whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.read_bytes())
    return found


@needs_clinic
@pytest.mark.slow
def test_every_task_of_the_demo_has_a_check(clinic, tasks):
    from demo.clinic import ohif_checks, orthanc_checks

    assert [clinic.find_obstacle(task) for task in tasks.values()] == [None] * 87
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    for task in load_tasks().values():
        (orthanc_checks if task.program == "orthanc" else ohif_checks).build_check(task, clinic.stack)


def test_tasks_of_the_demo_are_those_of_the_clinic():
    for path in sorted((ROOT / "demo/data").glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                task = load_tasks()[row["Task_id"]]
                assert (task.goal, task.workflow) == (row["Instruction"], row["Workflow"])


@needs_clinic
def test_task_that_the_clinic_does_not_have_is_an_obstacle(tasks):
    from demo.clinic import open_environment

    task = tasks["orthanc-browse_to_series-09"]
    environment = open_environment(30.0)
    assert "no task" in environment.find_obstacle(replace(task, task_id="another"))
    left_out = load_tasks()["ohif_measure_two_03"]
    assert "moves" in environment.find_obstacle(replace(task, task_id=left_out.task_id, instruction=left_out.goal))
    assert "another goal" in environment.find_obstacle(replace(task, instruction="Delete everything"))


def test_goal_is_reached_by_a_way_in_order_and_an_end():
    check = Check(
        way=[now("a", lambda s: s["at"] == "a"), Fact("up", lambda before, after: after["n"] > before["n"])],
        end=[now("home", lambda s: s["at"] == "home")],
    )

    def judge(*states):
        return check.judge([{"at": at, "n": n} for at, n in states])

    assert judge(("home", 0)) == (False, "not yet: a")
    assert judge(("home", 0), ("a", 0), ("home", 0)) == (False, "not yet: up")
    assert judge(("home", 0), ("a", 1), ("home", 1)) == (False, "not yet: up")  # up before a was reached
    assert judge(("home", 0), ("a", 0), ("a", 1)) == (False, "not so: home")
    assert judge(("home", 0), ("a", 0), ("a", 1), ("home", 1)) == (True, "reached")
