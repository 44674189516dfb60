"""Live runs: a real small program is operated and judged; every outcome, fault, resumption and refusal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec

import pytest
from conftest import ROOT
from live_samples import DRIVE, TASKS, WORKLIST, label, load_worklist, record
from PIL import Image
from test_servers import answer_with, serve
from trajectory_samples import TINY_AGENT

from eval.environments.environment import EnvironmentFailure
from eval.environments.episode import load_episodes
from eval.environments.operate import limit_time
from eval.live import main
from eval.rollout import main as roll_out
from eval.score import main as score
from sft.actions import DEFAULT_ACTIONS, Action, ActionType
from sft.agent import agent_to_json
from sft.errors import UserError
from sft.files import claim_folder

LATER = ("started", "finished", "latency_s", "execution_s")


@pytest.fixture(scope="module")
def tasks_csv(tmp_path_factory):
    """Three tasks of five steps, recorded in the worklist."""
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def operate(tmp_path, tasks_csv):
    """Run tasks live in the worklist; return episodes by task id, and the metrics."""
    load_worklist()

    def run(*arguments, csv=tasks_csv, folder=tmp_path / "live", environment="worklist"):
        given = ["--environment", environment, "--tasks", str(csv), "--output_dir", str(folder)]
        main([*given, *map(str, arguments)])
        return _read(folder)

    return run


def _read(folder):
    episodes = {episode.task_id: episode for episode in load_episodes(folder / "episodes.jsonl")}
    return episodes, json.loads((folder / "metrics.json").read_text())


def _said(tmp_path, **tasks):
    """Record tasks of the goal of `head` that go as the actions say."""
    goals = {task_id: (f"Label CT head as {task_id}", actions) for task_id, actions in tasks.items()}
    return record(tmp_path / "said", goals)


@pytest.mark.slow
def test_replay_succeeds_in_every_task_and_empty_in_none(operate, tmp_path):
    episodes, metrics = operate("--policy", "replay", folder=tmp_path / "replay")
    assert [episode.result for episode in episodes.values()] == ["success"] * 3
    assert metrics["success"]["value"] == metrics["steps_against_recorded"]["ratio"]["value"] == 1.0
    assert [step.outcome for step in episodes["knee"].steps] == ["done"] * 4 + ["complete"]
    assert [step.is_reached for step in episodes["knee"].steps] == [False, False, True, True, True]
    assert episodes["knee"].reached_at == 3
    assert episodes["knee"].steps[2].verdict == "labelled in the database: [('MR knee', 'seen')]"
    episodes, metrics = operate("--policy", "empty", folder=tmp_path / "empty")
    assert [episode.result for episode in episodes.values()] == ["budget"] * 3
    assert metrics["step_outcomes"]["unreadable"] == metrics["n_steps"] == 2 * 15
    assert metrics["success"]["value"] == metrics["reached"]["value"] == 0.0


def test_replay_that_acts_on_another_study_succeeds_in_none(operate, tmp_path):
    others = {"head": "MR knee", "head2": "MR knee", "knee": "CT head"}
    texts = {"head": "urgent", "head2": "seen", "knee": "seen"}
    wrong = {task_id: (goal, label(others[task_id], texts[task_id])) for task_id, (goal, _) in TASKS.items()}
    episodes, _ = operate("--policy", "replay", csv=record(tmp_path / "wrong", wrong))
    assert [episode.result for episode in episodes.values()] == ["silent_wrong_effect"] * 3


def test_every_task_has_one_result(operate, tmp_path):
    right = label("CT head", "noticed")[:-1]
    csv = _said(
        tmp_path,
        silent=label("MR knee", "silent"),
        noticed=right,  # the recording does not say COMPLETE, so nor does its replay
        left=[*label("CT head", "left")[:-1], *label("MR knee", "left")],
        left2=[*label("CT head", "left2")[:-1], *label("MR knee", "left2")[:-1]],
        nothing=[Action("CLICK", "CT head"), Action("CLICK", "Close")],
    )
    episodes, metrics = operate("--policy", "replay", csv=csv)
    assert {task_id: episode.result for task_id, episode in episodes.items()} == {
        "silent": "silent_wrong_effect",
        "noticed": "not_noticed",
        "left": "silent_wrong_effect",
        "left2": "not_noticed",
        "nothing": "budget",
    }
    assert metrics["results"] == {
        "success": 0,
        "silent_wrong_effect": 2,
        "not_noticed": 2,
        "given_up": 0,
        "budget": 1,
        "error": 0,
    }
    assert metrics["left_again"] == 2 and metrics["reached"]["value"] == 3 / 5
    assert len(episodes["nothing"].steps) == 2 * 2


def test_what_cannot_be_carried_out_is_an_outcome_and_leaves_the_screen(operate, tmp_path):
    twice = [Action("CLICK", "US liver")] * 3
    others = [
        Action("CLICK", "x" * 2000),
        Action("SCROLL", "MR knee", {"direction": "down"}),
        Action("CLICK", "CT head"),
    ]
    episodes, metrics = operate("--policy", "replay", csv=_said(tmp_path, odd=[*twice, *others]))
    steps = episodes["odd"].steps
    assert [step.outcome for step in steps[:6]] == ["ambiguous"] * 3 + ["not_found", "impossible", "done"]
    assert len({step.image_id for step in steps[:6]}) == 1
    assert steps[0].reason == "2 such elements" and steps[3].reason == "0 such elements"
    assert steps[0].point is None and steps[5].point == [128.0, 54.0]
    assert set(steps[3].memory_after["short_term"]["last_target"]) == {"x"}  # what the model believes it did
    assert metrics["loops"]["n_tasks"] == 1 and metrics["loops"]["in_loops"]["value"] == 3 / 12
    assert metrics["step_outcomes"]["unreadable"] == 6  # after the recording's last


def test_point_is_where_the_action_is_done(operate, tmp_path):
    (tmp_path / "agent.json").write_text(json.dumps(agent_to_json(replace(TINY_AGENT, points=True))))
    text = '{"action":"CLICK","target":"","point":[500,280],"short_term":{},"long_term":{}}'
    done = '{"action":"COMPLETE","target":""}'
    episodes, _ = _ask_server(
        operate, tmp_path, [text, done], "--max_tasks", "1", "--agent_config", tmp_path / "agent.json"
    )
    step = episodes["head"].steps[0]
    assert (step.outcome, step.description) == ("done", "worklist")
    assert episodes["head"].steps[1].description == "study CT head"


def _say(text):
    message = {"role": "assistant", "content": text}
    return answer_with(content={"choices": [{"message": message, "finish_reason": "stop"}]})


def _ask_server(operate, tmp_path, texts, *arguments):
    """Let a served model say these texts, one a step."""
    with serve(lambda n: _say(texts[n])) as server:
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m"]
        return operate(*engine, *arguments, folder=tmp_path / "served")


def test_answers_that_are_no_action_are_unreadable_and_keep_memory_and_screen(operate, tmp_path):
    texts = [
        '{"action":"CLICK","target":"CT head","short_term":{"at":"study"}}',
        "I would click on Label.",
        '{"action":"CLICK","target":"' + "x" * 2001 + '"}',
        '{"action":"TELEPORT","target":"Label"}',
        '{"action":"CLICK"}',
        '{"action":"TEXT","target":"Label","text":"urgent"}',
        '{"action":"CLICK","target":"Save"}',
        '{"action":"CLICK","target":"<script>alert(1)</script>"}',
        '{"action":"COMPLETE"}',
    ]
    episodes, metrics = _ask_server(operate, tmp_path, texts, "--max_tasks", "1")
    steps = episodes["head"].steps
    outcomes = ["done", *["unreadable"] * 4, "done", "done", "not_found", "complete"]
    assert [step.outcome for step in steps] == outcomes
    assert [step.parse_status for step in steps[1:5]] == ["no_json", "ok", "no_action", "ok"]
    assert "found a target of 2001 characters" in steps[2].reason and "found no target" in steps[4].reason
    assert {step.image_id for step in steps[1:6]} == {steps[1].image_id}
    assert all(step.memory_before == {"short_term": {"at": "study"}, "long_term": {}} for step in steps[1:])
    assert episodes["head"].result == "success"
    assert metrics["steps_against_recorded"]["ratio"]["value"] == 9 / 5


def test_action_that_needs_no_target_is_taken_whatever_it_names(operate, tmp_path):
    """As offline, where such an answer is right: the last action of any name, and one on no element."""
    own = (*DEFAULT_ACTIONS[:-1], ActionType("BACK", "go back", takes_target=False))
    agent = replace(TINY_AGENT, actions=(*own, ActionType("DONE", "the goal is reached", is_final=True)))
    (tmp_path / "agent.json").write_text(json.dumps(agent_to_json(agent)))
    csv = record(tmp_path / "own", {"head": ("Label CT head as urgent", label("CT head", "urgent"))})
    csv.write_text(csv.read_text().replace("COMPLETE", "DONE"))
    texts = ['{"action":"BACK","target":"the button"}', '{"action":"DONE","target":{"name":"none"}}']
    with serve(lambda n: _say(texts[n])) as server:
        given = ["--engine", "openai", "--api_url", server.url, "--model_path", "m"]
        episodes, _ = operate(*given, "--agent_config", tmp_path / "agent.json", csv=csv)
    back, done = episodes["head"].steps
    assert (back.outcome, back.reason) == ("not_found", "0 such elements")  # what the worklist says of it
    assert (done.outcome, done.left_out, episodes["head"].ending) == ("complete", ["target"], "complete")


def test_final_action_that_is_not_the_first_gives_up(operate, tmp_path):
    """It says that the goal cannot be reached: no wrong claim, and no success though it is reached."""
    fail = ActionType("FAIL", "the goal cannot be reached", is_final=True)
    (tmp_path / "agent.json").write_text(
        json.dumps(agent_to_json(replace(TINY_AGENT, actions=(*DEFAULT_ACTIONS, fail))))
    )
    gives_up, right = Action("FAIL", "task"), label("CT head", "late")[:-1]
    csv = _said(tmp_path, early=[Action("CLICK", "CT head"), gives_up], late=[*right, gives_up])
    episodes, metrics = operate("--policy", "replay", "--agent_config", tmp_path / "agent.json", csv=csv)
    assert (episodes["early"].ending, episodes["early"].result) == ("given_up", "given_up")
    assert (episodes["late"].ending, episodes["late"].result) == ("given_up", "not_noticed")
    assert metrics["step_outcomes"]["given_up"] == 2 and metrics["step_outcomes"]["complete"] == 0
    assert metrics["success"]["value"] == 0 and metrics["results"]["silent_wrong_effect"] == 0
    assert "given up" in (tmp_path / "live/report.html").read_text()


def test_alarm_that_comes_as_a_call_returns_interrupts_nothing_else(monkeypatch):
    set_timer, late = signal.setitimer, []

    def set_late(which, seconds, *interval):
        if seconds == 0 and not late:
            late.append(True)
            os.kill(os.getpid(), signal.SIGALRM)
        set_timer(which, seconds, *interval)

    monkeypatch.setattr(signal, "setitimer", set_late)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(EnvironmentFailure, match="the step CLICK took longer"), limit_time(60, "the step CLICK"):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is before


def test_step_that_is_not_answered_is_no_error_of_the_program(operate, tmp_path, capsys):
    said = [_say('{"action":"CLICK","target":"CT head"}'), answer_with(400, {"error": "too long"})]
    with serve(lambda n: said[min(n, 1)]) as server:
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m", "--max_tasks", "1"]
        episodes, metrics = operate(*engine)
    assert [step.outcome for step in episodes["head"].steps] == ["done", *["unanswered"] * 9]
    assert "too long" in episodes["head"].steps[1].reason
    assert episodes["head"].result == "budget" and metrics["n_errors"] == 0
    assert "9 steps were not answered; the first: " in capsys.readouterr().out


SHOWS_RECORDED = """
class Recorded(Worklist):
    "Shows the recorded screens, whatever is done."

    def reset(self, task):
        self.left = [step.image_path for step in task.steps]
        return self.show()

    def step(self, action):
        return Execution(self.show(), "done")

    def show(self):
        return Observation((self.left.pop(0) if len(self.left) > 1 else self.left[0]).read_bytes())

    def verify(self):
        return Verdict(False, "")

