"""Sweeps: which values are tried, that nothing starts before all of them can be, and what becomes of each run."""

import csv
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT
from slurm_cluster import wait_until

from sft.compute.ledger import append_event, hash_host, name_ledger
from sft.errors import UserError
from sft.files import hash_file
from sft.recipe.recipe import RecipeError
from sft.sweep.combinations import build_runs, name_run, read_combinations
from sft.sweep.runs import Outcome, find_error, judge_run, name_log, pass_on_signal, publish, sweep

LONG = list(range(1, 101))
DEMO = str(ROOT / "recipes/demo.yaml")


@pytest.fixture
def file(tmp_path):
    """Writes a sweep file and returns its path."""

    def write(text):
        (tmp_path / "sweep.yaml").write_text(text)
        return tmp_path / "sweep.yaml"

    return write


def build(path, *more):
    return build_runs(path, [DEMO, "--output_dir", "out", *more])


def test_grid_is_every_combination_in_the_order_of_the_file(file):
    runs = build(file("parameters: {learning_rate: [1e-4, 2.0e-4], lora_r: [4, 8]}"))
    assert [run.name for run in runs] == [
        "learning_rate=1e-4,lora_r=4",
        "learning_rate=1e-4,lora_r=8",
        "learning_rate=0.0002,lora_r=4",
        "learning_rate=0.0002,lora_r=8",
    ]
    assert [(run.recipe.training["learning_rate"], run.recipe.model.lora_r) for run in runs[1:3]] == [
        (1e-4, 8),
        (2e-4, 4),
    ]
    assert [str(run.folder) for run in runs[:1]] == ["out/learning_rate=1e-4,lora_r=4"]
    assert {run.recipe.resume.resume for run in runs} == {"auto"}
    assert {run.recipe.compute.run_purpose for run in runs} == {"hyperparameter_search"}


def test_random_runs_are_drawn_from_a_seed_and_more_of_them_begin_with_the_same(file):
    text = (
        "method: random\nseed: 3\nruns: {}\nparameters:\n  lora_r: {{min: 4, max: 64}}\n  lora_dropout: [0.0, 0.1]\n"
    )
    text += "  learning_rate: {{min: 1e-5, max: 1e-3, scale: log}}\n"
    few, many = (read_combinations(file(text.format(n)), {}) for n in (3, 40))
    assert many[:3] == few and len({json.dumps(values) for values in many}) == 40
    assert all(isinstance(values["lora_r"], int) and 4 <= values["lora_r"] <= 64 for values in many)
    assert {values["lora_dropout"] for values in many} == {0.0, 0.1}
    low = sum(values["learning_rate"] < 1e-4 for values in many)
    assert 10 < low < 30, "half of them, on a scale of logarithms"
    assert read_combinations(file(text.format(3).replace("seed: 3", "seed: 4")), {}) != few


