"""Where the errors come from: memory shown, first plan and roots, every number worked out by hand."""

import json
import shutil
from dataclasses import replace

import pytest
from rollout_samples import RUN, judge, make_step, make_task
from test_modes import WrongAt
from trajectory_samples import build_tasks, write_trajectories

from eval import rollout
from eval.reporting.tables import print_summary
from eval.rollouts.run_info import is_teacher_of
from eval.score import main as score
from eval.scoring.error_sources import NO_TEACHER, add_teacher, find_root, is_first_plan_right, is_same_memory
from eval.scoring.matching import cut_at_first_error
from eval.scoring.metrics import compute_metrics

RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")
OTHER_TARGET, UNREADABLE = ("CLICK", {"action": "CLICK", "target": "elsewhere"}), ("CLICK", None)
EMPTY = {"short_term": {}, "long_term": {}}


def plan(*remaining, **more):
    return {"short_term": {}, "long_term": {"remaining_subtasks": [*remaining], **more}}


def find_sources(own, teacher=None, mode="own", **agent):
    verdicts = judge(own)
    verdicts = add_teacher(verdicts, judge(teacher)) if teacher else verdicts
    return compute_metrics(verdicts, mode=mode, n_resamples=200, agent=agent)["error_sources"]


def make_plans(task_id, pairs, shown, recorded, **fields):
    """Make a task that is shown and should have been shown these memories from its second step on."""
    shown, recorded = [EMPTY, *shown], [EMPTY, *recorded]
    return [
        make_step(
            task_id,
            i,
            *pair,
            memory_before=shown[i],
            memory_after=shown[min(i + 1, len(shown) - 1)],
            gold_memory=recorded[i],
            **fields,
        )
        for i, pair in enumerate(pairs)
    ]


# a: own W R ~ W, teacher W R R R. b: own R W ?, teacher W R ?. 7 steps.
OWN = [*make_task("a", [WRONG, RIGHT, OTHER_TARGET, WRONG]), *make_task("b", [RIGHT, WRONG, UNREADABLE])]
TEACHER = [*make_task("a", [WRONG, RIGHT, RIGHT, RIGHT]), *make_task("b", [WRONG, RIGHT, UNREADABLE])]


def test_an_error_is_of_memory_where_the_recorded_memory_makes_the_step_right():
    roots = find_sources(OWN, TEACHER)["roots"]
    # Under action wrong are a1 (in both), a4, b2 (of memory) and b3 (in both); b1 is right with its own alone.
    action = roots["action"]
    assert (action["n_wrong"], action["seeing_or_knowing"]["n"], action["memory"]["n"]) == (4, 2, 2)
    assert action["memory"]["share"].value == pytest.approx(2 / 4)
    assert action["n_right_with_own_alone"] == 1
    # Under action_target a3 is wrong too, and right with the recorded memory.
    target = roots["action_target"]
    assert (target["n_wrong"], target["seeing_or_knowing"]["n"], target["memory"]["n"]) == (5, 2, 3)
    assert target["memory"]["share"].value == pytest.approx(3 / 5)


def test_a_target_that_is_wrong_in_both_is_no_error_of_memory():
    roots = find_sources(make_task("a", [OTHER_TARGET]), make_task("a", [OTHER_TARGET]))["roots"]
    assert roots["action"]["n_wrong"] == 0
    assert roots["action_target"]["seeing_or_knowing"]["n"] == roots["action_target"]["n_wrong"] == 1


def test_the_exposure_gap_is_what_memory_costs_less_what_own_memory_alone_has_right():
    scores = [compute_metrics(judge(steps), mode="own", n_resamples=10)["matchers"] for steps in (TEACHER, OWN)]
    for name, found in find_sources(OWN, TEACHER)["roots"].items():
        gap = scores[0][name]["swa"].value - scores[1][name]["swa"].value
        assert gap == pytest.approx((found["memory"]["n"] - found["n_right_with_own_alone"]) / 7)


def test_interval_of_a_root_is_over_tasks():
    # Task a has one error, of memory; task b one, not of memory. Drawing two of them: 0, 1/2 or 1.
    own = [*make_task("a", [WRONG]), *make_task("b", [WRONG])]
    share = find_sources(own, [*make_task("a", [RIGHT]), *make_task("b", [WRONG])])["roots"]["action"]["memory"][
        "share"
    ]
    assert (share.value, share.low, share.high) == (0.5, 0, 1)


def test_a_policy_that_failed_tells_no_root():
    own = [*make_task("a", [RIGHT]), make_step("b", 0, "CLICK", None, error="timeout"), *make_task("c", [WRONG])]
    teacher = [*make_task("a", [RIGHT]), *make_task("b", [RIGHT]), make_step("c", 0, "CLICK", None, error="timeout")]
    found = find_sources(own, teacher)["roots"]["action"]
    assert [found[root]["n"] for root in ("seeing_or_knowing", "memory", "no_answer")] == [0, 0, 2]


