"""The plan's counts are those of the model that is then loaded and trained."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_qlora import TEXT_8B, VISION_8B
from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.config import parse_recipe
from sft.model import build_lora_config, find_family, load_model
from sft.plan import GB, estimate_memory, format_plan, plan_tokens
from sft.sampler import StepSize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), ["Open the study"])


def build_recipe(folder: Path, *overrides: str):
    path = folder / "recipe.yaml"
    path.write_text(f"model_name_or_path: {folder}\ntrain_csv: train.csv\ngradient_accumulation_steps: 2\n")
    return parse_recipe([str(path), *overrides])


def test_weight_memory_is_that_of_the_loaded_4_bit_model(checkpoint):
    from peft import get_peft_model

    recipe = build_recipe(checkpoint, "--dtype", "float32")
    memory = estimate_memory(recipe, longest=100, n_patches=100)
    model = load_model(recipe.model, find_family(str(checkpoint)))
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / GB
    planned = sum(gb for name, gb in memory.items() if name.endswith(("nf4", "float32")))
    assert planned == pytest.approx(held, rel=0.05)  # bitsandbytes keeps its scales beside the parameters
    model = get_peft_model(model, build_lora_config(recipe.model, find_family(str(checkpoint))))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory["gradients"] == pytest.approx(4 * trained / GB)
    assert memory["optimiser state"] == pytest.approx(8 * trained / GB)


def test_the_8b_model_is_planned_from_its_config_without_weights(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].update(TEXT_8B)
    config["vision_config"].update(VISION_8B)
    (tmp_path / "config.json").write_text(json.dumps(config))
    in_bf16 = estimate_memory(build_recipe(tmp_path, "--load_in_4bit", "false"), longest=8192, n_patches=20_000)
    weights = sum(gb for name, gb in in_bf16.items() if name.endswith("bfloat16"))
    assert weights == pytest.approx(2 * 8.77, rel=0.005)  # the model card counts 8.77 billion parameters
    in_4_bit = estimate_memory(build_recipe(tmp_path), longest=8192, n_patches=20_000)
    assert sum(in_4_bit.values()) < 40 < sum(estimate_memory(build_recipe(tmp_path), 200_000, 20_000).values())


def test_tokens_are_counted_with_and_without_packing(checkpoint):
    sizes = [StepSize(f"image{i // 4}", 1000, 100) for i in range(8)]
    packed = plan_tokens(build_recipe(checkpoint, "--tokens_per_batch", "1400"), sizes, n_ranks=1)
    assert (packed.n_tokens_alone, packed.n_tokens_packed, packed.n_sequences) == (8800, 2800, 2)
    assert (packed.longest, packed.longest_prefixes, packed.n_optimizer_steps) == (1400, 1000, 1)
    padded = plan_tokens(build_recipe(checkpoint, "--packing", "none"), sizes, n_ranks=1)
    assert (padded.n_tokens_packed, padded.n_sequences, padded.longest) == (8800, 8, 8 * 1100)


def test_the_plan_says_whether_it_fits_the_card(checkpoint):
    recipe = build_recipe(checkpoint)
    tokens = plan_tokens(recipe, [StepSize("image", 1000, 100)], n_ranks=1)
    assert "of 40: fits" in format_plan(recipe, tokens, {"weights": 6.0}, 40)
    assert "of 40: does not fit" in format_plan(recipe, tokens, {"weights": 60.0}, 40)
