"""What every family has to have: the published template's prompt, a formula of FLOPs that holds, an honest plan."""

from dataclasses import replace
from importlib.resources import files

import pytest
from conftest import FAMILIES
from trajectory_samples import TINY_AGENT
from transformers import Qwen3_5Config, Qwen3_5MoeConfig
from transformers.utils.chat_template_utils import render_jinja_template

from demo.tiny_qwen3vl import TEMPLATE_FILES
from sft.batches.collator import PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.batches.sampler import StepSize
from sft.compute.flops import BatchSize, FlopCounter, build_formula
from sft.memory import EMPTY_MEMORY
from sft.models.families import FAMILIES as LAYERS
from sft.models.model import build_empty_model, count_parameters, find_family, load_model
from sft.models.processors import PROCESSORS, load_processor
from sft.plan import estimate_memory, plan_tokens
from sft.prompts import build_prompt
from sft.recipe.recipe import parse_recipe
from sft.recipe.settings import ModelSettings


def test_every_family_is_tested_and_has_a_processor():
    assert set(FAMILIES) == set(LAYERS)
    assert len(PROCESSORS) == 4, "Qwen3-VL's serves four families"


@pytest.mark.parametrize("family", TEMPLATE_FILES)
def test_prompt_is_what_the_published_template_writes_without_thinking(tiny_checkpoints, tasks, family):
    encoder = StepEncoder(load_processor(tiny_checkpoints[family], 16_384, 65_536), TINY_AGENT)
    prompt = encoder.build_prompt(tasks[0].instruction, EMPTY_MEMORY, tasks[0].steps[0].image_path)
    template = (files("trl") / "chat_templates" / TEMPLATE_FILES[family]).read_text(encoding="utf-8")
    messages = build_prompt(tasks[0].instruction, EMPTY_MEMORY, TINY_AGENT)
    options = {"chat_template": template, "add_generation_prompt": True, "enable_thinking": False}
    (expected,), _ = render_jinja_template([messages], **options)
    assert prompt.text == expected
    assert prompt.text.count("<|image_pad|>") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_step_agree_with_the_closed_formula(tiny_checkpoints, tasks, tasks_csv, family):
    """One padded batch through the model as it is trained; the formula leaves out edges, chunks and routers."""
    checkpoint = tiny_checkpoints[family]
    model = load_model(ModelSettings(str(checkpoint), dtype="float32", load_in_4bit=False), find_family(checkpoint))
    model.requires_grad_(True)
    encoder = StepEncoder(load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)
    batch = PaddingCollator(encoder)([build_step_rows(tasks, str(tasks_csv), encoder, show_progress=False).dataset[0]])
    with FlopCounter() as counter:
        model(**batch, use_cache=False).loss.backward()
    n_tokens, n_patches = batch["input_ids"].numel(), len(batch["pixel_values"])
    size = BatchSize(n_tokens, n_tokens**2, n_patches, n_patches**2, n_tokens)
    if family == "llama4":  # rows are tiles: of 16 patches and a class token each
        size = replace(size, patches=17 * n_patches, patches_attended=n_patches * 17**2)
    assert counter.total / build_formula(model, is_checkpointed=False).step(size) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_counts_the_weights_that_are_loaded(tiny_checkpoints, tmp_path, family):
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text(f"model_name_or_path: {tiny_checkpoints[family]}\ntrain_csv: train.csv\ndtype: float32\n")
    recipe = parse_recipe([str(recipe_path)])
    tokens = plan_tokens(recipe, [StepSize(f"image{i // 4}", 100, 900, 100) for i in range(8)], n_ranks=1)
    memory = estimate_memory(recipe, build_empty_model(recipe.model), tokens, patches_a_token=4)
    model = load_model(recipe.model, find_family(str(tiny_checkpoints[family])))
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    planned = sum(gb for name, gb in memory.items() if name.endswith(("nf4", "float32")))
    assert planned == pytest.approx(held, rel=0.05)  # bitsandbytes keeps its scales beside the parameters
    assert memory["activations"] > 0 and memory["vision activations"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "billions"),
    [  # transformers' defaults are the sizes of these models; the published names round them
        (Qwen3_5Config(text_config={}, vision_config={"out_hidden_size": 4096}), 9.4),
        (Qwen3_5MoeConfig(text_config={}, vision_config={"out_hidden_size": 2048}), 35.1),
    ],
    ids=["Qwen3.5-9B", "Qwen3.5-35B-A3B"],
)
def test_published_models_are_counted_from_their_config(tmp_path, config, billions):
    config.save_pretrained(tmp_path)
    counts = count_parameters(build_empty_model(ModelSettings(str(tmp_path))))
    assert sum(part["total"] for part in counts.values()) / 1e9 == pytest.approx(billions, abs=0.05)
    if "experts" in counts:
        assert counts["experts"]["total"] == 40 * 256 * 3 * 2048 * 512
