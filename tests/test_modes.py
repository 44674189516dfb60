"""Memory modes: whose memory is shown, where own_stop ends a task, and --mode all on one policy."""

import json
from dataclasses import replace

import pytest
from rollout_samples import judge
from trajectory_samples import build_tasks, write_trajectories

from eval import rollout
from eval.policies.policy import RawAnswer, ReplayPolicy
from eval.rollout import main
from eval.rollouts.run_folder import run_tasks
from eval.rollouts.run_info import RunInfo
from eval.rollouts.walk import walk_tasks
from eval.score import main as score
from eval.scoring.matching import cut_at_first_error
from eval.step_result import format_result, load_results
from sft.agent import AgentConfig
from sft.data.load import load_trajectories

AGENT = AgentConfig()
WRONG = '{"action":"ZOOM","target":"Ruler","short_term":{"last_action":"ZOOM"}}'


class WrongAt(ReplayPolicy):
    """Replays the recording but for chosen steps, where it answers something else."""

    def __init__(self, tasks, faults):
        super().__init__(tasks, AGENT)
        self.faults, self.asked = faults, []

    def answer(self, requests):
        self.asked += [(r.task_id, r.index) for r in requests]
        answers = super().answer(requests)
        return [
            replace(a, text=WRONG) if (r.task_id, r.index) in self.faults else a for r, a in zip(requests, answers)
        ]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return write_trajectories(tmp_path_factory.mktemp("modes"), build_tasks(6))


@pytest.fixture(scope="module")
def tasks(csv):
    return load_trajectories(csv, show_progress=False)


def walk(tasks, policy, mode, batch_size=4, done=None):
    order = {t.task_id: i for i, t in enumerate(tasks)}
    results = walk_tasks(tasks, policy, AGENT, mode, batch_size, done)
    return sorted(results, key=lambda r: (order[r.task_id], r.index))


def roll_out(csv, folder, policy, mode):
    """Roll out by the command's own parts; returns the results in `steps.jsonl`."""
    tasks = load_trajectories(csv, show_progress=False)
    info = RunInfo(mode=mode, model_path=None, test_csv=str(csv), image_root=None, n_steps=18).seal()
    run_tasks(folder, info, tasks, AGENT, 4, lambda: policy)
    return list(load_results(folder / "steps.jsonl"))


def test_own_stop_is_own_cut_at_the_first_error_of_each_task(csv, tasks, tmp_path):
    faults = {(tasks[0].task_id, 0), (tasks[3].task_id, 1), (tasks[3].task_id, 2), (tasks[2].task_id, 2)}
    stopped = roll_out(csv, tmp_path, WrongAt(tasks, faults), "own_stop")
    own = walk(tasks, WrongAt(tasks, faults), "own")
    n_run = {tasks[0].task_id: 1, tasks[3].task_id: 2}
    assert [r.parse_status for r in stopped] == ["ok" if r.index < n_run.get(r.task_id, 3) else "not_run" for r in own]
    for cut, whole in zip(stopped, own, strict=True):
        if cut.parse_status == "ok":
            assert cut == whole
        else:
            ended = own[own.index(whole) - whole.index + n_run[whole.task_id] - 1]
            assert cut.memory_before == cut.memory_after == ended.memory_after
            assert (cut.raw_text, cut.predicted, cut.gold, cut.index) == ("", None, whole.gold, whole.index)
    assert cut_at_first_error(judge(stopped)) == stopped


def test_mode_own_stop_writes_what_mode_all_writes_of_it(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "build_policy", lambda _, __, tasks: WrongAt(tasks, {(tasks[0].task_id, 1)}))
    common = ["--policy", "replay", "--test_csv", str(csv), "--output_dir"]
    main([*common, str(tmp_path / "all"), "--mode", "all"])
    for _ in range(2):  # given again, a finished run stays what it is
        main([*common, str(tmp_path / "alone"), "--mode", "own_stop"])
    for name in ("steps.jsonl", "predictions.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "all/own_stop" / name).read_bytes()
    infos = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("alone", "all/own_stop")]
    assert infos[0]["fingerprint"] == infos[1]["fingerprint"]
    assert [r.parse_status for r in load_results(tmp_path / "alone/steps.jsonl")][:3] == ["ok", "ok", "not_run"]


@pytest.mark.parametrize("n_done", [1, 5, 18])
def test_own_stop_resumes_after_a_kill(csv, tasks, tmp_path, n_done):
    """With the file as mode own leaves it in the middle, at its end, and before the cut."""
    faults = {(tasks[0].task_id, 1), (tasks[3].task_id, 0)}
    whole = roll_out(csv, tmp_path / "whole", WrongAt(tasks, faults), "own_stop")
    (tmp_path / "killed").mkdir()
    answered = list(walk_tasks(tasks, WrongAt(tasks, faults), AGENT, "own", 4))[:n_done]
    (tmp_path / "killed/run.json").write_bytes((tmp_path / "whole/run.json").read_bytes())
    (tmp_path / "killed/steps.jsonl").write_text("".join(map(format_result, answered)))
    policy = WrongAt(tasks, faults)
    assert roll_out(csv, tmp_path / "killed", policy, "own_stop") == whole
    assert len(policy.asked) == 18 - n_done
    assert roll_out(csv, tmp_path / "whole", policy, "own_stop") == whole  # cut already