def test_whole_range_is_drawn_with_both_of_its_ends(file):
    text = "method: random\nruns: 3\nparameters:\n  lora_r: {min: 4, max: 6}\n"
    assert sorted(values["lora_r"] for values in read_combinations(file(text), {})) == [4, 5, 6]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("parameters: {learnin_rate: [1]}", "learnin_rate: found an unknown key; did you mean learning_rate?"),
        ("parameters: {lora_r: [8, 0]}", "lora_r: found 0; expected at least 1"),
        ("parameters: {lora_r: [8, 8]}", "parameters: found a value twice"),
        (
            "parameters: {learning_rate: [1e-4, 1.0e-4]}",
            "learning_rate=1e-4 and learning_rate=0.0001 are one training",
        ),
        ("parameters: {model_name_or_path: [a/b, a_b]}", "found several values for the folder model_name_or_path=a_b"),
        ("parameters: {output-dir: [x]}", "output-dir: found no key of a recipe; expected output_dir"),
        (
            "parameters: {run_name: [2020-01-01]}",
            "run_name: found datetime.date(2020, 1, 1); expected text (in quotes)",
        ),
        (f"parameters: {{lora_r: {{min: {'9' * 400}, max: 1}}}}\nmethod: random\nruns: 1", "expected two numbers"),
        ("parameters: {lora_r: 8}", "lora_r: found 8; expected a list of values"),
        ("parameters: {lora_r: []}", "lora_r: found []; expected a list of values"),
        ("parameters: []", "parameters: found []; expected keys of a recipe with values"),
        ("lora_r: [8]", "parameters: found None"),
        ("parameters: {lora_r: [8]}\ngrid: true", "grid: found no key of a sweep; expected some of method, runs"),
        ("parameters: {lora_r: [8]}\nmethod: bayes", "method: found bayes; expected grid or random"),
        ("parameters: {lora_r: [8]}\nruns: 2", "runs: found with method grid"),
        ("parameters: {lora_r: {min: 1, max: 8}}", "lora_r: found a range with method grid"),
        ("parameters: {resume: [auto]}", "resume: found among the parameters; a sweep sets it itself"),
        ("parameters: {push_to_hub: [true]}", "push_to_hub: found in a sweep"),
        ("parameters: {seed: [1]}\nmethod: random\nruns: 0", "runs: found 0; expected how many combinations to draw"),
        ("parameters: {seed: [1]}\nmethod: random\nruns: 100000000", "runs: found 100000000; expected at most 1000"),
        (
            f"parameters: {{seed: {LONG}, lora_r: {LONG}, lora_alpha: {LONG}}}",
            "found 1000000 combinations; expected at",
        ),
        ("parameters: {seed: [1, 2]}\nmethod: random\nruns: 3", "runs: found 3; expected at most 2"),
        (
            "parameters: {lora_r: {min: 8, max: 1}}\nmethod: random\nruns: 1",
            "lora_r: found min 8, max 1; expected two",
        ),
        (
            "parameters: {lora_r: {min: 0, max: 1, scale: log}}\nmethod: random\nruns: 1",
            "lora_r: found min 0 with scale",
        ),
        ("parameters: {lora_r: {least: 1}}\nmethod: random\nruns: 1", "lora_r: found least; expected min, max, scale"),
        ("parameters: {val_split: [0.1]}", "val_split: found together with val_csv"),
    ],
)
def test_sweep_that_cannot_be_run_is_refused_before_a_run_starts(file, text, problem):
    with pytest.raises(RecipeError) as refused:
        build(file(text))
    assert problem in str(refused.value)


def test_problem_of_several_combinations_is_told_once(file):
    with pytest.raises(RecipeError) as refused:
        build(file("parameters: {lora_r: [0], learning_rate: [1e-4, 2e-4], lora_alpha: [8, 0]}"))
    assert len(refused.value.problems) == 2


def test_key_on_the_command_line_and_in_the_file_is_refused(file):
    path = file("parameters: {lora_r: [4, 8]}")
    with pytest.raises(RecipeError, match="lora_r: found on the command line and in the sweep; expected it once"):
        build(path, "--lora_r", "4")
    with pytest.raises(RecipeError, match="resume: found on the command line; a sweep sets it itself"):
        build(path, "--resume", "auto")
    with pytest.raises(UserError, match="found no recipe; expected: run.py RECIPE.yaml --sweep FILE.yaml"):
        sweep(["--sweep", str(path)], None)


def test_sweep_under_a_launcher_is_told_to_launch_each_run(file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match="found a launcher around it; expected .* --launch"):
        sweep([DEMO, "--sweep", str(file("parameters: {lora_r: [4]}"))], None)


@pytest.mark.parametrize(
    ("launcher", "problem"),
    [("no_such_program --x", "begins with no program that is here"), ("accelerate 'launch", "No closing quotation")],
)
def test_launcher_that_cannot_be_started_is_told_before_a_run_starts(file, tmp_path, launcher, problem):
    argv = [DEMO, "--sweep", str(file("parameters: {lora_r: [4]}")), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=problem):
        sweep([*argv, "--launch", launcher], None)


def test_data_that_is_missing_is_told_before_a_run_starts_and_once(file, tmp_path):
    checked = []
    argv = [DEMO, "--sweep", str(file("parameters: {lora_r: [4, 8]}")), "--output_dir", str(tmp_path / "out")]

    def refuse(recipe):
        checked.append(recipe)
        raise UserError("found no data")

    with pytest.raises(UserError, match="found no data"):
        sweep(argv, refuse)
    assert len(checked) == 1 and not (tmp_path / "out").exists()