def open_environment(step_limit_s):
    return Recorded(tempfile.mkdtemp())
"""


@pytest.mark.slow
def test_model_is_asked_as_in_a_rollout_with_its_own_memory(operate, tasks_csv, tiny_checkpoints, tmp_path):
    """Where the screens are the recorded ones, prompts, answers and memories are the rollout's, to the character."""
    load_worklist("recorded", SHOWS_RECORDED)
    (tmp_path / "agent.json").write_text(json.dumps(agent_to_json(TINY_AGENT)))
    model = ["--model_path", tiny_checkpoints["qwen3_vl"], "--agent_config", tmp_path / "agent.json"]
    # held to the schema, so that a model that learnt nothing gives answers that can be read, and writes memory
    model += ["--decoding", "constrained"]
    episodes, _ = operate(*model, environment="recorded")
    roll_out(["--test_csv", str(tasks_csv), "--output_dir", str(tmp_path / "own"), *map(str, model)])
    steps = [json.loads(line) for line in (tmp_path / "own/steps.jsonl").read_text().splitlines()]
    keys = ("raw_text", "memory_before", "memory_after", "parse_status", "n_prompt_tokens")
    compared = 0
    for step in steps:
        mine = episodes[step["task_id"]].steps
        if step["index"] < len(mine) and all(s.outcome == "done" for s in mine[: step["index"]]):
            assert [getattr(mine[step["index"]], key) for key in keys] == [step[key] for key in keys]
            compared += 1
    assert compared >= 3


