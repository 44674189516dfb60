"""What trackers are given by a training and by a rollout, read back from the real packages' own files."""

import json
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from rollout_samples import judge, make_task
from training_runs import HOST, SECRETS, USER, find_secrets, name_user_and_host
from trajectory_samples import build_tasks, write_trajectories

from eval.reporting.trackers import describe_scores
from eval.scoring.metrics import compute_metrics

APART = Path(sys.prefix, "apart")  # where scripts/test.sh puts trackio and the older Pillow that it needs
TRACKERS = ("wandb", "trackio", "mlflow")
OF_A_TRAINING = {"loss", "data_wait_share", "packing_factor", "host_gb", "eval_loss", "eval_swa", "eval_swa_target"}
OF_A_TRAINING |= {f"eval_swa{rule}_{bound}" for rule in ("", "_target") for bound in ("low", "high")}
OF_A_ROLLOUT = {
    f"rollout/{measure}{rule}{bound}"
    for measure in ("swa", "ta")
    for rule in ("", "_target")
    for bound in ("", "_low", "_high")
}
COLUMNS = ["task", "step", "goal", "screenshot", "gold", "prediction", "verdict", "verdict_target"]


@pytest.fixture(params=TRACKERS)
def tracker(request):
    if find_spec(request.param) is None and not (APART / request.param).is_dir():
        pytest.skip(f"found no {request.param}; pip install '.[{request.param}]'")
    return request.param


def run(folder, *command):
    """Run a command of ours from `folder`, where every tracker keeps its files and none may ask a network."""
    environment = {**name_user_and_host(folder / "site"), "OMP_NUM_THREADS": "1"}
    if "trackio" in command and find_spec("trackio") is None:
        environment["PYTHONPATH"] = f"{APART}:{environment['PYTHONPATH']}"
    environment |= {"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    environment |= {"MLFLOW_TRACKING_URI": f"file:{folder}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, ROOT / command[0], *command[1:]]
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def read_wandb(folder):
    """Return the logged lines of the one run."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (rest := 32768 - place % 32768) < 7:  # a block's end, too short for a header
            place += rest
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a record that is whole, or its last part
            read = wandb_internal_pb2.Record()
            read.ParseFromString(record)
            if read.WhichOneof("record_type") == "history":
                yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in read.history.item}
            record = b""


def read_trackio(folder):
    (path,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        yield from (json.loads(text) for (text,) in database.execute("select metrics from metrics order by id"))


def read_mlflow(folder):
    """Return the names and last values of the one run's metrics."""
    (run,) = [path for path in (folder / "mlruns").glob("*/*") if (path / "meta.yaml").is_file()]
    metrics = run / "metrics"
    yield {
        str(path.relative_to(metrics)): float(path.read_text().split()[1])
        for path in metrics.rglob("*")
        if path.is_file()
    }


