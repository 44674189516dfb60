"""A gradient that is no finite number stops a run before the optimiser uses it, however many processes there are."""

import pytest
import torch
from test_distributed import COMMON, ENGINES, LORA
from training_runs import assert_same_bits, load_adapter, printed
from training_server import spoil_gradient

from sft import run
from sft.errors import UserError
from sft.trainer import TrajectoryTrainer

SAVED = ("--save_strategy", "steps", "--save_steps", "1")
FIVE_STEPS = ("--max_steps", "5", *SAVED)


def stops_at(step, part):
    return f"step {step}: found gradients in the {part} part that are not finite"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "settings"),
    [("nan", ()), ("inf", ()), ("nan", ("--max_grad_norm", "0")), ("nan", ("--gradient_accumulation_steps", "2"))],
    ids=["nan", "inf", "unclipped", "accumulated"],
)
def test_run_stops_at_the_step_and_goes_on_from_the_one_before_it(attempt, tmp_path, value, settings):
    arguments = ["--resume", "auto", *FIVE_STEPS, *settings]
    assert attempt(tmp_path / "quiet", {"arguments": arguments}) == [0]
    spoilt = {"arguments": arguments, "not_finite": {"name": "lora_B", "at_step": 3, "value": value}}
    out = tmp_path / "out"
    assert attempt(out, spoilt, {"arguments": arguments}) == [2, 0], printed(out)
    assert stops_at(3, "language") in printed(out)
    assert "the checkpoints are intact, resume with --resume auto" in printed(out)
    assert "going on from" in printed(out, 1) and "checkpoint-2\n" in printed(out, 1)
    assert_same_bits(out, tmp_path / "quiet")


@pytest.mark.slow
def test_part_that_has_it_is_named(attempt, tmp_path):
    arguments = [*FIVE_STEPS, "--lora_parts", "[language, merger, vision]", "--load_in_4bit", "false"]
    for name, part in (("visual.blocks", "vision"), ("visual.merger", "merger"), ("language_model", "language")):
        spoilt = {"arguments": arguments, "not_finite": {"name": name, "at_step": 1, "value": "nan"}}
        assert attempt(tmp_path / part, spoilt) == [2], printed(tmp_path / part)
        assert stops_at(1, part) in printed(tmp_path / part)


def test_weights_in_memory_are_those_of_the_step_before(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(TrajectoryTrainer, "__init__", TrajectoryTrainer.__init__)  # put back what is spoilt
    spoil_gradient("lora_B", 3, float("nan"))
    trainers = []

    def keep(self, *args, build=TrajectoryTrainer.__init__, **kwargs):
        build(self, *args, **kwargs)
        trainers.append(self)

    monkeypatch.setattr(TrajectoryTrainer, "__init__", keep)
    with pytest.raises(UserError, match="step 3: found gradients in the language part"):
        run.main([str(recipe), *FIVE_STEPS, "--output_dir", str(tmp_path)])
    saved = load_adapter(tmp_path / "checkpoint-2")
    weights = {n.replace(".default", ""): p for n, p in trainers[0].model.named_parameters() if p.requires_grad}
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight.detach(), saved[name]), name


@pytest.mark.slow
def test_norm_too_large_for_its_format_is_refused_too(attempt, tmp_path):
    """Each gradient is finite; their squares are not."""
    spoilt = {"name": "lora_B", "at_step": 2, "value": "1e30"}
    assert attempt(tmp_path, {"arguments": [*FIVE_STEPS], "not_finite": spoilt}) == [2]
    assert "step 2: found a gradient norm that is not finite" in printed(tmp_path)


@pytest.mark.slow
def test_loss_that_is_no_number_is_told_before_its_gradients_under_zero(attempt, tmp_path):
    """Where DeepSpeed would have used them before the loss is looked at."""
    pytest.importorskip("deepspeed")
    arguments = [*COMMON, *LORA, "--learning_rate", "1e30", "--max_grad_norm", "1e30"]
    assert attempt(tmp_path, {**ENGINES["zero2"], "arguments": arguments, "limit_s": 200}) == [[2, 2]]
    assert "found a loss of nan; expected a finite number: training has diverged" in printed(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_all_processes_stop_though_one_alone_had_it(attempt, tmp_path, engine):
    """Under ZeRO, where DeepSpeed steps within the backward pass, before that."""
    pytest.importorskip("deepspeed")
    arguments = ["--resume", "auto", *COMMON, *LORA, *SAVED]
    two = {**ENGINES[engine], "arguments": arguments, "limit_s": 200}
    assert attempt(tmp_path / "quiet", two) == [[0, 0]], printed(tmp_path / "quiet")
    out = tmp_path / "out"
    spoilt = {**two, "not_finite": {"name": "lora_B", "at_step": 3, "rank": 1, "value": "nan"}}
    assert attempt(out, spoilt, two) == [[2, 2], [0, 0]], printed(out)
    for rank in range(2):
        assert stops_at(3, "language") in (out / f"logs/rank-{rank}.log").read_text()
    assert "checkpoint-2\n" in printed(out, 1)
    assert_same_bits(out, tmp_path / "quiet")