# The worklist in a process of its own, which can be killed; and what else goes wrong with programs.
FAULTS = """
import multiprocessing, os, signal, time

def serve(pipe, folder):
    program = Worklist(folder)
    while True:
        name, argument = pipe.recv()
        if getattr(argument, "target", "") == "CT head" and "dies" in program.goal[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send(getattr(program, name)(*([] if argument is None else [argument])))

class Remote:
    def __init__(self, limit_s):
        self.process, self.limit_s = None, limit_s

    def call(self, name, argument=None):
        try:
            self.pipe.send((name, argument))
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise EnvironmentFailure(f"the program is gone ({type(error).__name__})") from error

    def find_obstacle(self, task):
        return Worklist(".").find_obstacle(task)

    def reset(self, task):
        if "broken" in task.instruction:
            raise EnvironmentFailure("no reset today")
        if self.process is None or not self.process.is_alive():
            self.pipe, other = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("fork").Process(
                target=serve, args=(other, tempfile.mkdtemp()), daemon=True)
            self.process.start()
            other.close()
        self.instruction = task.instruction
        return self.call("reset", task)

    def step(self, action):
        if "hangs" in self.instruction:
            time.sleep(60)
        execution = self.call("step", action)
        if "blind" in self.instruction:
            return Execution(Observation(b"no picture"), "done")
        if "restless" in self.instruction:
            return Execution(execution.observation, "unsettled", "still loading")
        return execution

    def verify(self):
        return Verdict(True, "always") if "reached" in self.instruction else self.call("verify")

    def close(self):
        if self.process:
            self.process.kill()

def open_environment(step_limit_s):
    return Remote(step_limit_s)
"""


