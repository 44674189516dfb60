"""Every command on a terminal, pipe or log that lacks the characters of the data: "?" for them, and no traceback."""

import json
import logging
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from conversion_samples import build_pipeline_records, write_pipeline_task
from tqdm.auto import tqdm
from training_runs import write_recipe
from trajectory_samples import build_tasks, format_csv, write_screenshots

from sft.training.processes import log_process

ENVIRONMENTS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
OWN = "Größe 患者"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of that name with data that has more of such characters, and a rollout of it."""
    folder = tmp_path_factory.mktemp("data") / OWN
    write_screenshots(folder)
    rows = [{**row, "Application": OWN, "Instruction": f"{row['Instruction']} 🙂"} for row in build_tasks(4)]
    (folder / "tasks.csv").write_text(format_csv(rows), encoding="utf-8", newline="")
    rows[0] = {**rows[0], "Output": json.dumps({"action": OWN, "target": "x"})}
    (folder / "bad.csv").write_text(format_csv(rows), encoding="utf-8", newline="")
    return folder


def run(folder, environment, *command):
    """Run a command of the product; return its exit code and what it wrote, to a pipe, as bytes."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[environment]},
        capture_output=True,
        timeout=120,
    )
    written = done.stdout + done.stderr
    assert b"Traceback" not in written and b"Logging error" not in written, written.decode("latin-1")[-3000:]
    return done.returncode, written


def roll_out(folder, environment):
    data = ["--test_csv", str(folder / "tasks.csv"), "--output_dir", str(folder / f"run {environment}")]
    return run(folder, environment, "eval/rollout.py", "--policy", "replay", *data)


COMMANDS = {
    "check": (["-m", "sft.check", "{}/tasks.csv", "--show", "1"], 0),
    "check of bad rows": (["-m", "sft.check", "{}/bad.csv", "--json", "{}/report.json"], 1),
    "split": (["-m", "sft.split", "{}/tasks.csv", "--output_dir", "{}/parts", "--parts", "train=0.5,test=0.5"], 0),
    "convert": (["-m", "sft.convert", "careflow", "{}/keine.csv", "{}/converted"], 2),
    "run": (["sft/run.py", "recipes/demo.yaml", "--lora_r", "患者", "--output_dir", "{}/out"], 2),
    "plan": (
        [
            "sft/run.py",
            "recipes/demo.yaml",
            "--plan",
            "--train_csv",
            "{}/bad.csv",
            "--val_csv",
            "null",
            *["--eval_strategy", "no", "--load_best_model_at_end", "false", "--metric_for_best_model", "loss"],
        ],
        2,
    ),
    "export": (["-m", "sft.export", "--model_path", "{}/out", "--to", "{}/merged"], 2),
    "ablate": (
        [
            "eval/ablate.py",
            "recipes/demo.yaml",
            "--test_csv",
            "{}/tasks.csv",
            "--output_dir",
            "{}/out",
            "--model",
            "full={}/x",
        ],
        2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(("command", "code"), COMMANDS.values(), ids=COMMANDS)
def test_command_writes_what_the_terminal_has(folder, command, code, environment):
    found, written = run(folder, environment, *(word.replace("{}", str(folder)) for word in command))
    assert found == code, written.decode("latin-1")
    assert environment == "C" or b"?" in written  # there Python shows some names by their bytes


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_rollout_score_and_compute_report_write_what_the_terminal_has(folder, environment):
    code, written = roll_out(folder, environment)
    assert code == 0 and b"?" in written
    results = folder / f"run {environment}"
    for name in ("report.html", "details.json", "run.json"):
        (results / name).read_text(encoding="utf-8")
    for command in (["eval/score.py"], ["eval/score.py", "compare", str(results)], ["-m", "sft.compute"]):
        code, written = run(folder, environment, *command, str(results))
        assert code == 0 and b"?" in written, written


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_converted_data_is_announced_on_any_terminal(folder, environment):
    write_pipeline_task(folder / "pipeline", 1, build_pipeline_records(1))
    target = f"{folder}/from pipeline {environment}"
    code, written = run(folder, environment, "-m", "sft.convert", "pipeline", f"{folder}/pipeline", target)
    assert code == 0 and b"?" in written, written


@pytest.mark.slow
def test_training_and_export_write_what_the_terminal_has(tiny_checkpoints, tmp_path):
    """The whole way once; the log is UTF-8 whatever the terminal is."""
    own = tmp_path / OWN
    own.mkdir()
    recipe, out = write_recipe(own, tiny_checkpoints["qwen3_vl"]), own / "out"
    training = [str(recipe), "--output_dir", str(out), "--max_steps", "2", "--save_strategy", "no"]
    code, written = run(own, "ASCII", "sft/run.py", *training)
    assert code == 0, written.decode("latin-1")[-3000:]
    assert b"saved to" in written and b"Gr??e" in written
    assert OWN in (out / "logs/rank-0.log").read_text(encoding="utf-8")
    code, written = run(own, "ASCII", "-m", "sft.export", "--model_path", str(out), "--to", str(own / "merged"))
    assert code == 0, written.decode("latin-1")[-3000:]


def test_log_of_a_training_is_printed_above_its_progress_bar(tmp_path, capsys):
    with log_process(tmp_path, rank=0), tqdm(total=2) as bar:
        bar.update()
        logging.getLogger("sft").warning("set aside")
    assert "WARNING set aside" in capsys.readouterr().err.replace("\r", "\n").splitlines()
