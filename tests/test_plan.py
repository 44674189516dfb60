"""The plan's counts are those of the model that is then loaded and trained."""

from pathlib import Path

import pytest
from trajectory_samples import build_task, write_screenshots, write_trajectories

from benchmarks.gpu.base_8b import use_8b_shapes
from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.batches.sampler import StepSize
from sft.errors import UserError
from sft.models.model import build_empty_model, build_lora_config, find_family, load_model
from sft.plan import (
    GB,
    TokenPlan,
    choose_form,
    describe_forms,
    estimate_forms,
    estimate_memory,
    format_plan,
    plan_tokens,
)
from sft.recipe.launch import Launch
from sft.recipe.recipe import parse_recipe
from sft.run import print_plan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), ["Open the study"])


def build_recipe(folder: Path, *overrides: str):
    path = folder / "recipe.yaml"
    path.write_text(f"model_name_or_path: {folder}\ntrain_csv: train.csv\ngradient_accumulation_steps: 2\n")
    return parse_recipe([str(path), *overrides])


def plan(recipe, longest=8192, has_deepspeed=False, **changes):
    """Plan the memory of a batch of `longest` tokens on six screenshots."""
    counts = {"longest_step": 1500, "most_image_tokens": 5000, **changes}
    tokens = TokenPlan(100, 200_000, 100_000, 50, longest, n_optimizer_steps=50, **counts)
    return estimate_memory(recipe, build_empty_model(recipe.model), tokens, 4, has_deepspeed)


def test_weight_memory_is_that_of_the_loaded_4_bit_model(checkpoint):
    from peft import get_peft_model

    recipe = build_recipe(checkpoint, "--dtype", "float32")
    memory = plan(recipe, longest=100)
    model = load_model(recipe.model, find_family(str(checkpoint)))
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / GB
    planned = sum(gb for name, gb in memory.items() if name.endswith(("nf4", "float32")))
    assert planned == pytest.approx(held, rel=0.05)  # bitsandbytes keeps its scales beside the parameters
    model = get_peft_model(model, build_lora_config(recipe.model, find_family(str(checkpoint))))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory["gradients"] == pytest.approx(4 * trained / GB)
    assert memory["optimiser state"] == pytest.approx(8 * trained / GB)


@pytest.fixture(scope="module")
def folder_8b(checkpoint, tmp_path_factory):
    """The 8B model's config, tokenizer and processor without weights."""
    folder = tmp_path_factory.mktemp("8b")
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    use_8b_shapes(folder / "config.json")
    return folder


def test_the_8b_model_is_planned_from_its_config_without_weights(folder_8b):
    in_bf16 = plan(build_recipe(folder_8b, "--load_in_4bit", "false"))
    weights = sum(gb for name, gb in in_bf16.items() if name.endswith("bfloat16"))
    assert weights == pytest.approx(2 * 8.77, rel=0.005)  # the model card counts 8.77 billion parameters
    recipe = build_recipe(folder_8b)
    assert sum(plan(recipe).values()) < 40 < sum(plan(recipe, longest=200_000).values())


PARAMETERS_8B, EMBEDDING_8B = 8_767_123_696, 151_936 * 4096  # the second is `lm_head`'s size too


def test_full_fine_tuning_is_planned_in_fp32_with_the_copies_of_autocast(folder_8b):
    """35 GB of weights, 35 of gradients, 17.5 of 8-bit state, 15 of copies, and what activations take."""
    full = ["--use_peft", "false", "--load_in_4bit", "false", "--optim", "paged_adamw_8bit"]
    memory = plan(build_recipe(folder_8b, *full))
    weights = sum(gb for name, gb in memory.items() if name.endswith("float32"))
    assert weights == pytest.approx(4 * PARAMETERS_8B / GB) == pytest.approx(memory["gradients"])
    assert not any(name.endswith("bfloat16") for name in memory) and memory["trained parameters"] == 0
    assert memory["optimiser state"] == pytest.approx(2 * PARAMETERS_8B / GB)
    copies = memory["16-bit copies by autocast"]
    assert copies == pytest.approx(2 * (PARAMETERS_8B - 2 * EMBEDDING_8B) / GB, rel=0.001)  # and no norms
    assert 110 < sum(memory.values()) < 125
    in_fp32 = plan(build_recipe(folder_8b, *full, "--bf16", "false"))
    assert in_fp32["16-bit copies by autocast"] == 0


