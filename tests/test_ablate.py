"""Ablations as one command: a variant is trained, another taken, both rolled out, one table with intervals."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from conftest import ROOT
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from eval.ablate import build_variants, main
from sft.errors import UserError

RECIPE = """\
output_dir: {folder}/unused
model_name_or_path: {base}
train_csv: {folder}/train/tasks.csv
dtype: float32
lora_r: 4
min_pixels: 16384
max_pixels: 65536
memory_budget_chars: 400
max_prompt_tokens: 2048
max_answer_tokens: 40
val_rollout_tasks: 0
use_cpu: true
bf16: false
max_steps: 1
report_to: none
gradient_checkpointing: false
"""


@pytest.fixture
def folder(tmp_path, tiny_checkpoints):
    """A recipe, its data, and an untrained model that is there as the variant `full`."""
    write_trajectories(tmp_path / "train", build_tasks(3))
    write_trajectories(tmp_path / "test", build_tasks(2, first=50))
    base = tiny_checkpoints["qwen3_vl"]
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path, base=base))
    taken = tmp_path / "taken"
    taken.mkdir()
    for path in base.iterdir():
        (taken / path.name).symlink_to(path)
    (taken / "agent_config.json").write_text(json.dumps(asdict(replace(TINY_AGENT, max_answer_tokens=40))))
    return tmp_path


@pytest.mark.slow
def test_a_variant_is_trained_and_another_taken_and_both_are_in_the_table(folder):
    command = [sys.executable, "eval/ablate.py", str(folder / "recipe.yaml"), "--output_dir", str(folder / "out")]
    command += ["--test_csv", str(folder / "test/tasks.csv"), "--variants", "full", "no_short_term"]
    command += ["--model", f"full={folder / 'taken'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["variant"]: row for row in json.loads((folder / "out/ablations.json").read_text())["rows"]}
    assert list(rows) == ["full", "no_short_term"]
    assert rows["full"]["action"]["swa"]["difference"] == {"value": 0, "low": 0, "high": 0}
    agent = json.loads((folder / "out/no_short_term/model/agent_config.json").read_text())
    assert (agent["use_short_term"], agent["use_long_term"]) == (False, True)
    assert (folder / "out/no_short_term/rollout/report.html").is_file()
    assert "SWA above full" in done.stdout and "no_short_term" in done.stdout


@pytest.mark.slow
def test_each_seed_is_trained_and_the_table_has_their_scores(folder):
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_answer_tokens: 40", "max_answer_tokens: 60"))
    command = [sys.executable, "eval/ablate.py", str(recipe), "--output_dir", str(folder / "out")]
    command += ["--test_csv", str(folder / "test/tasks.csv"), "--variants", "full", "--seeds", "7", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "out/ablations.json").read_text())
    assert found["seeds"] == [7, 8] and len(found["rows"][0]["action"]["swa"]["repeats"]) == 2
    for seed in (7, 8):
        trained = folder / f"out/full/seed_{seed}"
        assert f"seed: {seed}\n" in (trained / "model/recipe.yaml").read_text()
        assert (trained / "rollout/report.html").is_file()


@pytest.mark.parametrize(
    ("seeds", "message"), [(["1", "1"], "expected each once"), (["1", "--model", "full=x"], "found it beside --model")]
)
def test_seeds_that_cannot_be_meant_are_refused(folder, seeds, message, capsys):
    command = [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), "--test_csv", "unused.csv"]
    with pytest.raises(SystemExit):
        main([*command, "--seeds", *seeds])
    assert message in capsys.readouterr().err


def test_a_model_trained_as_another_variant_is_refused(folder):
    command = [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), "--test_csv", "unused.csv"]
    with pytest.raises(UserError, match=r"taken: found .*'use_short_term': True.* for no_memory: train it again"):
        main([*command, "--variants", "no_memory", "full", "--model", f"no_memory={folder / 'taken'}"])


def test_a_folder_without_a_model_is_refused(folder):
    command = [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), "--test_csv", "unused.csv"]
    with pytest.raises(UserError, match="the folder with a trained model"):
        main([*command, "--model", f"full={folder}"])


@pytest.mark.parametrize("option", ["--max_tasks", "--batch_size"])
def test_rollout_of_nothing_is_refused_before_anything_is_trained(folder, option, capsys):
    command = [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), "--test_csv", "unused.csv"]
    with pytest.raises(SystemExit):
        main([*command, option, "0"])
    assert f"{option}: found 0; expected at least 1" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("use_grounding", "name"), [(False, "grounding"), (True, "no_elements")])
def test_every_variant_differs_from_full_in_what_its_name_says(use_grounding, name):
    variants = build_variants(use_grounding)
    assert variants["full"]["use_grounding"] == use_grounding
    changed = {n: {k for k, v in s.items() if v != variants["full"][k]} for n, s in variants.items()}
    assert changed == {
        "full": set(),
        "no_short_term": {"use_short_term"},
        "no_long_term": {"use_long_term"},
        "no_memory": {"use_short_term", "use_long_term"},
        name: {"use_grounding"},
        "rule_memory": {"memory_writer"},
    }


def test_recipe_that_shows_elements_is_ablated_without_them(folder):
    path, command = folder / "recipe.yaml", [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out")]
    command += ["--test_csv", "unused.csv", "--variants", "full", "no_elements"]
    with pytest.raises(UserError, match="--variants: found no_elements for a recipe with use_grounding: false"):
        main(command)
    path.write_text(path.read_text() + "use_grounding: true\n")
    with pytest.raises(UserError, match=r"taken: found .*'use_grounding': False.* for full: train it again"):
        main([*command, "--model", f"full={folder / 'taken'}"])
