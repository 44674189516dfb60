"""`gradient_checkpointing: auto` is decided once a training, by the smallest card, and kept when it resumes."""

import importlib
import logging

import pytest
import torch
from training_runs import load_adapter

from sft import plan, run
from sft.compute.ledger import load_runs
from sft.recipe.recipe import RecipeError, parse_recipe
from sft.training.checkpoint_folder import read_run

SHORT = ("--max_steps", "2", "--save_steps", "1", "--lora_dropout", "0.1")


@pytest.fixture
def train(recipe, tmp_path, caplog):
    """Train two steps with a value of the key; return the folder and what was logged."""

    def start(value, name, *more):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="sft"):
            arguments = ["--output_dir", str(tmp_path / name), "--gradient_checkpointing", value, *SHORT, *more]
            run.main([str(recipe), *arguments])
        return tmp_path / name, caplog.text

    return start


@pytest.fixture
def card(monkeypatch):
    """Have `auto` find a card of so many GB, where there is none."""

    importlib.import_module("eval.rollouts.validation")  # imported later, it would keep the stand-in for good

    def insert(gb):
        monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [gb, 2 * gb])

    return insert


def find_form(folder):
    (checkpoint, *_) = sorted(folder.glob("checkpoint-*"))
    return read_run(checkpoint)["checkpointing"]["form"]


@pytest.mark.slow
def test_a_cpu_keeps_everything(train):
    folder, _ = train("auto", "cpu")
    assert find_form(folder) is False
    assert load_runs(folder)[-1].figures["gradient_checkpointing"] is False
    assert "gradient_checkpointing: auto" in (folder / "recipe.yaml").read_text()


@pytest.mark.slow
def test_smallest_card_decides_and_a_resumed_training_keeps_the_form(train, card, monkeypatch):
    forms = {False: 30.0, "selective": 20.0, True: 10.0}
    monkeypatch.setattr(plan, "estimate_forms", lambda *args: forms)
    monkeypatch.setattr(plan, "choose_form", lambda recipe, forms, gb: "selective" if gb == 25 else True)
    card(25)
    folder, logged = train("auto", "gpu")
    assert find_form(folder) == "selective"
    assert "gradient_checkpointing (GB): false 30.0, selective 20.0, true 10.0; with at most 85 % of 25" in logged
    card(12)
    folder, logged = train("auto", "gpu", "--resume", "auto", "--max_steps", "2")
    assert "gradient_checkpointing: selective, as this training began" in logged
    assert find_form(folder) == "selective"


@pytest.mark.slow
def test_every_value_ends_in_the_same_adapter(train):
    """To the bit, and a training may resume with another value."""
    adapters = {value: load_adapter(train(value, value)[0]) for value in ("false", "selective", "true")}
    for value in ("selective", "true"):
        for name, tensor in adapters["false"].items():
            assert torch.equal(adapters[value][name], tensor), (value, name)


@pytest.mark.parametrize("value", ["selective", "auto"])
@pytest.mark.parametrize("details", ["{use_reentrant: true}", "{selective: true}"])
def test_details_that_contradict_the_value_are_refused(tmp_path, value, details):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: m\ntrain_csv: t.csv\ngradient_checkpointing: {value}\n")
    with pytest.raises(RecipeError, match=f"found .*: true with gradient_checkpointing {value}; expected it without"):
        parse_recipe([str(path), "--gradient_checkpointing_kwargs", details])


def test_value_that_is_none_of_the_four_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: m\ntrain_csv: t.csv\ngradient_checkpointing: some\n")
    with pytest.raises(RecipeError, match="gradient_checkpointing: found 'some'; expected bool or one of sel"):
        parse_recipe([str(path)])