def test_full_fine_tuning_under_deepspeed_is_planned_with_one_copy_in_fp32(folder_8b):
    """bf16 weights and gradients; a fp32 copy and the optimiser's state beside them."""
    full = ["--use_peft", "false", "--load_in_4bit", "false"]
    for optim, state in (("adamw_torch", 8), ("paged_adamw_8bit", 2)):
        recipe = build_recipe(folder_8b, *full, "--optim", optim)
        memory = plan(recipe, has_deepspeed=True)
        weights = sum(gb for name, gb in memory.items() if name.endswith("bfloat16"))
        assert weights == pytest.approx(2 * PARAMETERS_8B / GB) == pytest.approx(memory["gradients"])
        assert memory["optimiser state"] == pytest.approx((4 + state) * PARAMETERS_8B / GB)
        assert memory["16-bit copies by autocast"] == 0


# Layers of 8B's language part: q, k, v, o, gate, up and down, whose inputs and outputs LoRA's rank multiplies.
LORA_8B = 36 * sum(map(sum, [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), *[(4096, 12_288)] * 3]))


@pytest.mark.parametrize(("optim", "state"), [("adamw_torch", 8), ("paged_adamw_8bit", 2), ("adamw_8bit", 2)])
def test_optimiser_state_is_that_of_the_optimiser(folder_8b, optim, state):
    memory = plan(build_recipe(folder_8b, "--lora_r", "64", "--optim", optim))
    assert memory["trained parameters"] == memory["gradients"] == pytest.approx(4 * 64 * LORA_8B / GB)
    assert memory["optimiser state"] == pytest.approx(state * 64 * LORA_8B / GB)
    assert memory["16-bit copies by autocast"] == pytest.approx(2 * 64 * LORA_8B / GB)


def test_batches_of_an_optimiser_step_are_on_the_card_with_the_next_one(folder_8b):
    """20,000 patches of 3 x 2 x 16 x 16 numbers in each, in bf16 where the vision tower rounds to it first."""
    patches = 20_000 * 1536
    accumulated = ["--gradient_accumulation_steps", "4"]
    in_bf16, in_fp32 = (
        plan(build_recipe(folder_8b, *accumulated, *more))["pixels of fetched batches"]
        for more in ((), ("--dtype", "float32", "--bf16", "false"))
    )
    assert (in_bf16, in_fp32) == (pytest.approx(5 * patches * 2 / GB), pytest.approx(5 * patches * 4 / GB))
    kept = plan(build_recipe(folder_8b, *accumulated, "--vision_cache_gb", "40", "--screenshot_cache", "cache"))
    outputs = 5000 * 4 * 4096  # four of each token's
    assert kept["pixels of fetched batches"] == pytest.approx(5 * outputs * 2 / GB)


