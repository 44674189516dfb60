"""The plan of the published Llama-4 models: their size from a config alone, and what a rank holds under ZeRO-3."""

import json

import pytest
from conftest import ROOT

from sft.models.model import build_empty_model, count_parameters, find_family_of
from sft.plan import TokenPlan, estimate_memory, estimate_rank, format_zero3, measure_largest_layer
from sft.recipe.recipe import parse_recipe

pytestmark = pytest.mark.slow

# Dimensions of the published configs.
TEXT = {
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "no_rope_layers": None,
    "layer_types": None,
    "moe_layers": None,
}
VISION = {
    "hidden_size": 1408,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "image_size": 336,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
MODELS = {
    "scout": {"num_local_experts": 16, "interleave_moe_layer_step": 1, "use_qk_norm": True},
    "maverick": {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False},
}
BILLIONS = {"scout": 108.64, "maverick": 401.58}  # as the published checkpoints count


@pytest.fixture(scope="module", params=MODELS)
def planned(request, tiny_checkpoints, tmp_path_factory):
    """The recipe of a published model in a folder without weights, its name and its plan for one card."""
    folder = tmp_path_factory.mktemp(request.param)
    for file in tiny_checkpoints["llama4"].iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(TEXT | MODELS[request.param])
    config["vision_config"].update(VISION)
    (folder / "config.json").write_text(json.dumps(config))
    recipe = parse_recipe([f"{ROOT}/recipes/llama4_{request.param}.yaml", "--model_name_or_path", str(folder)])
    tokens = TokenPlan(100, 10**6, 10**6, 100, 4096, 1500, 3000, n_optimizer_steps=50)
    model = build_empty_model(recipe.model)
    return request.param, recipe, estimate_memory(recipe, model, tokens, patches_a_token=4, has_deepspeed=True)


def test_parameters_are_those_of_the_published_checkpoint(planned):
    name, recipe, _ = planned
    counts = count_parameters(build_empty_model(recipe.model))
    assert sum(part["total"] for part in counts.values()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)
    n_layers = {"scout": 48, "maverick": 24}[name]
    assert counts["experts"]["total"] == n_layers * MODELS[name]["num_local_experts"] * 3 * 5120 * 8192


def test_experts_are_planned_in_4_bits_and_dominate(planned):
    name, _, memory = planned
    experts = {"scout": 48 * 16, "maverick": 24 * 128}[name] * 3 * 5120 * 8192
    assert memory["experts, nf4"] == pytest.approx(experts * (0.5 + 1 / 64 + 4 / (64 * 256)) / 1e9)
    assert "experts, bfloat16" not in memory
    assert memory["experts, nf4"] > 0.6 * sum(memory.values())


def test_plan_of_a_rank_gathers_a_whole_layer_of_experts_and_keeps_all_scales(planned):
    name, recipe, memory = planned
    model = build_empty_model(recipe.model)
    largest = measure_largest_layer(model, recipe.model, find_family_of("llama4"))
    layer = (MODELS[name]["num_local_experts"] + 1) * 3 * 5120 * 8192 / 2 / 1e9  # experts and the shared one, 4 bits
    head = 202_048 * 5120 * 2 / 1e9
    assert largest == pytest.approx(max(layer, head), rel=0.01)
    alone, eight, sixteen = (estimate_rank(memory, largest, n) for n in (1, 8, 16))
    assert eight["shards"] == pytest.approx(alone["shards"] / 8)
    assert eight["4-bit scales"] == sixteen["4-bit scales"] == alone["4-bit scales"] > 0
    assert alone["shards"] + alone["4-bit scales"] + alone["activations"] == pytest.approx(sum(memory.values()))
    lines = format_zero3(memory, largest).splitlines()
    fits = {"scout": "40 GB: fits, 80 GB: fits", "maverick": "40 GB: does not fit, 80 GB: fits"}[name]
    assert lines[3].startswith("      8 ") and lines[3].endswith(fits)
    assert [line.split()[0] for line in lines[3:]] == ["8", "16", "32"]
    assert all(line.endswith("40 GB: fits, 80 GB: fits") for line in lines[4:])
