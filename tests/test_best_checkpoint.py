"""The best checkpoint is kept and becomes the model, wherever the run's folder is and however often it is resumed."""

import json
import os
import shutil

import pytest
from training_runs import PREEMPTED, ROOT, assert_same_bits, load_adapter, printed
from trajectory_samples import build_tasks, write_trajectories

from sft import run
from sft.errors import UserError

pytestmark = pytest.mark.slow

SCORES = [0.0, 0.1, 0.9, 0.5, 0.4, 0.3, 0.2]  # by step: the best is that of step 2


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """What makes the common training one of six steps that keeps its best checkpoint."""
    val = write_trajectories(tmp_path_factory.mktemp("val"), build_tasks(1, first=50))
    text = f"--val_csv {val} --max_steps 6 --eval_strategy steps --eval_steps 1 --save_steps 1 --save_total_limit 1"
    return [*text.split(), "--load_best_model_at_end", "true", "--metric_for_best_model", "swa"]


@pytest.fixture(scope="module")
def start(arguments):
    """Return one attempt of that training; `more` stands behind the common arguments."""

    def start(*more, scores=SCORES, **disturbance):
        return {"arguments": ["--resume", "auto", *arguments, *more], "scores": scores, **disturbance}

    return start


@pytest.fixture(scope="module")
def undisturbed(attempt, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(folder, start()) == [0], printed(folder)
    return folder


@pytest.fixture
def stopped(attempt, start, tmp_path):
    """The folder of a run that was preempted once its best checkpoint was there."""
    assert attempt(tmp_path / "out", start(signal="SIGTERM", at_step=3)) == [PREEMPTED], printed(tmp_path / "out")
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def read_state(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def assert_best_is_the_model(folder, undisturbed):
    assert_same_bits(folder, folder / "checkpoint-2")
    assert_same_bits(folder, undisturbed)
    assert names(folder) == ["checkpoint-2", "checkpoint-6"]
    assert read_state(folder)["best_metric"] == 0.9


def test_newest_and_best_stay_at_the_end_with_a_limit_of_one(undisturbed):
    assert names(undisturbed) == ["checkpoint-2", "checkpoint-6"]
    assert_same_bits(undisturbed, undisturbed / "checkpoint-2")
    assert any(
        (load_adapter(undisturbed)[n] != t).any() for n, t in load_adapter(undisturbed / "checkpoint-6").items()
    )


def test_limit_of_two_keeps_the_newest_and_the_best(attempt, start, undisturbed, tmp_path):
    assert attempt(tmp_path, start("--save_total_limit", "2")) == [0]
    assert_best_is_the_model(tmp_path, undisturbed)


def test_state_names_the_best_checkpoint_by_its_step_and_no_place(undisturbed):
    for folder in (undisturbed, undisturbed / "checkpoint-2", undisturbed / "checkpoint-6"):
        state = read_state(folder)
        assert (state["best_global_step"], state["best_model_checkpoint"]) == (2, "checkpoint-2")
        assert "/" not in (folder / "trainer_state.json").read_text()


def test_run_whose_folder_was_moved_keeps_its_best_checkpoint(attempt, start, stopped, undisturbed):
    moved = stopped.rename(stopped.with_name("moved"))
    assert attempt(moved, start()) == [0], printed(moved)
    assert_best_is_the_model(moved, undisturbed)
    assert "does not exist" not in printed(moved)


@pytest.mark.parametrize("spelling", ["relative", "slash", "dots", "link"])
def test_folder_spelled_otherwise_is_the_same_folder(attempt, start, stopped, undisturbed, spelling):
    if spelling == "link":
        stopped.with_name("link").symlink_to(stopped)
    other = {
        "relative": os.path.relpath(stopped, ROOT),
        "slash": f"{stopped}/",
        "dots": f"{stopped}/../{stopped.name}",
        "link": stopped.with_name("link"),
    }[spelling]
    assert attempt(other, start()) == [0], printed(stopped)
    assert_best_is_the_model(stopped, undisturbed)


def test_run_that_is_moved_and_resumed_twice_keeps_its_best_checkpoint(attempt, start, stopped, undisturbed):
    first = stopped.rename(stopped.with_name("first"))
    assert attempt(first, start(signal="SIGTERM", at_step=4)) == [PREEMPTED]
    second = first.rename(first.with_name("second"))
    assert attempt(second, start()) == [0]
    assert_best_is_the_model(second, undisturbed)


def test_best_checkpoint_comes_along_to_another_output_folder(attempt, start, stopped, undisturbed, tmp_path):
    """Also when the same command is given again, as a scheduler does."""
    newest = names(stopped)[-1]
    resumed = start("--resume", str(stopped / newest))
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    codes = attempt(tmp_path / "other", {**resumed, "signal": "SIGTERM", "at_step": 5}, resumed)
    assert codes == [PREEMPTED, 0], printed(tmp_path / "other", 1)
    assert {"checkpoint-2", "checkpoint-6"} <= set(names(tmp_path / "other"))
    assert "aside-checkpoint-2" not in names(tmp_path / "other")
    assert_same_bits(tmp_path / "other", undisturbed)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before
    shutil.rmtree(stopped)
    assert attempt(tmp_path / "other", start()) == [0]
    assert_same_bits(tmp_path / "other", undisturbed)


def test_checkpoint_that_is_itself_the_best_comes_along_too(attempt, start, stopped, undisturbed, tmp_path):
    resumed = start("--resume", str(stopped / "checkpoint-2"))
    assert attempt(tmp_path / "other", resumed) == [0], printed(tmp_path / "other")
    assert_best_is_the_model(tmp_path / "other", undisturbed)


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda c: os.truncate(c / "adapter_model.safetensors", 100)])
def test_best_checkpoint_that_is_lost_is_named_rather_than_replaced_by_the_last(attempt, start, stopped, damage):
    damage(stopped / "checkpoint-2")
    anew = start("--resume_anyway", "true")
    assert attempt(stopped, start(), anew) == [2, 0], printed(stopped, 1)
    refusal, warning = printed(stopped, 0), printed(stopped, 1)
    assert "the best evaluation so far (0.9) was at step 2, but" in refusal and "--resume_anyway true" in refusal
    assert "the best one is chosen among the evaluations from now on alone" in warning
    last = read_state(stopped)["best_global_step"]
    assert last > 2  # the first after the resume
    assert_same_bits(stopped, stopped / f"checkpoint-{last}")