def test_activations_are_planned_by_what_is_trained_and_kept(folder_8b):
    """Numbers by hand: 36 layers of 4096, 32 heads of 128 over 8 of keys, 27 vision layers of 1152; two bytes each.

    Of a layer: norms in fp32; q, k, v and outputs with their sums; three numbers of the MLP; LoRA's seven inputs with
    masks of a byte, and what it makes of them at rank 16.
    """
    norms, attention = 4 * (2 * 4096 + 4096 + 1024), 2 * (2 * 4096 + 2 * 1024) + 4 * 32
    inputs, adapters = 3 * (6 * 4096 + 12_288), 2 * 7 * 16
    layer = norms + attention + 2 * 3 * 12_288 + inputs + adapters
    none = plan(build_recipe(folder_8b, "--gradient_checkpointing", "false"))
    assert none["activations"] == pytest.approx(8192 * 36 * layer / GB)
    inside = layer + 2 * 4 * 12_288
    kept = plan(build_recipe(folder_8b))
    assert kept["activations"] == pytest.approx(8192 * (36 * 2 * 4096 + inside) / GB)
    products = 2 * (4096 + 2 * 1024 + 4096 + 2 * 12_288 + 4096)
    selective = plan(build_recipe(folder_8b, "--gradient_checkpointing", "selective"))
    of_layer = 2 * 4096 + products + adapters + 2 * 4096 + 4 * 32  # input, products, attention
    assert selective["activations"] == pytest.approx(8192 * (36 * of_layer + inside) / GB)
    vision_layer = 20_000 * (8 * 1152 + 2 * 4304)
    assert kept["vision activations"] == pytest.approx(2 * vision_layer / GB)
    assert kept["final norm"] == pytest.approx(2 * 4 * 8192 * 4096 / GB)
    assert "attention mask" not in kept
    vision = plan(build_recipe(folder_8b, "--lora_parts", "[language, vision]"))
    expected = 2 * (2 * vision_layer + 27 * 20_000 * 1152) / GB
    assert vision["vision activations"] == pytest.approx(expected)
    eager = plan(build_recipe(folder_8b, "--attn_implementation", "eager"))
    assert eager["attention mask"] == pytest.approx(2 * 8192**2 / GB)


def test_validation_rollout_s_cache_counts_where_it_is_larger_than_a_training_step(folder_8b):
    validated = ["--val_split", "0.1", "--eval_strategy", "epoch"]
    assert plan(build_recipe(folder_8b, *validated))["validation rollout, beyond"] == 0
    short = plan(build_recipe(folder_8b, *validated, "--max_answer_tokens", "500"), longest=512)
    names = ("activations", "vision activations", "final norm")
    training = sum(short[name] for name in names)
    cache = 16 * (1500 + 500) * 2 * 36 * 1024 * 2 / GB
    assert short["validation rollout, beyond"] == pytest.approx(cache - training)
    assert plan(build_recipe(folder_8b), longest=512)["validation rollout, beyond"] == 0


def test_tokens_are_counted_with_and_without_packing(checkpoint):
    sizes = [StepSize(f"image{i // 4}", 100, 900, 100) for i in range(8)]
    packed = plan_tokens(build_recipe(checkpoint, "--tokens_per_batch", "1400"), sizes, n_ranks=1)
    assert (packed.n_tokens_alone, packed.n_tokens_packed, packed.n_sequences) == (8800, 2800, 2)
    assert (packed.longest, packed.longest_step) == (1400, 1100)
    assert (packed.most_image_tokens, packed.n_optimizer_steps) == (900, 1)
    padded = plan_tokens(build_recipe(checkpoint, "--packing", "none"), sizes, n_ranks=1)
    assert (padded.n_tokens_packed, padded.n_sequences, padded.longest) == (8800, 8, 8 * 1100)


@pytest.mark.parametrize(("n_steps", "n_ranks", "n_optimizer_steps"), [(8, 1, 2), (9, 1, 3), (8, 2, 1), (9, 2, 2)])
def test_optimiser_steps_without_packing_count_batches_processes_and_accumulation(
    checkpoint, n_steps, n_ranks, n_optimizer_steps
):
    """Batches of 2, two of them an optimiser step: 4 steps a process; what is left over is a step of its own."""
    recipe = build_recipe(checkpoint, "--packing", "none", "--per_device_train_batch_size", "2")
    sizes = [StepSize(f"image{i}", 100, 900, 100) for i in range(n_steps)]
    assert plan_tokens(recipe, sizes, n_ranks).n_optimizer_steps == n_optimizer_steps


@pytest.mark.parametrize(("n_ranks", "n_optimizer_steps"), [(1, 2), (2, 1)])
def test_optimiser_steps_with_packing_count_packs_processes_and_accumulation(checkpoint, n_ranks, n_optimizer_steps):
    """Four packs of two steps each, two of them an optimiser step."""
    sizes = [StepSize(f"image{i // 2}", 100, 900, 100) for i in range(8)]
    packed = plan_tokens(build_recipe(checkpoint, "--tokens_per_batch", "1200"), sizes, n_ranks)
    assert (packed.n_sequences, packed.n_optimizer_steps) == (4, n_optimizer_steps)