SLOPPY = """
import numpy as np

class Sloppy(Worklist):
    def find_obstacle(self, task):
        return {}["obstacle"] if "obstacle" in task.instruction else True if "true" in task.instruction else None

    def reset(self, task):
        return None if "reset" in task.instruction else super().reset(task)

    def step(self, action):
        done = super().step(action)
        if "raises" in self.goal[1]:
            raise ValueError("a colour\\x1b[31m")
        if "exits" in self.goal[1]:
            raise SystemExit(0)
        if "bytes" in self.goal[1]:
            return Execution(Observation(done.observation.screenshot, b"bytes"), "done")
        if "odd" in self.goal[1]:
            return Execution(done.observation, "well done")
        if "nowhere" in self.goal[1]:
            return Execution(done.observation, "done", point=(float("nan"), 5))
        return Execution(done.observation, done.outcome, done.reason, np.array(done.point))

    def verify(self):
        if "nothing" in self.goal[1]:
            return None
        if self.goal[1].endswith("no"):
            return Verdict("no", "")
        return Verdict(np.bool_(super().verify().is_reached), np.str_("as NumPy says"))

def open_environment(step_limit_s):
    return Sloppy(tempfile.mkdtemp())
"""


def test_environment_with_mistakes_of_its_own_ends_no_run(operate, tmp_path):
    """An environment is anybody's code: what it raises is told with its line, and the next task begins."""
    load_worklist("sloppy", SLOPPY)
    mistakes = ("obstacle", "true", "reset", "raises", "exits", "odd", "bytes", "nothing", "no", "nowhere")
    names = [name for n, mistake in enumerate(mistakes) for name in (f"{n} fine", f"{n} {mistake}")]
    csv = _said(tmp_path, **{name: label("CT head", name) for name in names})
    episodes, metrics = operate("--policy", "replay", csv=csv, environment="sloppy")
    failed = [name for name in names if not name.endswith(("fine", "bytes"))]
    assert {name for name in names if episodes[name].result == "error"} == set(failed)
    assert metrics["results"]["success"] == 11 and metrics["n_errors"] == 9
    assert episodes["0 fine"].steps[0].verdict == "as NumPy says"
    reasons = {name.partition(" ")[2]: episodes[name].reason for name in names[1::2]}
    assert reasons["obstacle"].startswith("find_obstacle failed: KeyError: 'obstacle' (")
    assert "AttributeError: 'NoneType'" in reasons["reset"] and "AttributeError: 'NoneType'" in reasons["nothing"]
    assert reasons["raises"].startswith("the step CLICK failed: ValueError: a colour")
    assert "found the outcome 'well done'; expected one of ('done', 'not_found'" in reasons["odd"]
    assert "find_obstacle: found True; expected a reason in words" in reasons["true"]
    assert reasons["exits"].startswith("the step CLICK failed: SystemExit: 0 (")
    assert "step: found the point (nan, 5); expected x and y in pixels" in reasons["nowhere"]
    assert "verify: found is_reached 'no'; expected True or False" in reasons["no"]
    assert episodes["6 bytes"].steps[1].description == "b'bytes'"
    assert "\x1b" not in (tmp_path / "live/report.html").read_text()


CLOSES = """
class Closes(Worklist):
    def close(self):
        raise {}

def open_environment(step_limit_s):
    return Closes(tempfile.mkdtemp())
"""


@pytest.mark.parametrize(
    ("raised", "told"), [(r"RuntimeError('\x1b[2J')", "RuntimeError: ?[2J ("), ("SystemExit(3)", "SystemExit: 3 (")]
)
def test_close_that_fails_costs_no_result(operate, caplog, raised, told):
    load_worklist("closes", CLOSES.format(raised))
    assert operate("--policy", "replay", environment="closes")[1]["success"]["value"] == 1
    assert f"the program could not be stopped: {told}" in caplog.text


