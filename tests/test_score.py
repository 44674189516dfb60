"""Re-scoring a finished run: same numbers, no model, clear refusals."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image
from rollout_samples import RUN, RUN_INFO, make_step, make_task

from eval.reporting.publish import judge_run, publish_run
from eval.rollouts.run_folder import load_run
from eval.rollouts.run_info import RunInfo, hash_model, merge_run_infos
from eval.score import main
from eval.step_result import StepResult, format_result, load_results, parse_result
from sft.actions import ActionType
from sft.agent import AgentConfig, agent_to_json
from sft.errors import UserError
from sft.evaluations import EVALUATIONS_NAME
from sft.files import hash_file
from sft.training.card import write_card

ROOT = Path(__file__).parent.parent
STEPS = [
    *make_task("t1", [("CLICK", "CLICK"), ("COMPLETE", "COMPLETE")]),
    *make_task("t2", [("CLICK", "TEXT"), ("COMPLETE", None)]),
]

# Fields of run.json that say where the files lie, when a part ran, and which part it is.
NOT_OF_THE_ROLLOUT = (
    *("model_path", "base_model", "test_csv", "image_root", "data", "started", "finished", "fingerprint"),
    *("shard", "n_tasks", "n_steps"),
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run, as a rollout leaves it."""
    Image.new("RGB", (64, 48), "white").save(tmp_path / "screen.png")
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, STEPS)
    return folder


def write_run(folder: Path, steps: list[StepResult]) -> None:
    info = {**RUN_INFO, "test_csv": str(folder.parent / "test.csv"), "n_tasks": 2, "n_steps": 4}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "steps.jsonl").write_text("".join(map(format_result, steps)))


def score(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "eval/score.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_scoring_again_gives_the_same_files(run_dir):
    publish_run(run_dir, judge_run(run_dir, *load_run(run_dir)))
    names = ("predictions.csv", "metrics.json", "details.json", "report.html")
    first = {name: (run_dir / name).read_bytes() for name in names}
    for name in names:
        (run_dir / name).unlink()
    done = score(run_dir)
    assert done.returncode == 0, done.stderr
    assert {name: (run_dir / name).read_bytes() for name in names} == first
    assert "50.0" in done.stdout and "report.html" in done.stdout


def _write_steps(folder, path, sha256, root="/"):
    """Forge a run, or write one of an older version, whose steps name a picture from `root` on."""
    steps = [replace(s, image_id=str(path.relative_to(root)), image_sha256=sha256) for s in STEPS]
    write_run(folder, steps)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "image_root": str(root)}))
    return folder


@pytest.mark.parametrize("images", ["embed", "link"])
@pytest.mark.parametrize("sha256", ["", "0" * 64], ids=["older", "present"])
def test_forged_run_brings_no_private_picture_into_the_report(tmp_path, run_dir, sha256, images, caplog):
    private = tmp_path / "home" / "private.png"
    private.parent.mkdir()
    Image.effect_noise((64, 48), 80).save(private)
    _write_steps(run_dir, private, sha256)
    main([str(run_dir), "--n_resamples", "10", "--report_images", images])
    assert "report.html lacks 1 screenshots; the first: found another picture than the model was shown" in caplog.text
    assert 'id="image-0"' not in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("is_older", [False, True])
def test_picture_that_the_model_was_shown_is_in_the_report(tmp_path, run_dir, is_older):
    picture = tmp_path / "screen.png"
    sha256 = hash_file(picture)
    _write_steps(run_dir, picture, "" if is_older else sha256)
    info = json.loads((run_dir / "run.json").read_text())
    whole = hashlib.sha256(bytes.fromhex(sha256)).hexdigest()
    (run_dir / "run.json").write_text(json.dumps({**info, "screenshots_sha256": whole}))
    main([str(run_dir), "--n_resamples", "10"])
    assert 'id="image-0"' in (run_dir / "report.html").read_text()


def test_seed_and_resamples_reach_the_metrics(run_dir):
    assert score(run_dir, "--seed", 7, "--n_resamples", 100).returncode == 0
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["bootstrap"] == {"seed": 7, "n_resamples": 100, "confidence": 0.95}


@pytest.mark.slow
def test_ten_thousand_steps_are_scored_in_five_seconds(run_dir):
    pairs = [("CLICK", "CLICK"), ({"action": "TEXT", "target": "Name", "text": "DOE"}, "CLICK"), ("ZOOM", None)]
    results = [step for i in range(770) for step in make_task(f"t{i}", [*pairs * 4, ("COMPLETE", "COMPLETE")])]
    info = replace(load_run(run_dir)[1], n_steps=len(results))
    started = time.process_time()
    publish_run(run_dir, judge_run(run_dir, results, info))
    assert len(results) == 10_010
    assert time.process_time() - started < 5


