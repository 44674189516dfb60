"""The loss of a step is the mean over all its answer tokens, whatever batches they are in, times their weights."""

import pytest
import torch
from conftest import FAMILIES
from training_runs import printed, read_losses, write_recipe

from sft import run
from sft.batches.collator import PaddingCollator

# Two steps with a learning rate that changes nothing.
UNCHANGED = ["--learning_rate", "1e-12", "--lora_dropout", "0", "--max_steps", "2", "--save_strategy", "no"]
UNCHANGED += ["--router_aux_loss_coef", "0"]


@pytest.fixture
def train(tiny_checkpoints, tmp_path, trainers):
    """Train those steps on a family's checkpoint; return the trainer."""

    def train(*arguments, family="qwen3_vl"):
        recipe = write_recipe(tmp_path, tiny_checkpoints[family])
        run.main([str(recipe), *UNCHANGED, "--output_dir", str(tmp_path / f"out{len(trainers)}"), *arguments])
        return trainers[-1]

    return train


def losses_of_tokens(trainer, rows):
    """Return each answer token's loss and its text, step by step alone, plainly from the model's logits."""
    model, encoder, losses, texts = trainer.model.eval(), trainer.data_collator.encoder, [], []
    for row in (trainer.train_dataset[i] for i in rows):
        batch = PaddingCollator(encoder)([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1]
        is_answer = labels != -100
        losses.append(torch.nn.functional.cross_entropy(logits[is_answer], labels[is_answer], reduction="none"))
        texts += encoder.tokenizer.batch_decode(labels[is_answer][:, None])
    return torch.cat(losses), texts


def logged(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [("--tokens_per_batch", "700"), ("--packing", "none", "--per_device_train_batch_size", "4")]
)
def test_logged_loss_of_unequal_batches_is_the_mean_over_their_tokens_step_by_step(train, settings):
    """15 steps in 4 batches: two optimiser steps of two batches, of which one has fewer steps."""
    trainer = train("--gradient_accumulation_steps", "2", *settings)
    batches = trainer.pack_sampler.plan(0)
    steps = [batches[:2], batches[2:4]]
    assert any(len(first) != len(second) for first, second in steps)
    for found, step in zip(logged(trainer), steps):
        of_batches = [losses_of_tokens(trainer, batch)[0] for batch in step]
        assert found == pytest.approx(torch.cat(of_batches).mean().item(), rel=1e-5)
    means = [[losses_of_tokens(trainer, batch)[0].mean().item() for batch in step] for step in steps]
    assert any(abs(sum(m) / 2 - found) > 1e-4 for m, found in zip(means, logged(trainer))), "else nothing is shown"


@pytest.mark.slow
def test_logged_loss_of_two_processes_is_the_mean_over_the_tokens_of_both(attempt, train, tmp_path):
    """Each has one pack of the two of a step, with other numbers of steps and of answer tokens."""
    trainer = train("--gradient_accumulation_steps", "2")
    packs = trainer.pack_sampler.plan(0)
    losses = [[losses_of_tokens(trainer, pack)[0] for pack in packs[at : at + 2]] for at in (0, 2)]
    assert attempt(tmp_path / "two", {"ranks": 2, "arguments": UNCHANGED}) == [[0, 0]], printed(tmp_path / "two")
    found = read_losses(tmp_path / "two")
    assert found == pytest.approx([torch.cat(step).mean().item() for step in losses], rel=1e-5)
    of_processes = [sum(of_pack.mean().item() for of_pack in step) / 2 for step in losses]
    assert max(abs(a - b) for a, b in zip(found, of_processes)) > 1e-4, "else nothing is shown"


@pytest.mark.parametrize("packing", ["shared_screenshot", "none"])
@pytest.mark.parametrize(
    "family", ["qwen3_vl", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "qwen3_vl")]
)
def test_weight_of_a_field_multiplies_the_loss_of_its_own_tokens(train, packing, family):
    """The answer's first field is the action's; its tokens are those from its key to the comma before the target."""
    size = ["--per_device_train_batch_size", "3"] if packing == "none" else []
    trainer = train("--loss_weights", "{action: 4.0}", "--packing", packing, *size, family=family)
    total = n_tokens = shifted = 0.0
    for row in trainer.pack_sampler.plan(0)[0]:
        losses, texts = losses_of_tokens(trainer, [row])
        ends = [len("".join(texts[: i + 1])) for i in range(len(texts))]
        starts = [0, *ends[:-1]]
        n_field = "".join(texts).index(',"target"')
        weights = torch.tensor([4.0 if 1 <= start < n_field else 1.0 for start in starts])  # 0 is the brace
        total += (losses * weights).sum().item()
        shifted += (losses * torch.cat([torch.ones(1), weights[:-1]])).sum().item()
        n_tokens += len(losses)
    assert logged(trainer)[0] == pytest.approx(total / n_tokens, rel=1e-5)
    assert abs(shifted / n_tokens - logged(trainer)[0]) > 1e-3, "else a shift by one token would not be seen"
