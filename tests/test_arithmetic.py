"""A checkpoint is scored by the arithmetic it was chosen by: the logits of validation, to the bit."""

import pytest
import torch
from training_runs import write_recipe
from trajectory_samples import build_tasks, write_trajectories

from eval.policies.policy import StepRequest
from eval.predictor import load_model_for_inference
from eval.rollouts.walk import walk_tasks
from sft import run
from sft.data.load import load_trajectories
from sft.memory import EMPTY_MEMORY

pytestmark = pytest.mark.slow

SETTINGS = {
    "4-bit base in bf16": "--dtype bfloat16 --bf16 true",
    "bf16 base, LoRA on vision": "--dtype bfloat16 --bf16 true --load_in_4bit false --lora_parts [language,vision]",
    "embeddings trained in full": "--dtype bfloat16 --bf16 true --lora_modules_to_save [embed_tokens,lm_head]",
    "fp32 base computed in bf16": "--dtype float32 --bf16 true",
    "fp32 base, precision not named": "--dtype float32 --bf16 null",
    "bf16 base without mixed precision": "--dtype bfloat16 --bf16 false",
    "every parameter, computed in bf16": "--dtype bfloat16 --bf16 true --use_peft false --load_in_4bit false",
}


def read_logits(policy, request):
    """Return the logits of the first answer token, in fp32, as the policy decodes by them."""
    found = []
    handle = policy.model.register_forward_hook(lambda _, __, output: found.append(output.logits[:, -1].float()))
    policy.answer([request])
    handle.remove()
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_rollout_of_a_checkpoint_has_the_logits_of_its_validation(tiny_checkpoints, tmp_path, monkeypatch, settings):
    recipe = write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    path = write_trajectories(tmp_path / "val", build_tasks(1, first=50))
    step = load_trajectories(path, show_progress=False)[0].steps[0]
    request = StepRequest("t", 0, "Open the study", EMPTY_MEMORY, step.image_path)
    validated = []

    def walk(tasks, policy, *settings):
        validated.append(read_logits(policy, request))
        return walk_tasks(tasks, policy, *settings)

    monkeypatch.setattr("eval.rollouts.validation.walk_tasks", walk)
    evaluation = ["--val_csv", str(path), "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "2"]
    run.main([str(recipe), "--output_dir", f"{tmp_path}/out", *evaluation, "--save_strategy", "no", *settings.split()])
    rolled_out = read_logits(load_model_for_inference(tmp_path / "out").policy, request)
    assert len(rolled_out) == len(validated[-1]) > 3
    for ours, theirs in zip(rolled_out, validated[-1], strict=True):
        assert torch.equal(ours, theirs)
