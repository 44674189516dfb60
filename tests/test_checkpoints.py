"""Checkpoints on disk: a damaged or half-written one is never resumed from, the last good one and the best stay."""

import json
import os
import shutil

import pytest
import torch
from conftest import ROOT
from datasets import Dataset

from sft.batches.sampler import PACKING_RULE
from sft.errors import UserError
from sft.recipe.launch import Launch, read_launch
from sft.recipe.recipe import parse_recipe
from sft.training.checkpoint_folder import (
    check_disk_space,
    clear_unfinished,
    find_damage,
    find_newest_whole,
    finish_checkpoint,
    list_checkpoints,
    prepare_unfinished,
    prune_checkpoints,
    read_run,
    read_size,
)
from sft.training.resume import choose_checkpoint, describe_run, find_changes


def write_checkpoint(output_dir, step, run=None, state=None):
    written = prepare_unfinished(output_dir) / f"checkpoint-{step}"
    (written / "shards").mkdir(parents=True)
    (written / "adapter_model.safetensors").write_bytes(bytes([step]) * 1000)
    (written / "shards/optimizer.pt").write_bytes(bytes([step]) * 500)
    if state is not None:  # one that a training can resume from
        (written / "trainer_state.json").write_text(json.dumps(state))
        torch.save({}, written / "shards/optimizer.pt")
    finish_checkpoint(written, output_dir / written.name, run or {})
    return output_dir / written.name


def names(output_dir):
    return [path.name for path in list_checkpoints(output_dir)]


def test_checkpoint_has_its_name_only_when_whole_and_says_what_it_holds(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 7, {"recipe": {"lora_r": 4}})
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        "adapter_model.safetensors": 1000,
        "shards/optimizer.pt": 500,
    }
    assert find_damage(checkpoint) is None
    assert read_run(checkpoint) == {"recipe": {"lora_r": 4}}
    assert read_size(checkpoint) == 1500


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: os.truncate(c / "shards/optimizer.pt", 499), "shards/optimizer.pt has 499 bytes; expected 500"),
        (lambda c: (c / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda c: (c / "adapter_model.safetensors").write_bytes(bytes(1000)), "has other content than was written"),
        (lambda c: (c / "checkpoint.json").unlink(), "checkpoint.json cannot be read"),
        (lambda c: os.truncate(c / "checkpoint.json", 40), "checkpoint.json cannot be read"),
        (lambda c: (c / "checkpoint.json").write_text('{"format": 9}'), "found format 9; expected 1"),
    ],
    ids=["cut", "missing", "changed", "no manifest", "cut manifest", "format"],
)
def test_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, damage, message, caplog):
    whole = write_checkpoint(tmp_path, 8)
    damaged = write_checkpoint(tmp_path, 10)
    damage(damaged)
    assert message in find_damage(damaged)
    assert find_newest_whole(tmp_path) == whole
    assert message in caplog.text
    assert names(tmp_path) == ["checkpoint-8"]
    assert (tmp_path / "aside-checkpoint-10").is_dir()


def test_what_a_killed_save_left_is_neither_a_checkpoint_nor_in_the_way(tmp_path):
    write_checkpoint(tmp_path, 2)
    half = prepare_unfinished(tmp_path) / "checkpoint-4"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"x")
    assert find_newest_whole(tmp_path).name == "checkpoint-2"
    assert write_checkpoint(tmp_path, 4) == find_newest_whole(tmp_path)
    clear_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_order_is_by_step_though_the_clock_went_backwards(tmp_path):
    for step in (2, 9, 10, 100):
        write_checkpoint(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 - step, 1e9 - step))  # the later the step, the older the folder
    assert find_newest_whole(tmp_path).name == "checkpoint-100"
    prune_checkpoints(tmp_path, 2, best=None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (1, None, [4]),
        (2, None, [3, 4]),
        (1, 2, [2, 4]),  # the best and the newest stay, whatever the limit
        (2, 1, [1, 4]),
        (3, 1, [1, 3, 4]),
        (9, 1, [1, 2, 3, 4]),
    ],
)
def test_limit_removes_the_lowest_steps_but_never_the_best_or_the_newest(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, limit, best and tmp_path / f"checkpoint-{best}")
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_checkpoint_written_again_replaces_the_old_one(tmp_path):
    write_checkpoint(tmp_path, 3, {"recipe": {"seed": 1}})
    checkpoint = write_checkpoint(tmp_path, 3, {"recipe": {"seed": 2}})
    assert read_run(checkpoint) == {"recipe": {"seed": 2}}
    assert find_damage(checkpoint) is None