def test_no_error_has_no_share():
    found = find_sources(make_task("a", [RIGHT]), make_task("a", [RIGHT]))["roots"]["action"]
    assert found["n_wrong"] == 0 and found["memory"]["share"] is None


def test_a_step_that_was_not_run_is_no_error():
    own = add_teacher(judge(OWN), judge(TEACHER))
    stopped = add_teacher(judge(cut_at_first_error(own)), judge(TEACHER))
    assert [[find_root(v, "action") for v in task] for task in stopped.values()] == [
        ["seeing_or_knowing", None, None, None],
        [None, "memory", None],
    ]


def test_accuracy_where_the_recorded_memory_is_shown_and_where_another_is():
    steps = make_plans("a", [RIGHT, WRONG, RIGHT], [plan("x"), plan("y")], [plan("x"), plan("x")])
    steps += make_plans("b", [OTHER_TARGET, WRONG], [EMPTY], [plan("x")])
    # The recorded memory is shown at a1, a2 and b1, of which 2 (1 with target) are right; another at a3 and b2.
    by_memory = find_sources(steps)["by_memory"]
    assert [by_memory[side]["n_steps"] for side in ("recorded", "other")] == [3, 2]
    assert by_memory["recorded"]["swa"]["action"].value == pytest.approx(2 / 3)
    assert by_memory["recorded"]["swa"]["action_target"].value == pytest.approx(1 / 3)
    assert by_memory["other"]["swa"]["action"].value == pytest.approx(1 / 2)


def test_steps_that_were_not_run_were_shown_no_memory():
    steps = make_plans("a", [WRONG, RIGHT, RIGHT], [EMPTY, EMPTY], [plan("x"), plan("x")])
    by_memory = find_sources(cut_at_first_error(judge(steps)), mode="own_stop")["by_memory"]
    assert [by_memory[side]["n_steps"] for side in ("recorded", "other")] == [1, 0]
    assert by_memory["other"]["swa"]["action"] is None


def test_memory_that_no_prompt_shows_is_not_compared():
    shown, recorded = ({"short_term": {"last_action": kind}, "long_term": {}} for kind in ("CLICK", "ZOOM"))
    steps = make_plans("a", [RIGHT, RIGHT], [shown], [recorded])
    assert find_sources(steps)["by_memory"]["other"]["n_steps"] == 1
    assert find_sources(steps, use_short_term=False)["by_memory"]["other"]["n_steps"] == 0
    sources = find_sources(steps, use_short_term=False, use_long_term=False)
    assert sources["by_memory"] is None and "show no memory" in sources["absent"]["by_memory"]


@pytest.mark.parametrize(
    ("shown", "recorded", "is_same"),
    [
        ({"a": ["Open  Study", 1]}, {"a": ["open study", 1.0]}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, False),
        ({"a": ["x"]}, {"a": ["x", "y"]}, False),
        ({"a": "x."}, {"a": "x"}, False),
        ({"a": []}, {}, False),
        ({"a": "1"}, {"a": 1}, False),
    ],
)
def test_memory_is_the_same_but_for_case_and_white_space(shown, recorded, is_same):
    assert is_same_memory(shown, recorded) is is_same


@pytest.mark.parametrize(
    ("written", "recorded", "is_right"),
    [
        (plan("zoom in"), plan("Zoom in"), True),
        (plan("zoom in", completed_subtasks=["open"]), plan("zoom in", completed_subtasks=[]), True),
        (plan("zoom in"), plan("zoom out"), False),
        (plan(), plan(), True),
        (EMPTY, plan(), False),
        ({"short_term": {}, "long_term": {"overall_progress": "half"}}, plan("zoom in"), False),
        *(
            (
                {"short_term": {}, "long_term": {"progress": text}},
                {"short_term": {}, "long_term": {"progress": "half"}},
                y,
            )
            for text, y in (("half", True), ("done", False))
        ),
        (plan("zoom in"), EMPTY, None),
    ],
)
def test_first_plan_is_what_remains_or_else_all_of_long_term_memory(written, recorded, is_right):
    (task,) = judge(make_plans("a", [RIGHT, RIGHT], [written], [recorded])).values()
    assert is_first_plan_right(task) is is_right