def test_best_checkpoint_that_disappears_meanwhile_stops_the_run_at_its_end(recipe, arguments, tmp_path, monkeypatch):
    """The last weights are not saved in its place; once it is back, the run ends without another step."""
    out, kept, scores = tmp_path / "out", tmp_path / "kept", iter(SCORES[1:])

    def score(model):
        if (out / "checkpoint-5").is_dir():
            (out / "checkpoint-2").rename(kept)
        return {"swa": next(scores)}

    monkeypatch.setattr("eval.rollouts.validation.build_validation_rollout", lambda *_: score)
    command = [str(recipe), *arguments, "--output_dir", str(out)]
    with pytest.raises(UserError, match="checkpoint-2: there is no such folder; expected the best checkpoint"):
        run.main(command)
    assert not (out / "adapter_model.safetensors").exists()
    kept.rename(out / "checkpoint-2")
    run.main([*command, "--resume", "auto"])
    assert_same_bits(out, out / "checkpoint-2")
    assert read_state(out)["global_step"] == 6


def test_run_without_an_evaluation_to_choose_by_says_that_the_last_weights_are_saved(attempt, start, tmp_path):
    assert attempt(tmp_path, start("--eval_delay", "9")) == [0]
    assert "no evaluation gave a metric to choose by; the last weights are saved" in printed(tmp_path)
    assert_same_bits(tmp_path, tmp_path / "checkpoint-6")


def test_best_evaluation_between_two_saves_has_its_checkpoint(attempt, start, undisturbed, tmp_path):
    assert attempt(tmp_path, start("--save_steps", "3")) == [0], printed(tmp_path)
    assert_best_is_the_model(tmp_path, undisturbed)


def test_finished_run_that_is_resumed_trains_no_step_more(attempt, start, undisturbed, tmp_path):
    """Six steps end within the second epoch of four."""
    again = shutil.copytree(undisturbed, tmp_path / "again")
    assert attempt(again, start()) == [0], printed(again)
    assert read_state(again)["global_step"] == 6
    assert_best_is_the_model(again, undisturbed)


def test_early_stopping_counts_on_where_the_run_was_stopped(attempt, start, tmp_path):
    """Two evaluations without a better one end it after step 4, with step 3 in another process than step 4."""
    patience = ["--early_stopping_patience", "2"]
    codes = attempt(tmp_path, start(*patience, signal="SIGTERM", at_step=2), start(*patience), start(*patience))
    assert codes == [PREEMPTED, 0, 0], printed(tmp_path, 1)
    assert read_state(tmp_path)["global_step"] == 4
    assert [row["step"] for row in read_state(tmp_path)["log_history"] if "eval_swa" in row] == [1, 2, 3, 4]
    assert_same_bits(tmp_path, tmp_path / "checkpoint-2")


def test_evaluation_before_the_first_step_is_no_candidate_and_is_not_done_again(attempt, start, tmp_path):
    at_start = ["--eval_on_start", "true"]
    scores = [1.0, *SCORES[1:]]
    assert attempt(tmp_path / "whole", start(*at_start, scores=scores)) == [0]
    out, first = tmp_path / "out", start(*at_start, scores=scores, signal="SIGTERM", at_step=3)
    assert attempt(out, first, start(*at_start)) == [PREEMPTED, 0], printed(out, 1)
    evaluated = [row["step"] for row in read_state(out)["log_history"] if "eval_swa" in row]
    assert evaluated == [0, 1, 2, 3, 4, 5, 6]
    assert_best_is_the_model(out, tmp_path / "whole")
