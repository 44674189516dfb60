"""The clinic: Orthanc and OHIF are operated, reset and judged; whatever happens to them has a defined outcome."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

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


@needs_clinic
@pytest.mark.slow
def test_half_of_the_actions_do_not_reach_the_goal(clinic, tasks):
    task = tasks["orthanc-protect_and_send-01"]
    clinic.reset(task)
    for answer in task.golds[:4]:
        clinic.step(answer.action)
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


@needs_clinic
@pytest.mark.slow
def test_no_request_leaves_this_machine(clinic, tasks):
    clinic.reset(tasks["orthanc-browse_to_series-09"])
    for address in ("https://example.com/", "http://192.0.2.1/", "http://localhost:1/"):
        error = clinic.page.evaluate("url => fetch(url).then(() => 'reached', error => String(error))", address)
        assert "Failed to fetch" in error
    assert clinic.outside_requests == ["https://example.com/", "http://192.0.2.1/", "http://localhost:1/"]
    clinic.outside_requests.clear()


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