def test_tasks_are_rated_by_their_first_plan():
    steps = make_plans("a", [RIGHT, RIGHT, WRONG, RIGHT], [plan("x")] * 3, [plan("x")] * 3)  # 3 of 4
    steps += make_plans("b", [RIGHT, WRONG], [plan("y")], [plan("x")])  # 1 of 2
    steps += make_plans("c", [WRONG, UNREADABLE, OTHER_TARGET], [EMPTY] * 2, [plan("x")] * 2)  # 1 of 3
    steps += make_task("d", [WRONG])  # one step: no plan is recorded after it
    found = find_sources(steps)["first_plan"]
    assert (found["n_tasks"], found["n_right"]) == (3, 1)
    assert found["rate"].value == pytest.approx(1 / 3)
    assert [found[side]["n_steps"] for side in ("right", "wrong")] == [4, 5]
    assert found["right"]["swa"]["action"].value == pytest.approx(3 / 4)
    assert found["wrong"]["swa"]["action"].value == pytest.approx(2 / 5)
    assert found["wrong"]["swa"]["action_target"].value == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"memory_writer": "rule"}, "writes no long-term"),
        ({"use_long_term": False}, "writes no long-term"),
        ({}, "after"),
    ],
)
def test_a_plan_that_nobody_writes_or_recorded_is_not_rated(agent, reason):
    recorded = plan("x") if agent else EMPTY
    sources = find_sources(make_plans("a", [RIGHT, RIGHT], [EMPTY], [recorded]), **agent)
    assert sources["first_plan"] is None and reason in sources["absent"]["first_plan"]


def test_what_one_mode_cannot_tell_is_absent_with_a_reason():
    alone = find_sources(OWN)
    assert alone["roots"] is None and alone["absent"]["roots"] == NO_TEACHER and alone["by_memory"]
    teacher = find_sources(TEACHER, mode="teacher")
    assert [teacher[part] for part in ("by_memory", "first_plan", "roots")] == [None] * 3
    assert set(teacher["absent"]) == {"by_memory", "first_plan", "roots"}


def test_summary_says_where_the_errors_come_from(capsys):
    verdicts = add_teacher(judge(OWN), judge(TEACHER))
    print_summary(compute_metrics(verdicts, mode="own", n_resamples=10))
    printed = " ".join(capsys.readouterr().out.split())
    assert "errors 4 5" in printed and "Seeing or knowing: wrong with the recorded memory too." in printed
    assert "No first plan: no task of two steps" in printed
    print_summary(compute_metrics(judge(TEACHER), mode="teacher", n_resamples=10))
    assert "Where the errors" not in capsys.readouterr().out


def test_only_the_same_rollout_in_mode_teacher_gives_roots():
    teacher = replace(RUN, mode="teacher", fingerprint="")
    assert is_teacher_of(teacher, RUN) and is_teacher_of(teacher, replace(RUN, mode="own_stop", model_path="moved"))
    for other in (teacher, replace(RUN, decoding="constrained"), replace(RUN, test_csv_sha256="d")):
        assert not is_teacher_of(teacher, other)
    assert not is_teacher_of(RUN, RUN)


@pytest.fixture
def mode_all(tmp_path, monkeypatch):
    """A rollout of all modes that errs at the same step in each, and so by seeing or knowing alone."""
    csv = write_trajectories(tmp_path, build_tasks(4))
    monkeypatch.setattr(rollout, "build_policy", lambda _, __, tasks: WrongAt(tasks, {(tasks[0].task_id, 1)}))
    folder = tmp_path / "all"
    rollout.main(["--policy", "replay", "--mode", "all", "--test_csv", str(csv), "--output_dir", str(folder)])
    return folder


def read(path):
    return json.loads(path.read_text())


def test_mode_all_writes_the_root_of_every_error(mode_all):
    roots = read(mode_all / "own/metrics.json")["error_sources"]["roots"]
    assert roots["action"]["n_wrong"] == roots["action"]["seeing_or_knowing"]["n"] == 1
    assert read(mode_all / "comparison.json")["error_sources"]["roots"] == roots
    steps = [step for task in read(mode_all / "own/details.json")["tasks"] for step in task["steps"]]
    assert [step["roots"] for step in steps if step["roots"]] == [
        {"action": "seeing_or_knowing", "action_target": "seeing_or_knowing"}
    ]
    assert read(mode_all / "own_stop/metrics.json")["error_sources"]["roots"]["action"]["n_wrong"] == 1
    for page in ("own/report.html", "report.html"):
        assert "Where the errors come from" in (mode_all / page).read_text()
    assert "Where the errors come from" not in (mode_all / "teacher/report.html").read_text()


def test_scoring_again_finds_the_roots_again(mode_all, capsys):
    before = {name: (mode_all / "own" / name).read_bytes() for name in ("metrics.json", "details.json")}
    score([str(mode_all / "own")])
    assert {name: (mode_all / "own" / name).read_bytes() for name in before} == before
    shutil.copytree(mode_all / "own", mode_all / "elsewhere/own")
    score([str(mode_all / "elsewhere/own")])  # no rollout in mode teacher beside it
    assert read(mode_all / "elsewhere/own/metrics.json")["error_sources"]["roots"] is None
    (mode_all / "elsewhere/teacher").mkdir()
    (mode_all / "elsewhere/teacher/run.json").write_text("[]")  # another program's
    score([str(mode_all / "elsewhere/own")])
    capsys.readouterr()
    score(["compare", str(mode_all / "elsewhere/own"), str(mode_all / "teacher")])
    assert "Errors with its own memory, action: 1, 100.0" in " ".join(capsys.readouterr().out.split())