def test_folders_have_names_that_any_file_system_takes():
    assert (
        name_run({"lora_parts": ["language", "vision"], "val_csv": "a b/c.csv"})
        == "lora_parts=language+vision,val_csv=a_b_c.csv"
    )
    long = [name_run({f"key_{i}": i + n for i in range(40)}) for n in range(2)]
    assert long[0] != long[1] and max(map(len, long)) < 60


def test_arguments_of_a_run_are_read_as_its_values(file, capsys, tmp_path):
    path = file("parameters:\n  lora_parts: [[language], [language, merger]]\n  run_name: ['1', a b]\n")
    sweep([DEMO, "--sweep", str(path), "--output_dir", str(tmp_path), "--show", "runs"], None)
    lines = capsys.readouterr().out.splitlines()
    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {lines[3]}"], capture_output=True, text=True, check=True)
    assert read.stdout.splitlines()[4:8] == ["--lora_parts", '["language", "merger"]', "--run_name", "a b"]
    assert "--run_name '\"1\"'" in lines[0]


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("loading\n 3%|#\r 4%|##\nrecipe.yaml: lora_r: found 0\n", "recipe.yaml: lora_r: found 0"),
        ("Traceback (most recent call last):\n  File x\nOSError: disk full\n", "OSError: disk full"),
        (
            "OSError: disk full\nTraceback (most recent call last):\nCalledProcessError: Command\n",
            "OSError: disk full",
        ),
        (
            "Traceback (most recent call last):\n  File x\nOSError: disk full\n"
            "E1127 10:00:00.1 1 api.py:1] failed (exitcode: 1)\nTraceback (most recent call last):\n  File y\n"
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\nsft/run.py FAILED\n====\n",
            "OSError: disk full",
        ),
        ("", ""),
    ],
)
def test_last_line_of_a_failed_run_is_its_own_not_the_launchers(file, tmp_path, printed, error):
    (run,) = build_runs(file("parameters: {lora_r: [4]}"), [DEMO, "--output_dir", str(tmp_path / "out")])
    name_log(run).parent.mkdir()
    name_log(run).write_text(printed)
    assert find_error(run) == error


def test_state_of_a_run_is_read_from_what_its_training_has_left(file, tmp_path):
    (run,) = build_runs(file("parameters: {lora_r: [4]}"), [DEMO, "--output_dir", str(tmp_path / "out")])
    ledger, process = name_ledger(run.folder), psutil.Process()
    assert judge_run(run).status == "not started"
    alive = {"host": hash_host(), "pid": process.pid, "process_started": process.create_time()}
    append_event(ledger, "start", "first", **alive)
    assert judge_run(run).status == "running"
    append_event(ledger, "end", "first", outcome="failed", wall_s=1)
    name_log(run).write_text("OSError: disk full\n")
    assert judge_run(run) == Outcome(run, "failed", "OSError: disk full")
    append_event(ledger, "start", "second", **{**alive, "pid": 2**22 + 1})
    assert judge_run(run).status == "stopped"
    append_event(ledger, "end", "second", outcome="finished", wall_s=1)
    (run.folder / "recipe.yaml").write_text(run.recipe.to_yaml())
    history = [{"step": 2, "eval_loss": 1.0, "eval_swa": 0.5}, {"step": 4, "eval_loss": 0.5, "eval_swa": 0.25}]
    state = {"log_history": history, "global_step": 4, "best_global_step": 2}
    (run.folder / "trainer_state.json").write_text(json.dumps(state))
    assert run.recipe.training["load_best_model_at_end"]
    assert judge_run(run) == Outcome(run, "finished", scores={"step": 2, "eval_loss": 1.0, "eval_swa": 0.5})
    (run.folder / "trainer_state.json").write_text('{"log_hist')
    assert judge_run(run) == Outcome(run, "finished"), "without scores"
    data = tmp_path / "train.csv"
    data.write_text("as it was")
    said = {"train": {"csv": str(data), "sha256": hash_file(data)}, "val": {"csv": "gone.csv", "sha256": "0"}}
    (run.folder / "training_data.json").write_text(json.dumps(said))
    assert judge_run(run).status == "finished"
    data.write_text("with one task more")
    assert judge_run(run).status == "not started", "with the data as they are now"
    (run.folder / "training_data.json").unlink()
    (run.folder / "recipe.yaml").write_text(run.recipe.to_yaml().replace("lora_alpha: ", "lora_alpha: 1"))
    assert judge_run(run).status == "not started", "with the recipe as it is now"


