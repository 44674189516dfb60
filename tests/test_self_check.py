"""Self-checks: they pass on sound data, and each fails where what it claims is not so."""

import json
from dataclasses import asdict, replace

import pytest
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

import eval.rollouts.self_check as self_check
from eval.rollout import main
from eval.rollouts.self_check import check_batches, check_canary, check_replay, check_shuffled, run_self_checks
from sft.data.load import load_trajectories
from sft.prompts import AgentConfig

AGENT = AgentConfig()


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return write_trajectories(tmp_path_factory.mktemp("checks"), build_tasks(12, n_steps=5))


@pytest.fixture(scope="module")
def tasks(csv):
    return load_trajectories(csv, show_progress=False)


def test_every_check_passes_on_sound_data(tasks):
    checks = list(run_self_checks(tasks, AGENT, 4))
    assert [check.name for check in checks if not check.is_passed] == []
    assert len(checks) == 7


def test_the_command_says_so_by_its_exit_code(csv, capsys):
    main(["--self_check", "--policy", "replay", "--test_csv", str(csv)])
    assert capsys.readouterr().out.count("ok ") == 7


def test_a_failed_check_is_exit_code_1(csv, capsys, monkeypatch):
    # everything scores 100 %
    monkeypatch.setattr(self_check, "_count_right", lambda verdicts, _: sum(map(len, verdicts.values())))
    with pytest.raises(SystemExit) as ended:
        main(["--self_check", "--policy", "replay", "--test_csv", str(csv)])
    assert ended.value.code == 1
    assert "FAILED no answer scores 0" in capsys.readouterr().out


def test_replay_fails_where_an_answer_cannot_say_the_gold(tasks):
    # The vocabulary of the agent lacks an action of the data: replayed answers cannot be read.
    agent = replace(AGENT, actions=tuple(a for a in AGENT.actions if a.name != "CLICK"))
    assert not check_replay(tasks, agent, "own", 4).is_passed


def test_shuffled_fails_where_answers_are_not_dealt_out(tasks, monkeypatch):
    class Undealt:
        def __init__(self, seed):
            pass

        def sample(self, steps, n):
            return steps

    assert check_shuffled(tasks, AGENT, 4).is_passed
    monkeypatch.setattr(self_check.random, "Random", Undealt)
    assert not check_shuffled(tasks, AGENT, 4).is_passed


def test_canary_fails_where_memory_does_not_lag(tasks, monkeypatch):
    import eval.rollouts.walk as walk
    from sft.data.load import gold_memories

    def unlagged(trajectory, writer, budget):
        later = gold_memories(replace(trajectory, steps=(*trajectory.steps, trajectory.steps[-1])), writer, budget)
        return later[1:]

    def start(trajectory, agent, mode, done):
        gold = unlagged(trajectory, agent.memory_writer, agent.memory_budget_chars)
        return walk._Walk(trajectory, gold, gold[0])

    assert check_canary(tasks[:2], AGENT).is_passed
    monkeypatch.setattr(walk, "_start", start)
    found = check_canary(tasks[:2], AGENT)
    assert not found.is_passed and "step 1" in found.detail


@pytest.mark.parametrize(
    ("leak", "failed"),
    [
        (lambda t, step: f"[{step.gold.action.kind}]", "no label reaches a prompt"),
        (lambda t, step: f"[{t.task_id}]", "no task id and no step count reaches a prompt"),
        (lambda t, step: f"[of {len(t.steps)}]", "no task id and no step count reaches a prompt"),
        (lambda t, step: f"[step {step.index + 1}]", "no task id and no step count reaches a prompt"),
    ],
    ids=["gold action type", "task id", "number of steps", "number of the step"],
)
def test_leak_into_the_prompt_fails_the_check_that_denies_it(tasks, monkeypatch, leak, failed):
    import eval.rollouts.walk as walk

    request = walk._request
    monkeypatch.setattr(
        walk,
        "_request",
        lambda w: replace(request(w), instruction=f"{w.trajectory.instruction} {leak(w.trajectory, w.step)}"),
    )
    checks = {check.name: check.is_passed for check in run_self_checks(tasks, AGENT, 4)}
    assert not checks[failed]


def test_batch_check_of_a_real_model(tiny_checkpoints, csv, tasks, tmp_path, capsys):
    agent = replace(TINY_AGENT, max_answer_tokens=8)
    (tmp_path / "agent_config.json").write_text(json.dumps(asdict(agent)))
    model = ["--model_path", str(tiny_checkpoints["qwen3_vl"]), "--agent_config", str(tmp_path / "agent_config.json")]
    main(["--self_check", *model, "--test_csv", str(csv), "--max_tasks", "3"])
    assert "ok     answers do not depend on the batch: 15 of 15 steps the same" in capsys.readouterr().out


def test_batch_check_fails_where_the_batch_matters(tasks):
    from eval.policies.policy import RawAnswer

    class Counting:
        def answer(self, requests):
            return [RawAnswer(f"{len(requests)}") for _ in requests]

    assert not check_batches(tasks[:3], AGENT, Counting(), 4).is_passed