@pytest.mark.slow
def test_run_that_is_asked_to_end_stops_the_program(tasks_csv, tmp_path):
    """Whatever the program was at: its `close` is called, and called to its end."""
    (tmp_path / "slow_worklist.py").write_text(WORKLIST + SLOW + ENDS)
    given = ["--policy", "replay", "--environment", "slow_worklist", "--tasks", str(tasks_csv), "--output_dir"]
    command = [sys.executable, str(ROOT / "eval/live.py"), *given, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out/screens").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while not (tmp_path / "closing").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)  # again, as an impatient scheduler does
        printed = process.communicate(timeout=60)[1]
    assert (process.returncode, (tmp_path / "closed").exists()) == (143, True), printed
    assert "Traceback" not in printed
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["results"]["success"] == 3


@pytest.fixture
def faulty():
    load_worklist("faulty", FAULTS)
    return "faulty"


def test_program_that_dies_makes_an_error_and_the_next_task_runs(operate, faulty, tmp_path, capsys):
    csv = _said(tmp_path, dies=label("CT head", "dies"), fine=label("CT head", "fine"))
    episodes, metrics = operate("--policy", "replay", csv=csv, environment=faulty)
    died = episodes["dies"]
    assert (died.result, episodes["fine"].result) == ("error", "success")
    assert died.reason == died.steps[0].reason == "the program is gone (EOFError)"
    assert metrics["n_errors"] == 1 and metrics["success"]["value"] == 0.5
    assert metrics["success_without_errors"]["value"] == 1.0
    assert "1 tasks ended in an error; the first: dies: the program is gone" in capsys.readouterr().out


@pytest.mark.slow
def test_each_fault_of_a_program_is_an_outcome(operate, faulty, tmp_path):
    names = ("restless", "blind", "ok1", "hangs", "reached", "ok2")
    csv = _said(tmp_path, **{name: label("CT head", name) for name in names})
    started = time.monotonic()
    episodes, metrics = operate("--policy", "replay", "--step_limit_s", 0.5, csv=csv, environment=faulty)
    assert time.monotonic() - started < 50
    assert [episodes[name].result for name in names] == ["success", "error", "success", "error", "error", "success"]
    assert metrics["step_outcomes"]["unsettled"] == 4
    assert episodes["restless"].steps[0].reason == "still loading"
    assert episodes["blind"].reason.startswith("found no screenshot")
    assert episodes["hangs"].reason == "the step CLICK took longer than 1.5 s and was interrupted"
    assert episodes["reached"].reason == "the goal is reached before the first step (always)"


def test_errors_in_a_row_stop_the_run_and_are_tried_again(operate, faulty, tmp_path):
    names = [f"broken{i}" for i in range(4)]
    csv = _said(tmp_path, ok=label("CT head", "ok"), **{name: label("CT head", name) for name in names})
    told = r"3 tasks in a row that did not begin; the last, broken2: no reset today.*tries these tasks"
    with pytest.raises(UserError, match=told):
        operate("--policy", "replay", csv=csv, environment=faulty)
    load_worklist("faulty", FAULTS.replace('"broken" in', '"nothing" in'))  # repaired
    episodes, metrics = operate("--policy", "replay", csv=csv, environment=faulty)
    assert {episode.result for episode in episodes.values()} == {"success"}
    assert [episodes[name].n_tries for name in ("ok", *names)] == [1, 2, 2, 2, 1]
    assert metrics["n_tried_again"] == 3


def test_agent_that_crashes_the_program_gains_nothing_by_running_again(operate, faulty, tmp_path, capsys):
    """Each task that it began has its first result, however many they are in a row and however often it is run."""
    names = [f"{i}dies" for i in range(4)]
    csv = _said(tmp_path, **{name: label("CT head", name) for name in (*names, "fine", "5broken")})
    for n_tries in (1, 2):
        episodes, metrics = operate("--policy", "replay", csv=csv, environment=faulty)
        assert [episodes[name].result for name in (*names, "fine", "5broken")] == [*["error"] * 4, "success", "error"]
        assert metrics["success"]["value"] == 1 / 6 and metrics["n_tried_again"] == n_tries - 1
        printed = capsys.readouterr().out
        assert "5 tasks ended in an error" in printed and "1 of them did not begin; the same command" in printed
        load_worklist("faulty", FAULTS.replace('"dies" in', '"nothing" in'))  # by luck it would not crash now


def test_first_verdict_on_an_agent_stands_in_a_file_that_has_a_later_one(operate, faulty, tmp_path):
    """An earlier version tried every error again."""
    csv = _said(tmp_path, dies=label("CT head", "dies"), fine=label("CT head", "fine"))
    operate("--policy", "replay", csv=csv, environment=faulty)
    path = tmp_path / "live/episodes.jsonl"
    died = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps({**died, "ending": "complete", "reason": ""}) + "\n")
    assert operate("--policy", "replay", csv=csv, environment=faulty)[0]["dies"].result == "error"


def test_errors_between_good_tasks_never_stop_a_run(operate, faulty, tmp_path):
    """Nor when they are tried again: a finished run can always be scored again by its command."""
    names = ("1broken", "2ok", "3broken", "4ok", "5broken", "6ok")
    csv = _said(tmp_path, **{name: label("CT head", name) for name in names})
    for n_tries in (1, 2):
        episodes, metrics = operate("--policy", "replay", csv=csv, environment=faulty)
        assert [episodes[name].result for name in names] == ["error", "success"] * 3
        assert [episodes[name].n_tries for name in names] == [n_tries, 1] * 3
        assert metrics["success"]["value"] == 0.5 and metrics["n_tried_again"] == 3 * (n_tries - 1)


def test_messages_of_a_program_move_no_cursor(operate, faulty, tmp_path):
    load_worklist("faulty", FAULTS.replace("no reset today", "no reset\\x1b[2J\\nsuccess: 100 %"))
    csv = _said(tmp_path, **{f"broken{i}": label("CT head", f"broken{i}") for i in range(3)})
    said = re.escape("no reset?[2J?success: 100 %")
    with pytest.raises(UserError, match=f"3 tasks in a row.*{said}"):
        operate("--policy", "replay", csv=csv, environment=faulty)
    with pytest.raises(UserError, match=f"an error in every task.*{said}"):
        operate("--policy", "replay", "--max_tasks", 1, csv=csv, environment=faulty, folder=tmp_path / "one")


def test_task_that_cannot_be_done_there_is_left_out_and_named(operate, tmp_path, capsys):
    tasks = {"t1": ("Label CT head as seen", label("CT head", "seen")), "t2": TASKS["head"]}
    csv = record(tmp_path / "said", tasks)
    csv.write_text(csv.read_text().replace("Label CT head as seen", "Measure the head"))
    episodes, metrics = operate("--policy", "replay", csv=csv)
    assert episodes["t1"].result is None and metrics["n_tasks"] == 1
    assert metrics["left_out"] == {"t1": "no verification is known for this goal"}
    assert "Left out: t1: no verification is known" in capsys.readouterr().out