def test_scoring_imports_no_model_library():
    code = (
        "import sys, eval.score; "
        "print(sorted({'torch', 'transformers', 'pandas', 'trl', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda run: write_run(run, STEPS[:3]), "found 3 step results; expected 4"),
        (lambda run: (run / "steps.jsonl").unlink(), "steps.jsonl: found no such file"),
        (lambda run: (run / "run.json").unlink(), "run.json: found no such file"),
        (lambda run: (run / "run.json").write_text("{"), "run.json: found no JSON"),
        (lambda run: (run / "run.json").write_text("{}"), "run.json: found no image_root, mode, model_path"),
        (lambda run: (run / "steps.jsonl").write_text("{}\n"), "steps.jsonl:1: found a line that is no step result"),
        (lambda run: (run / "steps.jsonl").write_bytes(b"\xff\n"), "steps.jsonl:1: found a line .* roll out again"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_message(run_dir, spoil, message):
    spoil(run_dir)
    with pytest.raises(ValueError, match=message):
        main([str(run_dir)])
    assert not (run_dir / "metrics.json").exists()


def test_a_refusal_is_exit_code_2_and_no_traceback(tmp_path):
    done = score(tmp_path)
    assert done.returncode == 2
    assert "found no such file" in done.stderr and "Traceback" not in done.stderr


def test_a_run_is_judged_by_the_vocabulary_of_its_agent(run_dir):
    steps = make_task("t", [({"action": "DONE", "target": "the report"}, {"action": "DONE", "target": ""})])
    agent = json.loads(json.dumps(agent_to_json(AgentConfig(actions=(ActionType("DONE", "", is_final=True),)))))
    plain = RunInfo(mode="own", model_path=None, test_csv="test.csv", image_root=None, n_steps=1)
    for run_info, is_right in ((replace(plain, agent=agent), True), (plain, False)):
        ((verdict,),) = judge_run(run_dir, steps, run_info).verdicts.values()
        assert verdict.is_right("action_target") is is_right


def test_a_line_of_steps_holds_actions_as_the_model_writes_them(run_dir):
    line = (run_dir / "steps.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["gold"] == {"action": "CLICK", "target": "OK"}
    step = make_step("t", 0, {"action": "ZOOM", "target": "", "scale": 2.5}, None, left_out=["target"])
    assert parse_result(format_result(step)) == step


def test_a_last_line_that_a_kill_cut_is_not_read(run_dir):
    with (run_dir / "steps.jsonl").open("a") as file:
        file.write('{"task_id": "t3", "ind')
    assert [step.task_id for step in load_results(run_dir / "steps.jsonl")] == ["t1", "t1", "t2", "t2"]
    assert score(run_dir).returncode == 0


def test_shards_of_one_rollout_are_joined_and_those_of_two_are_refused():
    shards = {Path(f"s{i}"): replace(RUN, shard=[i, 2], n_tasks=2 + i, n_steps=5, model_sha256="a") for i in range(2)}
    whole = merge_run_infos(shards)
    assert (whole.shard, whole.n_tasks, whole.n_steps, whole.model_sha256) == (None, 5, 10, "a")
    covered = {f.name for f in fields(RunInfo)} - set(NOT_OF_THE_ROLLOUT)
    for name in sorted(covered):
        other = replace(shards[Path("s1")], **{name: ["another"]})
        with pytest.raises(UserError, match=rf"s1: found another rollout than in s0 \(different: {name}\)"):
            merge_run_infos({**shards, Path("s1"): other})


def write_shards(folder, **info):
    """Write a rollout of two tasks in two shards, and the picture that both show; return their folders."""
    Image.new("RGB", (64, 48), "white").save(folder / "screen.png")
    shards = []
    for i, task_id in enumerate(("t2", "t10")):
        shards.append(folder / f"s{i}")
        shards[-1].mkdir()
        steps = make_task(task_id, [("CLICK", "CLICK"), ("COMPLETE", "COMPLETE")])
        own = {"test_csv": str(folder / "test.csv"), "n_tasks": 1, "n_steps": 2, "shard": [i, 2]}
        (shards[-1] / "run.json").write_text(json.dumps({**RUN_INFO, **own, **info}))
        (shards[-1] / "steps.jsonl").write_text("".join(map(format_result, steps)))
    return shards


def test_steps_of_merged_shards_stand_in_the_order_of_the_data(tmp_path):
    main(["merge", *map(str, [tmp_path / "whole", *reversed(write_shards(tmp_path))])])
    steps = [(step.task_id, step.index) for step in load_results(tmp_path / "whole/steps.jsonl")]
    assert steps == [("t2", 0), ("t2", 1), ("t10", 0), ("t10", 1)]


@pytest.mark.parametrize("is_same", [True, False])
def test_merged_scores_enter_the_card_of_the_model_that_was_rolled_out_alone(tmp_path, capsys, is_same):
    model = tmp_path / "model"
    model.mkdir()
    (model / "adapter_model.safetensors").write_bytes(b"weights")
    write_card(model)
    rolled_out = hash_model(str(model)) if is_same else "0" * 64
    shards = write_shards(tmp_path, model_path=str(model), model_sha256=rolled_out, test_csv_sha256="c" * 64)
    main(["merge", *map(str, [tmp_path / "whole", *shards])])
    assert (model / EVALUATIONS_NAME).is_file() == is_same
    assert ("not the model that was rolled out" in capsys.readouterr().out) is not is_same