def test_own_stop_is_scored_as_cut_where_a_kill_came_before_the_cut(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "build_policy", lambda _, __, tasks: WrongAt(tasks, {(tasks[0].task_id, 1)}))
    common = ["--policy", "replay", "--test_csv", str(csv), "--output_dir"]
    for mode in ("own", "own_stop"):
        main([*common, str(tmp_path / mode), "--mode", mode])
    expected = json.loads((tmp_path / "own_stop/metrics.json").read_text())
    (tmp_path / "own_stop/steps.jsonl").write_bytes((tmp_path / "own/steps.jsonl").read_bytes())
    score([str(tmp_path / "own_stop")])
    assert json.loads((tmp_path / "own_stop/metrics.json").read_text()) == expected
    assert expected["outcomes"]["not_run"] == 1


@pytest.mark.parametrize("mode", ["teacher", "own"])
def test_replay_is_all_right_in_every_mode(tasks, mode):
    results = walk(tasks, ReplayPolicy(tasks, AGENT), mode)
    assert all(r.predicted == r.gold and r.memory_before == r.gold_memory for r in results)


def test_batches_are_full_while_tasks_are_left_and_hold_what_shares_a_screenshot(tasks):
    sizes, distinct = [], []

    class Watch(ReplayPolicy):
        def answer(self, requests):
            sizes.append(len(requests))
            distinct.append(len({r.image_path for r in requests}))
            return super().answer(requests)

    walk(tasks, Watch(tasks, AGENT), "own", batch_size=3)
    assert sizes == [3] * 6  # 6 tasks of 3 steps
    assert distinct == [1] * 6  # two screenshots, three tasks on each at any time


def test_mode_all_writes_every_mode_and_the_exposure_gap(csv, tmp_path, capsys):
    main(["--policy", "replay", "--mode", "all", "--test_csv", str(csv), "--output_dir", str(tmp_path)])
    for mode in ("teacher", "own", "own_stop"):
        metrics = json.loads((tmp_path / mode / "metrics.json").read_text())
        assert metrics["mode"] == mode and metrics["matchers"]["action_target"]["ta"]["value"] == 1
        assert (tmp_path / mode / "report.html").is_file()
    gap = json.loads((tmp_path / "comparison.json").read_text())
    assert gap["names"] == ["teacher", "own"]
    assert gap["matchers"]["action"]["ta"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert "exposure gap" in (tmp_path / "report.html").read_text()
    assert "A minus B" in capsys.readouterr().out


def test_shards_merge_to_what_one_machine_writes(csv, tmp_path):
    common = ["--policy", "replay", "--test_csv", str(csv)]
    main([*common, "--output_dir", str(tmp_path / "whole")])
    for i in range(2):
        main([*common, "--output_dir", str(tmp_path / f"s{i}"), "--num_shards", "2", "--shard", str(i)])
    assert len(list(load_results(tmp_path / "s0/steps.jsonl"))) == 9
    score(["merge", str(tmp_path / "merged"), str(tmp_path / "s1"), str(tmp_path / "s0")])
    for name in ("steps.jsonl", "predictions.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("merged", "whole")]
    assert runs[0]["fingerprint"] == runs[1]["fingerprint"]


def test_shards_that_are_not_the_whole_are_refused(csv, tmp_path):
    common = ["--policy", "replay", "--test_csv", str(csv), "--num_shards", "3"]
    for i in range(2):
        main([*common, "--output_dir", str(tmp_path / f"s{i}"), "--shard", str(i)])
    with pytest.raises(ValueError, match=r"found the shards \[\[0, 3\], \[1, 3\]\]"):
        score(["merge", str(tmp_path / "merged"), str(tmp_path / "s0"), str(tmp_path / "s1")])
    with pytest.raises(ValueError, match="found the shards"):
        score(["merge", str(tmp_path / "merged"), *[str(tmp_path / "s0")] * 3])


def test_linked_screenshots_leave_the_report_small(csv, tmp_path):
    for images in ("embed", "link"):
        main(
            ["--policy", "replay", "--test_csv", str(csv), "--output_dir", str(tmp_path / images)]
            + ["--report_images", images]
        )
    page = (tmp_path / "link/report.html").read_text()
    assert 'data-url="' in page and "screens/0.png" in page
    assert 'data-url="' not in (tmp_path / "embed/report.html").read_text()


def test_own_stop_ends_a_task_at_a_step_that_could_not_be_answered(tasks):
    class Failing(ReplayPolicy):
        def answer(self, requests):
            return [RawAnswer("", error="out of memory") for _ in requests]

    results = cut_at_first_error(judge(walk(tasks[:1], Failing(tasks, AGENT), "own")))
    assert [r.error for r in results] == ["row 2: out of memory", None, None]
    assert [r.parse_status for r in results][1:] == ["not_run", "not_run"]