def _without_times(path):
    """Return a file's lines, or its one value, without what an interruption may change."""

    def drop(value):
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in LATER}
        return [drop(v) for v in value] if isinstance(value, list) else value

    text = path.read_text()
    return [drop(json.loads(line)) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


SLOW = """
import time

class Slow(Worklist):
    def step(self, action):
        time.sleep(0.3)
        return super().step(action)

def open_environment(step_limit_s):
    return Slow(tempfile.mkdtemp())
"""


ENDS = """
class Ends(Slow):
    def close(self):
        Path("closing").touch()
        time.sleep(1)
        super().close()
        Path("closed").touch()

def open_environment(step_limit_s):
    return Ends(tempfile.mkdtemp())
"""


@pytest.mark.slow
def test_killed_run_continues_with_the_next_task_and_ends_the_same(tasks_csv, tmp_path):
    (tmp_path / "slow_worklist.py").write_text(WORKLIST + SLOW)
    given = ["--policy", "replay", "--environment", "slow_worklist", "--tasks", str(tasks_csv), "--output_dir"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "eval/live.py"), *given]
    lines = tmp_path / "killed/episodes.jsonl"
    with subprocess.Popen([*command, str(tmp_path / "killed")], cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 240
        while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # into the next task
        process.send_signal(signal.SIGKILL)
    assert 1 <= len(load_episodes(lines)) < 3 and not (tmp_path / "killed/metrics.json").exists()
    with lines.open("a") as file:
        file.write('{"task_id": "head2", "steps": [')  # as a kill while writing leaves it
    for folder in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / folder)], cwd=tmp_path, env=environment, check=True, timeout=300)
    for name in ("episodes.jsonl", "run.json", "metrics.json"):
        assert _without_times(tmp_path / "killed" / name) == _without_times(tmp_path / "whole" / name)


def test_finished_run_is_scored_again_without_program_and_model(operate, tmp_path, monkeypatch):
    _, metrics = operate("--policy", "replay")
    monkeypatch.setattr(sys.modules["worklist"], "open_environment", lambda limit: 1 / 0)
    assert operate("--policy", "replay")[1] == metrics


def test_another_run_in_the_same_folder_is_refused(operate, tasks_csv, tmp_path):
    operate("--policy", "replay")
    before = {path.name: path.read_bytes() for path in (tmp_path / "live").iterdir() if path.is_file()}
    for arguments, different in (
        (["--policy", "empty"], "policy"),
        (["--policy", "replay", "--max_tasks", "1"], "n_tasks"),
        (["--policy", "replay", "--step_limit_s", "5"], "environment"),
    ):
        with pytest.raises(UserError, match=rf"found a rollout of something else \(different: [^)]*{different}"):
            operate(*arguments)
    with pytest.raises(UserError, match="found a rollout of something else"):
        roll_out(["--policy", "replay", "--test_csv", str(tasks_csv), "--output_dir", str(tmp_path / "live")])
    with pytest.raises(UserError, match="found a live run, in which a program was operated"):
        score([str(tmp_path / "live")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "live").iterdir() if path.is_file()} == before
    roll_out(["--policy", "replay", "--test_csv", str(tasks_csv), "--output_dir", str(tmp_path / "offline")])
    with pytest.raises(UserError, match=r"different: .*environment"):
        operate("--policy", "replay", folder=tmp_path / "offline")
    with (
        claim_folder(tmp_path / "taken", "rolls out into this folder"),
        pytest.raises(UserError, match="another process"),
    ):
        operate("--policy", "replay", folder=tmp_path / "taken")


def test_run_whose_environment_was_changed_is_not_resumed(operate, tmp_path, monkeypatch):
    """Half of its tasks would be judged by other rules."""
    source = tmp_path / "worklist.py"
    source.write_text(WORKLIST, encoding="utf-8")
    monkeypatch.setattr(sys.modules["worklist"], "__file__", str(source), raising=False)
    operate("--policy", "replay")
    source.write_text(WORKLIST + "# another rule\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"different: [^)]*environment"):
        operate("--policy", "replay")


