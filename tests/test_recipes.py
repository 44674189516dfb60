"""The recipes as they are shipped: each trains a tiny model of its family, and a smoke test of one step ends well."""

import json

import pytest
import yaml
from conftest import ROOT
from training_runs import load_adapter
from trajectory_samples import build_tasks, write_trajectories

from sft import run
from sft.errors import UserError

RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
FAMILY_OF = {"qwen3vl": "qwen3_vl", "qwen3vl_80gb": "qwen3_vl", "qwen2_5vl": "qwen2_5_vl"}
SMALL = "--use_cpu true --max_pixels 65536 --max_prompt_tokens 2048 --max_answer_tokens 160 --memory_budget_chars 400 "
SMALL += "--dataloader_num_workers 0 --report_to none --val_rollout_tasks 1 --logging_steps 1"


@pytest.fixture
def command(tiny_checkpoints, tmp_path):
    """Return the command that trains a tiny model with a recipe."""
    train = write_trajectories(tmp_path / "train", build_tasks(4))
    val = write_trajectories(tmp_path / "val", build_tasks(1, first=50))
    data = ["--train_csv", str(train), "--val_csv", str(val), "--output_dir", str(tmp_path / "out")]

    def command(name, *more):
        base = ["--model_name_or_path", str(tiny_checkpoints[FAMILY_OF[name]])]
        return [str(RECIPES[name]), *SMALL.split(), *base, *data, *more]

    return command


def read_history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY_OF)
def test_smoke_test_of_one_step_ends_well_though_a_warm_up_begins_at_a_rate_of_0(command, tmp_path, caplog, name):
    run.main(command(name, "--max_steps", "1"))
    history = read_history(tmp_path / "out")
    assert [row["learning_rate"] for row in history if "learning_rate" in row] == [0.0]
    assert [row["step"] for row in history if "eval_swa_target" in row] == [0, 1]
    assert not any(tensor.any() for n, tensor in load_adapter(tmp_path / "out").items() if "lora_B" in n)
    assert "nothing was learned: every step up to 1 had a learning rate of 0" in caplog.text


@pytest.mark.slow
def test_best_evaluation_of_a_warm_up_s_first_step_is_no_failure_either(command, tmp_path, caplog):
    """Both steps score 0, so the first is the best; what was learned in the second is not saved."""
    run.main(command("qwen3vl", "--max_steps", "2"))
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["best_global_step"] == 1
    assert "nothing was learned: every step up to 1" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY_OF)
def test_recipe_trains_in_two_steps(command, tmp_path, name):
    run.main(command(name, "--max_steps", "2", "--load_best_model_at_end", "false"))
    adapter = load_adapter(tmp_path / "out")
    learned = {name: bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name}
    assert len(learned) >= 14 and all(learned.values()), learned  # two layers of seven linears


@pytest.mark.slow
def test_one_step_that_had_a_rate_must_have_learned(command):
    """Without warm-up the first step has the full rate; an adapter that did not move is no trained one."""
    stuck = ["--max_steps", "1", "--warmup_steps", "0", "--learning_rate", "0"]
    with pytest.raises(UserError, match="found every lora_B zero; expected a trained adapter"):
        run.main(command("qwen3vl", *stuck))


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo"}))
def test_gpu_recipe_saves_by_steps_and_tries_its_rollout_before_the_first_one(name):
    """Those for Llama-4 have no rollout to try."""
    recipe = yaml.safe_load(RECIPES[name].read_text())
    assert recipe.get("eval_on_start", False) is (recipe["val_rollout_tasks"] > 0)
    assert recipe["save_strategy"] == recipe["eval_strategy"] == "steps"
    assert 0 < recipe["save_steps"] <= 0.25


def test_recipe_for_80_gb_says_that_its_figures_are_an_estimate():
    head = RECIPES["qwen3vl_80gb"].read_text().split("\n\n")[0]
    assert "by --plan's estimate" in head and "Not yet\n# measured on a GPU" in head


def test_page_says_of_every_recipe_what_was_measured():
    text = (ROOT / "docs/training.md").read_text()
    assert all(f"| `recipes/{name}.yaml` |" in text for name in RECIPES)