def test_too_little_disk_space_is_refused_with_what_is_there_and_what_is_needed(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_disk_space(tmp_path, free // 2)
    with pytest.raises(UserError, match=r"found [\d.]+ MB free on the disk; expected [\d.]+ MB .*--resume auto"):
        check_disk_space(tmp_path, 2 * free)


@pytest.mark.parametrize(
    ("resume", "step", "left"), [("checkpoint-2", 2, ["checkpoint-1", "checkpoint-2"]), ("auto", 3, None)]
)
def test_checkpoints_behind_the_one_that_is_resumed_from_are_set_aside(tmp_path, resume, step, left):
    """The run writes its own there; `--resume auto` would continue from those of another run."""
    for n in (1, 2, 3):
        write_checkpoint(tmp_path, n, state={"global_step": n})
    before = names(tmp_path)
    place = resume if resume == "auto" else str(tmp_path / resume)
    recipe = parse_recipe([str(ROOT / "recipes/demo.yaml"), "--resume", place])
    assert choose_checkpoint(recipe, tmp_path, {}) == tmp_path / f"checkpoint-{step}"
    assert names(tmp_path) == (left or before)
    assert (tmp_path / "aside-checkpoint-3").is_dir() == (left is not None)


def test_changes_name_the_key_the_value_found_and_the_one_the_run_began_with():
    before = {"recipe": {"lora_r": 4, "seed": 1}, "train tasks": {"t1": "aa", "t2": "bb"}, "launch": {"n": 2}}
    now = {
        "recipe": {"lora_r": 8, "seed": 1, "bf16": True},
        "train tasks": {"t1": "cc", "t3": "bb"},
        "launch": {"n": 2},
    }
    assert find_changes(before, before) == []
    assert find_changes(before, now) == [
        "recipe: lora_r: found 8; the run began with 4",
        "recipe: bf16: found True; the run began with None",
        "train tasks: t1 has changed",
        "train tasks: t2 is missing",
        "train tasks: t3 is new",
    ]


def test_checkpoint_of_an_earlier_packing_rule_is_refused_and_one_without_packing_is_not(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: m\ntrain_csv: train.csv\n")
    rows = Dataset.from_dict({name: ["x"] for name in ("task_id", "image_sha256", "prompt", "completion")})
    for packing, changes in (
        ("shared_screenshot", [f"launch: packing_rule: found {PACKING_RULE}; the run began with None"]),
        ("none", []),
    ):
        recipe = parse_recipe([str(tmp_path / "recipe.yaml"), "--packing", packing])
        run = describe_run(recipe, read_launch({}), rows, None)
        earlier = {**run, "launch": {k: v for k, v in run["launch"].items() if k != "packing_rule"}}
        assert find_changes(earlier, run) == changes


def test_change_that_the_saved_optimiser_undoes_says_so():
    """Under `resume_anyway` too: its parameter groups and the schedule's base rates are loaded with its state."""
    before, now = {"recipe": {"learning_rate": 0.001}}, {"recipe": {"learning_rate": 0.1}}
    assert find_changes(before, now) == [
        "recipe: learning_rate: found 0.1; the run began with 0.001, which the saved optimiser keeps: a new value "
        "needs a new run"
    ]


def test_many_changes_are_counted_rather_than_listed():
    before = {"train tasks": {f"t{i}": "a" for i in range(20)}}
    changes = find_changes(before, {"train tasks": {}})
    assert len(changes) == 9
    assert changes[-1] == "train tasks: and 12 more"


@pytest.mark.parametrize("section", ["train tasks", "val tasks"])
@pytest.mark.parametrize("column", ["image_sha256", "prompt", "completion"])
def test_whatever_a_task_shows_or_teaches_changes_it(section, column):
    """A screenshot under its old name, a goal, an answer: of the training data and of the validation data."""
    columns = {"task_id": ["t1", "t1", "t2"], "image_sha256": ["a", "b", "c"]}
    rows = Dataset.from_dict({**columns, "prompt": ["p", "q", "r"], "completion": ["x", "y", "z"]})
    other = Dataset.from_dict({**rows.to_dict(), column: [*rows[column][:2], "other"]})
    recipe = parse_recipe([str(ROOT / "recipes/demo.yaml")])
    launch = Launch("single", 1)
    before = describe_run(recipe, launch, rows, rows)
    changed = (other, rows) if section == "train tasks" else (rows, other)
    assert find_changes(before, describe_run(recipe, launch, *changed)) == [f"{section}: t2 has changed"]