def test_files_of_somebody_else_are_not_replaced(operate, tmp_path):
    (tmp_path / "live/screens").mkdir(parents=True)
    (tmp_path / "live/screens/mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="found mine.png, which would be replaced"):
        operate("--policy", "replay")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("no.such_module", "found no module no"),
        ("json", "found no function open_environment there"),
        ("no_python", "found a module that cannot be imported: SyntaxError: .*no_python.py, line 1"),
        ("no_name", "found a module that cannot be imported: ImportError: cannot import name .*no_name.py, line 1"),
        ("no_number", "found a module that cannot be imported: ZeroDivisionError: .*no_number.py, line 1"),
        ("no_end", "found a module that cannot be imported: SystemExit: .*no_end.py, line 1"),
    ],
)
def test_environment_that_is_none_is_told(operate, tmp_path, monkeypatch, module, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_python.py").write_text("def open_environment(limit) return 1\n")
    (tmp_path / "no_name.py").write_text("from json import nothing\n")
    (tmp_path / "no_number.py").write_text("1 / 0\n")
    (tmp_path / "no_end.py").write_text("raise SystemExit('no')\n")
    with pytest.raises(UserError, match=f"--environment {module}: {message}"):
        operate("--policy", "replay", environment=module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--environment", "demo/clinic.py"], "--environment: found 'demo/clinic.py'"),
        (["--environment", ""], "--environment: found ''"),
        (["--step_limit_s", "0"], "--step_limit_s: found 0"),
        (["--max_tasks", "0"], "--max_tasks: found 0"),
        (["--policy", "model"], "--policy model needs --model_path"),
    ],
)
def test_options_that_cannot_be_run_are_told_at_once(operate, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        operate("--policy", "replay", *arguments)
    assert message in capsys.readouterr().err


def test_linked_screens_are_those_of_the_run(operate, tmp_path):
    episodes, _ = operate("--policy", "replay", "--report_images", "link", "--max_tasks", "1")
    page = (tmp_path / "live/report.html").read_text()
    assert all(f'data-url="{step.image_id}"' in page for step in episodes["head"].steps)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('raise EnvironmentFailure("port 80 is taken")', "the program could not be started: port 80 is taken"),
        ('raise OSError("no licence")', r"the program could not be started: OSError: no licence \(<string>, line"),
        ("raise SystemExit(0)", "the program could not be started: SystemExit: 0"),
        ("return None", "found None without find_obstacle, reset, step, verify, close; expected an Environment"),
        ("Worklist.step = None; return Worklist('.')", "found <.*Worklist object.* without step; expected"),
    ],
)
def test_program_that_does_not_start_is_told(operate, body, message):
    load_worklist("never", f"\ndef open_environment(step_limit_s):\n    {body}\n")
    with pytest.raises(UserError, match=message):
        operate("--policy", "replay", environment="never")


def test_tasks_that_were_trained_on_are_refused(operate, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "agent_config.json").write_text(json.dumps(agent_to_json(TINY_AGENT)))
    from sft.data.overlap import hash_goal

    goals = {task_id: hash_goal(goal) for task_id, (goal, _) in TASKS.items()}
    (folder / "training_data.json").write_text(json.dumps({"train": {"tasks": goals}}))
    with pytest.raises(UserError, match="found 3 tasks that the model was trained on"):
        operate("--model_path", folder)


def test_full_disk_ends_the_run_and_the_same_command_continues(operate, small_disk, tmp_path):
    disk, resize = small_disk
    noisy = """
import random
class Noisy(Worklist):
    "Its screens fill a disk."

    def show(self):
        noise = random.Random(str((self.opened, self.typed, self.goal))).randbytes(320 * 192 * 3)
        Image.frombytes("RGB", (320, 192), noise).save(file := io.BytesIO(), "PNG")
        return Observation(file.getvalue())

def open_environment(step_limit_s):
    return Noisy(tempfile.mkdtemp())
"""
    load_worklist("noisy", noisy)
    out = disk / "out"
    out.mkdir()
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
    resize(used + 1_100_000)  # five screens and a bit
    with pytest.raises(UserError, match=r"found a full disk \(No space left on device\).*give the same command again"):
        operate("--policy", "replay", folder=out, environment="noisy")
    assert not (out / "metrics.json").exists()
    done = load_episodes(out / "episodes.jsonl")
    assert len(done) < 3 and all(len(episode.steps) == 5 for episode in done)
    resize(64 << 20)
    episodes, _ = operate("--policy", "replay", folder=out, environment="noisy")
    assert [episode.result for episode in episodes.values()] == ["success"] * 3


def test_offline_rollout_is_compared_task_by_task(operate, tmp_path, capsys):
    """The recording of `silent` is of the wrong study: offline its replay is right, live it is not."""
    csv = _said(tmp_path, silent=label("MR knee", "silent"), ok=label("CT head", "ok"))
    rollout = ["--policy", "replay", "--test_csv", str(csv), "--output_dir"]
    roll_out([*rollout, str(tmp_path / "offline")])
    _, metrics = operate("--policy", "replay", "--offline", tmp_path / "offline", csv=csv)
    found = metrics["agreement"]["matchers"]["action"]
    assert found["counts"] == {"both": 1, "offline_only": 1, "live_only": 0, "neither": 0}
    assert found["agreed"]["value"] == 0.5 and found["kappa"]["value"] == 0.0
    assert found["wrong_steps"] == {"n": 0, "of": 5, "share": {"value": 0.0, "low": 0.0, "high": 0.0}}
    assert metrics["agreement"]["by_task"]["silent"]["live"] is False
    assert "Cohen's kappa" in capsys.readouterr().out
    assert "Does the offline score tell?" in (tmp_path / "live/report.html").read_text()