def test_launcher_that_becomes_the_training_is_asked_to_end():
    with subprocess.Popen(["sleep", "60"]) as child:
        pass_on_signal(child, is_launched=True)
        assert child.wait(timeout=10) == -signal.SIGTERM


def test_table_ranks_by_the_score_that_chooses_checkpoints_and_puts_failures_last(file, tmp_path, capsys):
    runs = build_runs(
        file("parameters: {lora_r: [4, 8, 16]}"),
        [DEMO, "--output_dir", str(tmp_path), "--metric_for_best_model", "swa_target"],
    )
    scores = [
        {f"eval_{rule}{bound}": value for bound, value in zip(("", "_low", "_high"), values)}
        for rule, values in (("swa", (0.9, 0.8, 1)), ("swa_target", (0.1, 0, 0.2)))
    ]
    first = Outcome(runs[0], "finished", scores={"step": 3, "eval_loss": 0.25, **scores[0], **scores[1]})
    best = Outcome(runs[1], "finished", scores={**first.scores, "eval_swa": 0.5, "eval_swa_target": 0.15})
    publish([Outcome(runs[2], "failed", "OSError: disk full"), first, best], tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["lora_r"], row["status"], row["error"]) for row in rows] == [
        ("8", "finished", ""),
        ("4", "finished", ""),
        ("16", "failed", "OSError: disk full"),
    ]
    assert (rows[0]["eval_swa_target"], rows[0]["eval_swa_target_high"], rows[0]["eval_loss"]) == (
        "0.15",
        "0.2",
        "0.25",
    )
    printed = capsys.readouterr().out.splitlines()
    assert "lora_r=8" in printed[1] and "15.0 [0.0, 20.0]" in printed[1]
    assert "failed: OSError: disk full" in printed[3]


@pytest.mark.slow
def test_sweep_survives_a_failed_run_resumes_what_was_stopped_and_keeps_what_is_finished(recipe, file, tmp_path):
    path = file("parameters: {optim: [galore_adamw, adamw_torch, sgd]}")  # the first needs a package that is not here
    out = tmp_path / "out"
    options = (
        "--max_steps 48 --save_steps 4 --val_split 0.4 --val_rollout_tasks 2 --eval_strategy steps --eval_steps 48"
    )
    command = [sys.executable, "sft/run.py", recipe, "--sweep", path, "--output_dir", out, *options.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = {"cwd": ROOT, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(list(map(str, command)), **started) as running:
        wait_until(lambda: (out / "optim=adamw_torch/checkpoint-4").is_dir(), "the first checkpoint")
        running.send_signal(signal.SIGTERM)
        printed, _ = running.communicate(timeout=300)
    assert running.returncode == 75, printed
    assert "1 of 3: optim=galore_adamw: trains" in printed and "failed: " in printed
    assert printed.endswith("stopped: the same command resumes\n")

    done = subprocess.run(list(map(str, command)), **started)
    assert done.returncode == 1, done.stdout
    assert "resume: continuing from" in (out / "optim=adamw_torch.log").read_text()
    with (out / "sweep.csv").open(newline="") as table:
        rows = {row["optim"]: row for row in csv.DictReader(table)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "adamw_torch": "finished",
        "sgd": "finished",
        "galore_adamw": "failed",
    }
    assert "optim: found galore_adamw, whose package is missing" in rows["galore_adamw"]["error"]
    assert float(rows["sgd"]["eval_swa_low"]) <= float(rows["sgd"]["eval_swa"]) <= float(rows["sgd"]["eval_swa_high"])

    weights = {p: p.stat().st_mtime_ns for p in out.rglob("adapter_model.safetensors")}
    again = subprocess.run(list(map(str, command)), **started)
    assert again.stdout.count("finished before") == 2 and len(weights) >= 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("adapter_model.safetensors")} == weights