def read_lines(tracker, folder):
    return list({"wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow}[tracker](folder))


def name_of(key):
    """Return what wandb and trackio make of a training's key, as transformers' callbacks do."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def read_table(tracker, folder, lines):
    """Return the table of steps, by row."""
    if tracker == "trackio":
        (table,) = [line["steps"] for line in lines if "steps" in line]
        return table["_value"]
    name = "steps_*.table.json" if tracker == "wandb" else "steps.json"
    (path,) = (
        folder.glob(f"wandb/offline-run-*/files/media/table/{name}") if tracker == "wandb" else folder.rglob(name)
    )
    table = json.loads(path.read_text())
    return [dict(zip(table["columns"], row)) for row in table["data"]]


def check_unnamed(tracker, folder):
    """Make sure that what a tracker sends says nothing of user, machine and the folder of the command."""
    sent = [path for name in ("wandb", "mlruns", "trackio") for path in folder.glob(f"{name}/**/*")]
    sent = [path for path in sent if path.is_file() and path.resolve().parent.name != "logs"]  # wandb's stay here
    assert sent
    for name in (USER, HOST, str(ROOT)):
        assert [path for path in sent if name.encode() in path.read_bytes() or name in path.name] == []
    if tracker == "mlflow":
        users = [path.read_text() for path in folder.glob("mlruns/*/*/tags/mlflow.user")]
        assert users == [""] and "user_id: ''" in next(folder.glob("mlruns/*/*/meta.yaml")).read_text()


@pytest.mark.slow
def test_training_logs_scores_packing_waiting_and_memory_under_stable_names(tracker, recipe, tmp_path):
    options = "--max_steps 2 --val_split 0.4 --val_rollout_tasks 2 --eval_strategy steps --eval_steps 1"
    printed = run(tmp_path, "sft/run.py", recipe, "--report_to", tracker, "--output_dir", "out", *options.split())
    names = [{*line} for line in read_lines(tracker, tmp_path)]
    wanted = OF_A_TRAINING if tracker == "mlflow" else {name_of(key) for key in OF_A_TRAINING}
    assert wanted <= set().union(*names)
    if tracker != "mlflow":
        assert sum("train/packing_factor" in line for line in names) == 1, "which is the same throughout"
        assert sum("train/host_gb" in line for line in names) == 2
    assert find_secrets(tmp_path, printed) == []
    check_unnamed(tracker, tmp_path)


@pytest.mark.slow
def test_rollout_logs_its_scores_and_a_table_of_every_step(tracker, tmp_path):
    (tmp_path / "data").mkdir()
    csv = write_trajectories(tmp_path / "data", build_tasks(3))
    server = f"http://somebody:{SECRETS['OPENAI_API_KEY']}@localhost/v1"  # stands in the command line
    options = f"--policy empty --test_csv {csv} --output_dir results --report_to {tracker} --api_url {server}"
    printed = run(tmp_path, "eval/rollout.py", *options.split())
    assert f"Reported to {tracker}: results own" in printed
    lines = read_lines(tracker, tmp_path)
    scores = {name: value for line in lines for name, value in line.items()}
    assert set(scores) >= OF_A_ROLLOUT
    assert (scores["rollout/swa"], scores["rollout/swa_low"], scores["rollout/swa_high"]) == (0, 0, 0)
    rows = read_table(tracker, tmp_path, lines)
    assert len(rows) == 9 and list(rows[0]) == COLUMNS
    assert [row["step"] for row in rows[:4]] == [1, 2, 3, 1]
    assert all(json.loads(row["gold"])["action"] and row["verdict"] == "unparsable" for row in rows)
    kept = [path for path in tmp_path.rglob("*") if not {"data", "results"} & {*path.relative_to(tmp_path).parts}]
    assert any(path.is_file() and path.read_bytes().startswith(b"\x89PNG") for path in kept), "screenshots"
    assert find_secrets(tmp_path, printed) == []
    check_unnamed(tracker, tmp_path)


def test_scores_of_either_rule_have_names_of_their_own():
    """Two tasks: the action is right in three of three steps, the target in one; one task is right by both."""
    elsewhere = ("CLICK", {"action": "CLICK", "target": "elsewhere"})
    results = [*make_task("a", [("CLICK", "CLICK")]), *make_task("b", [elsewhere, elsewhere])]
    scores = describe_scores(compute_metrics(judge(results), mode="own", n_resamples=50))
    assert (scores["rollout/swa"], scores["rollout/ta"]) == (1, 1)
    assert (scores["rollout/swa_target"], scores["rollout/ta_target"]) == (pytest.approx(1 / 3), 1 / 2)


def test_rollout_refuses_a_tracker_before_it_starts(capsys, monkeypatch):
    from eval.rollouts import options

    argv = "--policy empty --test_csv x.csv --output_dir out --report_to"
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        options.parse_arguments([*argv.split(), "trackio"], "")
    assert "--report_to: found trackio, whose package is missing" in capsys.readouterr().err
    monkeypatch.setattr(options, "find_spec", lambda name: name)
    with pytest.raises(SystemExit):
        options.parse_arguments([*argv.split(), "wandb", "--num_shards", "2"], "")
    assert "--report_to: found --num_shards too" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        options.parse_arguments([*argv.split(), "tensorboard"], "")
    assert "invalid choice: 'tensorboard'" in capsys.readouterr().err