def test_offline_rollout_of_something_else_is_refused(operate, tasks_csv, tmp_path):
    given = ["--test_csv", str(tasks_csv), "--output_dir"]
    roll_out([*given, str(tmp_path / "empty"), "--policy", "empty"])
    with pytest.raises(UserError, match=r"--offline .*empty: found a rollout of something else \(different: policy\)"):
        operate("--policy", "replay", "--offline", tmp_path / "empty")
    for mode in ("teacher", "own_stop"):  # neither is walked to its end with the model's own memory
        roll_out([*given, str(tmp_path / mode), "--policy", "replay", "--mode", mode])
        with pytest.raises(UserError, match=f"found a rollout in mode {mode}; expected one in mode own"):
            operate("--policy", "replay", "--offline", tmp_path / mode)
    operate("--policy", "replay", folder=tmp_path / "other")
    with pytest.raises(UserError, match="found a live run"):
        operate("--policy", "replay", "--offline", tmp_path / "other")
    roll_out([*given, str(tmp_path / "part"), "--policy", "replay", "--max_tasks", "2"])
    with pytest.raises(UserError, match="part: found no task knee there; expected a rollout of all tasks"):
        operate("--policy", "replay", "--offline", tmp_path / "part")
    assert not (tmp_path / "live").exists()  # it is told before a task is carried out
    info = json.loads((tmp_path / "part/run.json").read_text())
    (tmp_path / "part/run.json").write_text(json.dumps({**info, "answer_version": "0"}))
    with pytest.raises(UserError, match=r"\(different: answer_version\)"):
        operate("--policy", "replay", "--max_tasks", "2", "--offline", tmp_path / "part")


def test_film_of_a_task_that_is_tried_again_replaces_its_own(operate, faulty, tmp_path):
    csv = _said(tmp_path, broken=label("CT head", "broken"), fine=label("CT head", "fine"))
    operate("--policy", "replay", "--film", csv=csv, environment=faulty)
    assert [path.name for path in (tmp_path / "live/films").iterdir()] == ["002_fine.webp"]
    load_worklist("faulty", FAULTS.replace('"broken" in', '"nothing" in'))  # repaired
    operate("--policy", "replay", "--film", csv=csv, environment=faulty)
    names = sorted(path.name for path in (tmp_path / "live/films").iterdir())
    assert names == ["001_broken.webp", "002_fine.webp"]


def test_film_shows_each_step_and_the_end(operate, tmp_path):
    episodes, _ = operate("--policy", "replay", "--film", "--max_tasks", "1")
    (path,) = (tmp_path / "live/films").iterdir()
    assert path.name == "001_head.webp"
    with Image.open(path) as film:
        times = []
        for i in range(film.n_frames):
            film.seek(i)
            film.load()
            times.append(film.info["duration"])
        assert times == [1500] * 5 + [3000] and film.width == 960
        film.seek(0)
        strip = film.convert("RGB").crop((0, film.height - 60, 400, film.height))
        assert len(strip.getcolors(100_000)) > 20  # something is written there
        point = [v * 3 for v in episodes["head"].steps[0].point]
        ring = film.convert("RGB").getpixel((int(point[0]) + 10, int(point[1])))
        assert ring[0] > 180 and ring[2] < 90  # the mark of the executed point


@pytest.mark.slow
def test_tasks_are_carried_out_from_python_as_in_a_live_run(operate, tiny_checkpoints, tmp_path, tasks_csv):
    """The text of docs/live.md, with a model that learnt nothing and is held to the schema."""
    from eval.predictor import load_model_for_inference
    from sft.data.load import load_trajectories

    (tmp_path / "agent.json").write_text(json.dumps(asdict(TINY_AGENT)))
    model, agent = tiny_checkpoints["qwen3_vl"], tmp_path / "agent.json"
    predictor = load_model_for_inference(model, agent_config=agent, is_constrained=True)
    names = {}
    exec(DRIVE, names)
    opened = []

    def open_environment(step_limit_s):
        opened.append(load_worklist().open_environment(step_limit_s))
        return opened[0]

    (episode,) = names["carry_out"](
        open_environment, predictor, load_trajectories(tasks_csv, show_progress=False)[:1], tmp_path
    )
    assert not opened[0].file.exists(), "it was closed"
    given = ["--model_path", model, "--agent_config", agent, "--decoding", "constrained", "--max_tasks", "1"]
    (live,) = operate(*given)[0].values()
    assert episode.result == live.result
    compared = [(step.raw_text, step.outcome, step.image_id, step.memory_after) for step in episode.steps]
    assert compared == [(step.raw_text, step.outcome, step.image_id, step.memory_after) for step in live.steps]


def test_example_of_the_page_is_short_and_its_failures_are_failures(tmp_path):
    assert len([line for line in WORKLIST.splitlines() if line.strip()]) <= 62
    assert len(DRIVE.splitlines()) <= 10
    program = load_worklist().Worklist(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(EnvironmentFailure, match="the database failed: unable to open"):
        program.verify()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("rapidocr") is None, reason="found no rapidocr (extra ocr)")
def test_elements_are_found_on_the_screen_that_is_shown(operate, tiny_checkpoints, tmp_path):
    model = ["--model_path", tiny_checkpoints["qwen3_vl"], "--agent_config", tmp_path / "agent.json"]
    n_tokens = {}
    for sees_elements in (False, True):
        agent = replace(TINY_AGENT, use_grounding=sees_elements, max_answer_tokens=4)
        (tmp_path / "agent.json").write_text(json.dumps(agent_to_json(agent)))
        episodes, metrics = operate(*model, "--max_tasks", "1", folder=tmp_path / str(sees_elements))
        n_tokens[sees_elements] = episodes["head"].steps[0].n_prompt_tokens
    assert n_tokens[True] > n_tokens[False] + 20  # four studies with their boxes
    assert metrics["run"]["detector"]["tool"] == "rapidocr"
