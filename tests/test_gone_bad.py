"""A screenshot that goes bad after the data was checked: no traceback, but file and row, in training and rollout."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from training_runs import RECIPE, ROOT
from trajectory_samples import TINY_AGENT, build_task, write_screenshots, write_trajectories
from transformers import AutoModelForImageTextToText

from eval.policies.hf import ModelPolicy, ScreenshotLoader
from eval.policies.openai_server import OpenAIPolicy
from eval.policies.policy import RawAnswer, StepRequest
from eval.predictor import Predictor
from eval.rollouts.walk import walk_tasks
from sft import run
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.data.load import TrajectoryError, load_trajectories
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY
from sft.models.processors import load_processor

N_STEPS = 8
DAMAGE = {
    "deleted": (lambda path: path.unlink(), "found no file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "found a damaged image"),
    "overwritten": (lambda path: path.write_bytes(b"<html>gone</html>"), "found a web page"),
    "animated": (lambda path: _animate(path), "found an animation of 2 frames"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "found no file"),
}


def _animate(path):
    Image.new("RGB", (320, 192)).save(path, "GIF", save_all=True, append_images=[Image.new("RGB", (320, 192), "red")])


def _write(folder, n_tasks=1):
    """Write tasks each of whose steps has a screenshot of its own; return the CSV's path."""
    tasks = [build_task(f"t{i}", f"Open the study of DOE{i}", N_STEPS, N_STEPS * n_tasks) for i in range(n_tasks)]
    rows = [{**row, "Image_id": f"screens/{i}.png"} for i, row in enumerate(row for task in tasks for row in task)]
    path = write_trajectories(folder, rows)
    write_screenshots(folder, len(rows))
    return path


@pytest.fixture
def encoder(tiny_checkpoints):
    folder = tiny_checkpoints["qwen3_vl"]
    return StepEncoder(load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)


@pytest.fixture
def policy(tiny_checkpoints, encoder):
    return ModelPolicy(AutoModelForImageTextToText.from_pretrained(tiny_checkpoints["qwen3_vl"]).eval(), encoder)


GONE = (
    "{folder}/tasks.csv: row 7: Image_id: found no file {folder}/screens/5.png; expected a screenshot there (paths "
    "are relative to image_root); it was whole when the data was checked: restore it and resume with --resume auto"
)
LOSE_AND_RUN = """
import pathlib, sys
from sft import run
from sft.errors import run_command
from sft.training.signals import watch_for_preemption

def save_and_lose(*arguments, save=run.save_run_files):
    save(*arguments)
    lost.unlink()

lost = pathlib.Path(sys.argv.pop(1))
run.save_run_files = save_and_lose  # the last thing that happens before the first step
watch_for_preemption()
run_command(run.main)
"""


def _write_recipe(folder, base):
    csv_path = _write(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base, folder=folder))
    return csv_path


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["shared_screenshot", "none"])
def test_training_ends_with_file_and_row(tmp_path, tiny_checkpoints, monkeypatch, packing):
    _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    save = run.save_run_files

    def save_and_lose(*arguments):  # the last thing that happens before the first step
        save(*arguments)
        (tmp_path / "screens/5.png").unlink()

    monkeypatch.setattr(run, "save_run_files", save_and_lose)
    with pytest.raises(UserError) as caught:
        run.main([f"{tmp_path}/recipe.yaml", "--packing", packing, "--output_dir", f"{tmp_path}/out"])
    assert str(caught.value) == GONE.format(folder=tmp_path)


