"""The data room end to end: convert, check, train, roll out; what was trained on is not scored as unseen."""

import json
import shutil

import datasets
import pytest
from conversion_samples import (
    build_agentnet_task,
    build_careflow_row,
    build_chat_row,
    build_pipeline_records,
    write_agentnet,
    write_chat,
    write_pipeline_task,
    write_screenagent_session,
)
from trajectory_samples import build_task, build_tasks, write_trajectories

from eval import rollout
from sft import run
from sft.check import __main__ as check
from sft.convert import __main__ as convert
from sft.data.load import TrajectoryError, load_task_set
from sft.data.overlap import hash_goal
from sft.errors import UserError
from sft.split import __main__ as split

RECIPE = """\
output_dir: {out}
model_name_or_path: {base}
train_csv: {train_csv}
dtype: float32
lora_r: 4
min_pixels: 16384
max_pixels: 65536
memory_budget_chars: 400
max_prompt_tokens: 2048
max_answer_tokens: 300
use_cpu: true
bf16: false
max_steps: 2
learning_rate: 1.0e-2
logging_steps: 1
save_strategy: "no"
report_to: none
gradient_checkpointing: false
val_rollout_tasks: 0
"""


@pytest.fixture(scope="module", autouse=True)
def screenshot_cache(tmp_path_factory):
    """A cache of this run's own: embedded screenshots are not written to the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def _train(folder, base, train_csv, *flags, actions=""):
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=folder / "out", base=base, train_csv=train_csv) + actions)
    run.main([str(recipe), *flags])
    return folder / "out"


def _roll_out(test_csv, out, *flags):
    rollout.main(["--test_csv", str(test_csv), "--output_dir", str(out), *map(str, flags)])
    return json.loads((out / "metrics.json").read_text())


def _assert_replay_is_perfect(test_csv, out, agent=None):
    for mode in ("teacher", "own"):
        flags = ("--agent_config", agent) if agent else ()
        metrics = _roll_out(test_csv, out / mode, "--policy", "replay", "--mode", mode, *flags)
        for scores in metrics["matchers"].values():
            assert scores["swa"]["value"] == scores["ta"]["value"] == 1


def _convert_careflow(folder):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([build_careflow_row(n) for n in (1, 2, 3)]), folder / "t.parquet")
    convert.main(["careflow", str(folder / "t.parquet"), str(folder / "data"), "--application", "3D Slicer"])


def _convert_pipeline(folder):
    for number in (1, 2):
        records = build_pipeline_records(number)
        write_pipeline_task(folder / "in", number, records[:1] + records[2:])
    convert.main(["pipeline", str(folder / "in"), str(folder / "data")])


def _convert_messages(folder):
    write_chat(folder / "in", [build_chat_row(n) for n in (1, 2)])
    source, out = folder / "in/chat.jsonl", folder / "data"
    convert.main(["messages", str(source), str(out), "--coordinates", "thousandths"])


def _convert_agentnet(folder):
    source = write_agentnet(folder / "in", [build_agentnet_task(n) for n in (1, 2)])
    convert.main(["agentnet", str(source), str(folder / "data")])


def _convert_screenagent(folder):
    for name in ("one", "two"):
        write_screenagent_session(folder / "in", name)
    convert.main(["screenagent", str(folder / "in"), str(folder / "data")])


def _convert_records(folder):
    csv_path = write_trajectories(folder, build_tasks(3))
    lines = [
        {"Task_id": t.task_id, "Slide_number": s.index + 1, "Image_id": s.image_id, "Instruction": t.instruction,
         "Output": {"predicted_action": {"action": s.gold.action.kind, "target": s.gold.action.target,
                                         **s.gold.action.arguments}}, "Grounding": {}}
        for t in load_task_set(csv_path, show_progress=False).trajectories for s in t.steps
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    convert.main(["records", str(folder / "rows.jsonl"), str(folder / "data")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        _convert_careflow,
        _convert_pipeline,
        _convert_records,
        _convert_messages,
        _convert_agentnet,
        _convert_screenagent,
    ],
)
def test_converted_data_is_clean_trains_and_replays_to_100_percent(tmp_path, tiny_checkpoints, make, capsys):
    make(tmp_path)
    csv_path, actions = tmp_path / "data/data.csv", tmp_path / "data/actions.yaml"
    recipe = ["--recipe", str(actions)] if actions.is_file() else []
    check.main([str(csv_path), "--json", str(tmp_path / "report.json"), *recipe])  # a problem would end it with code 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["memory_columns"][0]["verdict"] == "lagged"
    assert report["steps_without_memory"] == 0
    defined = actions.read_text() if recipe else ""
    out = _train(tmp_path / "run", tiny_checkpoints["qwen3_vl"], csv_path, actions=defined)
    assert (out / "adapter_model.safetensors").is_file()
    _assert_replay_is_perfect(csv_path, tmp_path / "results", out / "agent_config.json")


@pytest.fixture(scope="module")
def trained(tiny_checkpoints, tmp_path_factory):
    """A model trained on the train part of a split, with one bad task set aside, and the folder of the data."""
    folder = tmp_path_factory.mktemp("trained")
    csv_path = write_trajectories(folder, build_tasks(12))
    split.main([str(csv_path), "--parts", "train=0.5,test=0.5"])
    train_csv = folder / "train.csv"
    task_id = json.loads((folder / "split.json").read_text())["parts"]["train"]["tasks"][0]
    lines = train_csv.read_text().splitlines(keepends=True)
    spoiled = next(i for i, line in enumerate(lines) if line.startswith(f"{task_id},"))
    bad = folder / "train_bad.csv"
    bad.write_text("".join([*lines[:spoiled], lines[spoiled].replace("{", "", 1), *lines[spoiled + 1 :]]))
    out = _train(folder / "run", tiny_checkpoints["qwen3_vl"], bad, "--on_bad_rows", "quarantine")
    return folder, out, task_id


@pytest.mark.slow
def test_training_records_hashes_and_what_it_set_aside(trained):
    folder, out, task_id = trained
    data = json.loads((out / "training_data.json").read_text())["train"]
    assert data["n_tasks"] == 5
    assert data["sha256"] == load_task_set(folder / "train_bad.csv", on_bad_rows="quarantine").sha256
    assert task_id not in data["tasks"]
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["task_id"] == task_id


@pytest.mark.slow
def test_unseen_part_of_the_split_is_scored_and_its_place_recorded(trained, tmp_path):
    folder, out, _ = trained
    metrics = _roll_out(folder / "test.csv", tmp_path / "out", "--model_path", out)
    data = metrics["run"]["data"]
    assert (data["split"]["part"], data["split"]["is_unchanged"], data["trained_on"]) == ("test", True, {})
    assert (
        metrics["run"]["test_csv_sha256"] == json.loads((folder / "split.json").read_text())["parts"]["test"]["sha256"]
    )


@pytest.mark.slow
def test_trained_tasks_are_not_scored(trained, tmp_path):
    folder, out, _ = trained
    with pytest.raises(UserError, match=r"found 5 tasks that the model was trained .* continue with --allow_overlap"):
        _roll_out(folder / "train.csv", tmp_path / "out", "--model_path", out)
    assert not (tmp_path / "out/steps.jsonl").exists()


@pytest.mark.slow
def test_one_reworded_only_by_case_under_another_id_is_found(trained, tmp_path):
    folder, out, _ = trained
    goals = {t.task_id: t.instruction for t in load_task_set(folder / "train.csv", show_progress=False).trajectories}
    known = next(t for t in json.loads((out / "training_data.json").read_text())["train"]["tasks"])
    rows = [*build_task("other", goals[known].upper() + " "), *build_task("new", "Close the study")]
    with pytest.raises(UserError, match=r"found 1 tasks that the model was trained on \(other\)"):
        _roll_out(write_trajectories(tmp_path, rows), tmp_path / "out", "--model_path", out)


@pytest.mark.slow
def test_same_id_with_another_goal_is_another_task(trained, tmp_path):
    _, out, _ = trained
    known = next(t for t in json.loads((out / "training_data.json").read_text())["train"]["tasks"])
    path = write_trajectories(tmp_path, build_task(known, "Close the study"))
    metrics = _roll_out(path, tmp_path / "out", "--model_path", out)
    assert metrics["run"]["data"]["trained_on"] == {}


@pytest.mark.slow
def test_overlap_that_is_allowed_is_printed_in_summary_and_report(trained, tmp_path, capsys):
    folder, out, _ = trained
    _roll_out(folder / "train.csv", tmp_path / "out", "--model_path", out, "--allow_overlap")
    sentence = "Not unseen: the model was trained on 5 of these tasks"
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_replay_needs_no_permission_for_trained_tasks(trained, tmp_path):
    folder, _, _ = trained
    _assert_replay_is_perfect(folder / "train.csv", tmp_path)


@pytest.mark.slow
def test_broken_training_data_file_is_named(trained, tmp_path):
    folder, out, _ = trained
    broken = shutil.copytree(out, tmp_path / "model")
    (broken / "training_data.json").write_text("[1]")
    with pytest.raises(UserError, match=r"training_data\.json: found something unreadable"):
        _roll_out(folder / "test.csv", tmp_path / "out", "--model_path", broken)


def test_goals_are_the_same_whatever_their_case_and_spaces():
    assert hash_goal("Open  the\nStudy ") == hash_goal("open the study")
    assert hash_goal("Open the study") != hash_goal("Open the series")


@pytest.fixture(scope="module")
def saved_dataset(tmp_path_factory):
    """A folder that `datasets` saved: two splits, screenshots embedded, and the CSV it was made from."""
    folder = tmp_path_factory.mktemp("saved")
    tasks = load_task_set(write_trajectories(folder, build_tasks(4)), show_progress=False)
    rows = build_tasks(4)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "Image_id"}
    columns["screenshot"] = [str(tasks.image_root / row["Image_id"]) for row in rows]
    data = datasets.Dataset.from_dict(columns).cast_column("screenshot", datasets.Image())
    data = data.map(lambda row: row, features=data.features)  # reads the files: their bytes are in the data from here
    datasets.DatasetDict(train=data.select(range(6)), test=data.select(range(6, 12))).save_to_disk(folder / "data")
    return folder


def test_data_set_gives_the_steps_of_the_csv_it_was_made_from(saved_dataset):
    from_csv = load_task_set(saved_dataset / "tasks.csv", show_progress=False).trajectories[:2]
    tasks = load_task_set(f"{saved_dataset}/data:train", show_progress=False)
    assert [t.task_id for t in tasks.trajectories] == ["t1", "t2"]
    for saved, original in zip(tasks.trajectories, from_csv):
        assert saved.instruction == original.instruction
        for a, b in zip(saved.steps, original.steps):
            assert (a.gold, a.grounding) == (b.gold, b.grounding)
            assert a.image_path.is_file()
    assert len({s.image_path for t in tasks.trajectories for s in t.steps}) == 2


def test_data_set_trains_and_rolls_out_with_report(saved_dataset, tiny_checkpoints, tmp_path, caplog):
    out = _train(tmp_path / "run", tiny_checkpoints["qwen3_vl"], f"{saved_dataset}/data:train")
    recorded = json.loads((out / "training_data.json").read_text())["train"]
    assert recorded["sha256"] == load_task_set(f"{saved_dataset}/data:train", show_progress=False).sha256
    metrics = _roll_out(f"{saved_dataset}/data:test", tmp_path / "results", "--policy", "replay")
    assert metrics["matchers"]["action_target"]["ta"]["value"] == 1
    assert "report.html lacks" not in caplog.text  # every screenshot was found


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("", "found the splits train, test; expected one to be named"),
        (":val", "found the splits train, test; expected val"),
    ],
)
def test_split_of_a_data_set_must_be_named(saved_dataset, suffix, message):
    with pytest.raises(TrajectoryError, match=message):
        load_task_set(f"{saved_dataset}/data{suffix}", show_progress=False)


def test_parquet_files_of_a_downloaded_data_set_are_told_apart_by_their_names(tmp_path):
    """A folder as the Hub has it: to read all files as one part would train on the test tasks."""
    tasks = write_trajectories(tmp_path, build_tasks(1))
    for i, name in enumerate(("train", "test"), start=1):
        path = tmp_path / f"hub/data/{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(build_task(f"t{i}", f"Open {name}")).to_parquet(str(path))
    for name, task_id in (("train", "t1"), ("test", "t2")):
        found = load_task_set(f"{tmp_path}/hub:{name}", tasks.parent, show_progress=False).trajectories
        assert [t.task_id for t in found] == [task_id]
    with pytest.raises(TrajectoryError, match="found the splits train, test; expected one to be named"):
        load_task_set(tmp_path / "hub", tasks.parent, show_progress=False)


def test_hub_name_that_cannot_be_reached_says_what_is_expected():
    with pytest.raises(
        TrajectoryError, match="expected a trajectory CSV, a folder saved by `datasets`, or a Hub data set"
    ):
        load_task_set("nobody-here/no-such-data", show_progress=False)


def test_task_table_given_as_rows_is_sent_to_the_converter(tmp_path):
    data = datasets.Dataset.from_list([{"task_id": "a", "json_data": "{}"}])
    data.save_to_disk(tmp_path / "table")
    with pytest.raises(TrajectoryError, match="run python -m sft.convert careflow"):
        load_task_set(tmp_path / "table", show_progress=False)