def test_auto_takes_the_fastest_form_that_leaves_room(folder_8b):
    """15 % of a card is left to what the estimate misses."""
    recipe = build_recipe(folder_8b, "--gradient_checkpointing", "auto")
    tokens = TokenPlan(100, 200_000, 100_000, 50, 4096, 1500, 2500, 50)
    forms = estimate_forms(recipe, build_empty_model(recipe.model), tokens, 4)
    assert list(forms) == [False, "selective", True] and sorted(forms.values(), reverse=True) == [*forms.values()]
    for form, gb in forms.items():
        assert choose_form(recipe, forms, gb / 0.85 + 0.01) == form
    assert choose_form(recipe, forms, 1) is True
    assert choose_form(recipe, forms, None) is False
    assert choose_form(build_recipe(folder_8b, "--gradient_checkpointing", "selective"), forms, 1) == "selective"
    text = describe_forms(forms, 40)
    sizes = f"false {forms[False]:.1f}, selective {forms['selective']:.1f}, true {forms[True]:.1f}"
    assert text == f"gradient_checkpointing (GB): {sizes}; with at most 85 % of 40 auto takes selective"
    assert describe_forms(forms, 1).endswith("none fits, auto takes true")


def test_auto_leaves_the_selective_form_out_under_zero3(folder_8b):
    recipe = build_recipe(folder_8b, "--gradient_checkpointing", "auto", "--load_in_4bit", "false")
    tokens = TokenPlan(100, 200_000, 100_000, 50, 4096, 1500, 2500, 50)
    model = build_empty_model(recipe.model)
    sharded = estimate_forms(recipe, model, tokens, 4, Launch("zero3", 8))
    assert list(sharded) == [False, True]
    whole = estimate_forms(recipe, model, tokens, 4, Launch("zero2", 8))
    assert all(gb < whole[form] for form, gb in sharded.items())


def test_the_plan_says_whether_it_fits_the_card(checkpoint):
    recipe = build_recipe(checkpoint)
    tokens = plan_tokens(recipe, [StepSize("image", 100, 900, 100)], n_ranks=1)
    assert "of 40: fits" in format_plan(recipe, tokens, {"weights": 6.0}, 40)
    assert "of 40: does not fit" in format_plan(recipe, tokens, {"weights": 60.0}, 40)
    full = build_recipe(checkpoint, "--use_peft", "false", "--load_in_4bit", "false")
    assert format_plan(full, tokens, {"weights": 60.0}, 40).endswith("or share the model out with ZeRO-3")
    on_cpu = format_plan(build_recipe(checkpoint, "--use_cpu", "true"), tokens, {"weights": 6.0}, 40)
    assert "longest batch" in on_cpu and "GPU" not in on_cpu


@pytest.mark.parametrize(("allowed", "kept"), [("1", "all are kept"), ("0.02", "50% are kept")])
def test_the_plan_says_what_kept_vision_outputs_take(folder_8b, tmp_path, capsys, allowed, kept):
    """1,222 tokens of a 1920x1080 screenshot, 4,096 numbers for each of four outputs, 2 bytes each: 40.04 MB."""
    csv_path = write_trajectories(tmp_path, build_task("t1", "Open the study of DOE001", n_images=1))
    write_screenshots(tmp_path, n_images=1, width=1920, height=1080)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {folder_8b}\ntrain_csv: {csv_path}\nscreenshot_cache: {tmp_path}/cache\n")
    print_plan([str(recipe), "--vision_cache_gb", allowed])
    assert f"0.04   GB on disk for 1 screenshots; of {allowed}: {kept}" in capsys.readouterr().out
    print_plan([str(recipe)])
    assert "vision outputs" not in capsys.readouterr().out


@pytest.mark.parametrize("card", [["--card_gb"], ["--card_gb", "forty"], ["--card_gb="]])
def test_card_that_is_no_number_is_refused(card):
    with pytest.raises(UserError, match="--card_gb: expected the card's memory in GB, e.g. --card_gb 40"):
        print_plan(["recipes/demo.yaml", *card])
