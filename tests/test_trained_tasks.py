"""What a model folder says it was trained on: removed, edited or unreadable, it hides no overlap without a word."""

import json
from types import SimpleNamespace

import pytest
from trajectory_samples import build_tasks, write_trajectories

from eval.rollouts.answering import describe_run
from sft.agent import AgentConfig
from sft.data.data_notes import list_data_notes
from sft.data.load import load_task_set
from sft.data.train_val import TaskSplit
from sft.errors import UserError
from sft.recipe.recipe import parse_recipe
from sft.training import outputs

NOTE = "Perhaps not unseen: the model's training_data.json, which says what it saw, "


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a model as a training leaves it beside the weights, and the tasks that it was trained on."""
    monkeypatch.setattr("sft.models.processors.save_processor", lambda *_: None)  # no part of what is tested here
    csv = write_trajectories(tmp_path / "data", build_tasks(2))
    tasks = load_task_set(csv, show_progress=False)
    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: m\ntrain_csv: {csv}\n")
    split = TaskSplit(tasks.trajectories, [], (), {str(csv): tasks.sha256})
    outputs.save_run_files(parse_recipe([str(tmp_path / "recipe.yaml")]), split, tmp_path / "model", None)
    return tmp_path / "model", tasks


def _describe(folder, tasks, allow_overlap=False):
    given = {"model_path": str(folder), "test_csv": str(tasks.path), "allow_overlap": allow_overlap, "engine": "hf"}
    given |= {"policy": "model", "decoding": "free", "base_model": None, "api_url": None}
    return describe_run(SimpleNamespace(**given), "own", tasks, AgentConfig(), None).data


def _hide_every_task(path):
    data = json.loads(path.read_text())
    data["train"]["tasks"] = {}
    path.write_text(json.dumps(data))


def test_folder_as_a_training_leaves_it_is_taken_at_its_word(trained):
    folder, tasks = trained
    with pytest.raises(UserError, match="found 2 tasks that the model was trained on"):
        _describe(folder, tasks)
    assert "Perhaps" not in " ".join(list_data_notes(_describe(folder, tasks, allow_overlap=True)))


def test_edit_that_hides_an_overlap_is_refused_and_told_where_it_is_allowed(trained):
    folder, tasks = trained
    _hide_every_task(folder / "training_data.json")
    with pytest.raises(UserError, match=r"found a model whose training_data\.json was changed after its training"):
        _describe(folder, tasks)
    assert f"{NOTE}was changed after the training." in list_data_notes(_describe(folder, tasks, allow_overlap=True))


def test_removed_training_data_is_told_beside_the_scores(trained):
    folder, tasks = trained
    (folder / "training_data.json").unlink()
    assert f"{NOTE}is not in its folder." in list_data_notes(_describe(folder, tasks))


def test_model_that_was_not_trained_here_is_doubted_for_nothing(trained):
    folder, tasks = trained
    for path in folder.iterdir():
        path.unlink()
    assert list_data_notes(_describe(folder, tasks)) == []


def test_folder_of_an_older_version_has_no_hash_and_is_taken_at_its_word(trained):
    folder, tasks = trained
    (folder / "versions.json").write_text(json.dumps({"python": "3.11"}))
    _hide_every_task(folder / "training_data.json")
    assert list_data_notes(_describe(folder, tasks)) == []


@pytest.mark.parametrize("name", ["training_data.json", "versions.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "null", "\udcff"])
def test_file_that_cannot_be_read_is_named(trained, name, text):
    folder, tasks = trained
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"{name}: found something unreadable"):
        _describe(folder, tasks)