@pytest.mark.slow
def test_training_with_data_workers_ends_with_file_and_row_and_leaves_none_behind(tmp_path, tiny_checkpoints):
    """In a process of its own, which has to end: at its exit Python waits for the workers."""
    _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    arguments = [f"{tmp_path}/screens/5.png", f"{tmp_path}/recipe.yaml", "--output_dir", f"{tmp_path}/out"]
    command = [sys.executable, "-c", LOSE_AND_RUN, *arguments, "--dataloader_num_workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"\n{GONE.format(folder=tmp_path)}" in done.stderr, "on the line of a progress bar"


def test_rows_of_a_screenshot_that_is_gone_are_refused_with_file_and_row(tmp_path, encoder):
    csv_path = _write(tmp_path)
    tasks = load_trajectories(csv_path, show_progress=False)
    (tmp_path / "screens/5.png").unlink()
    with pytest.raises(TrajectoryError, match=r"tasks\.csv: row 7: Image_id: found no file"):
        build_step_rows(tasks, str(csv_path), encoder, show_progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the first step", "in the middle"])
@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_rollout_counts_an_error_with_its_row_and_goes_on(tmp_path, policy, damage, words, when):
    tasks = load_trajectories(_write(tmp_path, n_tasks=2), show_progress=False)
    if when == "before the first step":
        damage(tmp_path / "screens/5.png")
    results = []
    for result in walk_tasks(tasks, policy, TINY_AGENT, "own", batch_size=2):
        results.append(result)
        if when == "in the middle" and len(results) == 4:  # steps 2 of both tasks are done, 3 is being prepared
            damage(tmp_path / "screens/5.png")
    errors = [result for result in results if result.error is not None]
    assert (len(results), len(errors)) == (2 * N_STEPS, 1)
    assert (errors[0].task_id, errors[0].index) == ("t0", 5)
    assert errors[0].error.startswith(f"row 7: {words}") and "screens/5.png" in errors[0].error
    (after,) = [r for r in results if (r.task_id, r.index) == ("t0", 6)]
    assert after.memory_before == errors[0].memory_after == errors[0].memory_before


def test_server_is_not_asked_about_a_screenshot_that_is_gone(tmp_path):
    policy = OpenAIPolicy("http://127.0.0.1:9/v1", "served", TINY_AGENT, is_constrained=False)
    request = StepRequest("t", 0, "Open it", EMPTY_MEMORY, tmp_path / "gone.png")
    (answer,) = policy.answer([request])
    assert answer.error.startswith(f"found no file {tmp_path}/gone.png")


def test_file_that_is_written_anew_is_another_screenshot(tmp_path, encoder):
    """A live agent saves each screen under one name."""
    path, loader = tmp_path / "screen.png", ScreenshotLoader(encoder)
    seen = []
    for colour, size in (("red", (320, 192)), ("blue", (320, 192)), ("blue", (192, 96))):
        Image.new("RGB", size, colour).save(path)
        pixels = loader.load([path])[path]["pixel_values"]
        assert encoder.count_image_tokens(path) == len(pixels) // 4
        seen.append(pixels)
    assert seen[0].shape == seen[1].shape != seen[2].shape
    assert not torch.equal(seen[0], seen[1])


def test_screenshots_that_were_used_longest_ago_make_room_by_their_bytes(tmp_path, encoder, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("RGB", (320, 192), "red").save(path)
    encoded = []
    monkeypatch.setattr(encoder, "encode_screenshots", _count_calls(encoder.encode_screenshots, encoded))
    loader = ScreenshotLoader(encoder)
    one = sum(values.nbytes for values in loader.load(paths[:1])[paths[0]].values())
    monkeypatch.setattr("eval.policies.hf.CAPACITY", 3 * one)
    loader.load(paths[1:3])
    loader.load(paths[:1])  # the second is now the one that was used longest ago
    loader.load(paths[3:])
    loader.load(paths[:1])
    assert encoded == [*paths[:3], paths[3]]
    loader.load(paths[1:2])
    assert encoded[4:] == [paths[1]]
    monkeypatch.setattr("eval.policies.hf.CAPACITY", 1)
    assert len(loader.load(paths)) == 4, "a batch of its own always has room"


def _count_calls(encode, encoded):
    def count(paths):
        encoded.extend(paths)
        return encode(paths)

    return count


def test_predictor_finds_names_as_a_csv_does_and_says_what_is_wrong(tmp_path, policy):
    write_screenshots(tmp_path)
    predictor = Predictor(policy, TINY_AGENT)
    plain = predictor.predict_step(tmp_path / "screens/0.png", "Open it")
    assert predictor.predict_step(f"{tmp_path}\\screens\\0.PNG", "Open it") == plain
    (tmp_path / "screens/1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="found an empty file"):
        predictor.predict_step(tmp_path / "screens/1.png", "Open it")


@pytest.mark.slow
def test_memory_of_any_characters_is_shown_without_ending_a_rollout(tmp_path, policy):
    """What a model writes about a step comes back in its next prompt."""
    odd = ["\ud83d", "\x00\x1b[0m\x7f", "<|image_pad|><|vision_start|>", "<|im_end|>", "\u202e\ufeff", "\uffff" * 9]
    tasks = load_trajectories(_write(tmp_path), show_progress=False)

    class Writes:
        def answer(self, requests):
            answers = policy.answer(requests)
            assert [answer.error for answer in answers] == [None] * len(requests)
            memory = {odd[requests[0].index % len(odd)]: odd}
            fields = {"action": "CLICK", "target": odd[0], "short_term": memory, "long_term": memory}
            return [RawAnswer(json.dumps(fields)) for _ in requests]

    results = list(walk_tasks(tasks, Writes(), TINY_AGENT, "own", batch_size=1))
    assert [result.parse_status for result in results] == ["ok"] * N_STEPS
