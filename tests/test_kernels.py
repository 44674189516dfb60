"""The kernels a model is computed with change how fast it is and nothing else."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trajectory_samples import TINY_AGENT
from transformers import AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeVisionModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

from sft.batches.collator import PackingCollator, PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.models.kernels import NAME, PatchEmbedding, attend_by_length, choose_kernels
from sft.models.model import find_family, load_model
from sft.models.processors import load_processor
from sft.recipe.recipe import parse_recipe
from sft.recipe.settings import ModelSettings

QWEN = ("qwen3_vl", "qwen2_5_vl")
GRIDS = torch.tensor([[1, 12, 20], [1, 20, 12], [1, 12, 20], [1, 28, 18]])  # patches of four screenshots, two alike


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func._overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    @property
    def attention(self):
        return self.names["_scaled_dot_product_flash_attention_for_cpu"] + self.names["scaled_dot_product_attention"]


@pytest.fixture(params=QWEN)
def pair(request, tiny_checkpoints):
    """A model as transformers loads it, and the same with our kernels."""
    folder = tiny_checkpoints[request.param]
    models = [AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32) for _ in range(2)]
    choose_kernels(models[1])
    return models


def build_pixels(model, grids=GRIDS):
    torch.manual_seed(0)
    return torch.randn(int(grids.prod(dim=1).sum()), model.model.visual.patch_embed.proj.weight[0].numel())


def see(model, pixels, grids=GRIDS):
    return model.model.visual(pixels, grid_thw=grids).pooler_output


def test_every_model_is_loaded_without_cudnn_attention(checkpoint):
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        load_model(ModelSettings(str(checkpoint), dtype="float32"), find_family(str(checkpoint)))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)


def test_patches_are_embedded_by_a_product_as_by_the_convolution(pair):
    """Outputs and the gradients of weight and bias."""
    stock, ours = (model.model.visual.patch_embed for model in pair)
    assert isinstance(ours.proj, PatchEmbedding) and isinstance(ours.proj, torch.nn.Conv3d)
    pixels = build_pixels(pair[0])
    with Calls() as calls:
        found = ours(pixels)
    assert not any("conv" in name for name in calls.names)
    expected = stock(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ahead = torch.randn_like(found) / len(found)
    gradients = [torch.autograd.grad(out, [*m.parameters()], ahead) for out, m in ((found, ours), (expected, stock))]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_vision_tower_sees_the_same_in_few_calls_of_attention(pair):
    """Windows of 4 x 4 tokens: screenshots of 6 x 10, 10 x 6 and 14 x 9 tokens have 6, 6, 6 and 12 of at most 4 sizes.

    Qwen2.5-VL's first layer attends within windows, the second within screenshots; Qwen3-VL's two within screenshots.
    """
    stock, ours = pair
    pixels = build_pixels(stock)
    counts = []
    for model in pair:
        with torch.no_grad(), Calls() as calls:
            see(model, pixels)
        counts.append(calls.attention)
    n_windows, whole = 6 + 6 + 6 + 12, [60, 60, 60, 126]
    areas = {4 * 4, 4 * 2, 2 * 2, 4 * 1, 2 * 1}  # tokens; the third is as large as the fourth
    is_windowed = stock.config.model_type == "qwen2_5_vl"
    assert counts == ([n_windows + len(whole), len(areas) + len(set(whole))] if is_windowed else [2 * len(whole), 4])
    torch.testing.assert_close(see(ours, pixels), see(stock, pixels), rtol=0, atol=1e-5)


def test_84_windows_of_a_1920x1080_screenshot_take_four_calls(tiny_checkpoints):
    """26 x 47 tokens: 7 x 12 windows, of 4 x 4, 4 x 3, 2 x 4 and 2 x 3 tokens; then a layer that attends to all."""
    folder = str(tiny_checkpoints["qwen2_5_vl"])
    model = load_model(ModelSettings(folder, dtype="float32"), find_family(folder))
    grids = torch.tensor([[1, 52, 94]])
    with torch.no_grad(), Calls() as calls:
        see(model, build_pixels(model, grids), grids)
    assert calls.attention == 4 + 1


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_trained_vision_tower_has_the_same_gradients(pair, is_checkpointed):
    gradients = []
    for model in pair:
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        see(model, build_pixels(model)).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.model.visual.named_parameters() if p.grad is not None})
    stock, ours = gradients
    assert stock.keys() == ours.keys() and {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= stock.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, stock[name], rtol=1e-4, atol=1e-6, msg=name)


def test_attention_by_length_equals_attention_one_by_one():
    """Lengths out of order, in double precision, with gradients."""
    torch.manual_seed(0)
    lengths = [5, 2, 5, 3, 2, 2, 7]
    borders = torch.tensor([0, *lengths]).cumsum(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 1
    parts = [torch.randn(1, 2, sum(lengths), 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    with Calls() as calls:
        found = attend_by_length(module, *parts, None, cu_seq_lens_q=borders, is_causal=False, scaling=0.3)[0]
    assert calls.attention == 4
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = [attend(*split, scale=0.3) for split in zip(*(part.split(lengths, dim=2) for part in parts))]
    expected = torch.cat(expected, dim=2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ahead = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, parts, ahead), torch.autograd.grad(expected, parts, ahead)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


SMALL = {"hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 32, "depth": 2, "num_heads": 2}
TOWERS = [
    (Qwen2VisionTransformerPretrainedModel, {"embed_dim": 64, "hidden_size": 32, "depth": 2, "num_heads": 2}),
    (Qwen3VLMoeVisionModel, {**SMALL, "deepstack_visual_indexes": [1]}),
    (Qwen3_5VisionModel, SMALL),
    (Qwen3_5MoeVisionModel, SMALL),
]


@pytest.mark.parametrize(("tower", "size"), TOWERS)
def test_towers_of_other_qwen_families_get_the_same_kernels(tower, size):
    """They are found by what they do, not by the name of their class."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.visual = tower._from_config(tower.config_class(**size), attn_implementation="sdpa").eval()
    pixels = torch.randn(int(GRIDS.prod(dim=1).sum()), model.visual.patch_embed.proj.weight[0].numel())
    with torch.no_grad():
        expected = model.visual(pixels, grid_thw=GRIDS).pooler_output
        choose_kernels(model)
        with Calls() as calls:
            found = model.visual(pixels, grid_thw=GRIDS).pooler_output
    assert calls.attention == 2 * 2 and not any("conv" in name for name in calls.names)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA's fast kernels want keys repeated under a mask")
@pytest.mark.parametrize("n_queries", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_keys_are_not_repeated_under_a_mask(monkeypatch, dtype, n_queries):
    """The same up to rounding; of several queries, the same bits."""
    torch.manual_seed(0)
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3
    shapes = [(2, 6, n_queries, 16), (2, 2, 9, 16), (2, 2, 9, 16)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    mask = torch.rand(2, 1, n_queries, 9) > 0.3
    mask[..., 0] = True

    def attend():
        output, _ = sdpa_attention_forward(layer, *inputs, mask)
        return output, torch.autograd.grad(output.float().square().sum(), inputs)

    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "0")
    stock, stock_gradients = attend()
    choose_kernels(layer)
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", None)
    monkeypatch.setattr("transformers.integrations.sdpa_attention.pack_gqa", None)
    with Calls() as calls:
        ours, gradients = attend()
    assert calls.attention == 1
    assert torch.equal(ours, stock) or n_queries == 1
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for found, expected in zip([ours, *gradients], [stock, *stock_gradients]):
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_saved_model_has_the_names_and_config_of_a_stock_one(pair, tmp_path):
    stock, ours = pair
    assert stock.state_dict().keys() == ours.state_dict().keys()
    ours.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    pixels = build_pixels(stock)
    assert torch.equal(see(loaded, pixels), see(stock, pixels))


def test_eager_attention_of_a_vision_tower_is_left_as_it_is(tiny_checkpoints):
    folder = str(tiny_checkpoints["qwen2_5_vl"])
    model = load_model(ModelSettings(folder, dtype="float32", attn_implementation="eager"), find_family(folder))
    assert model.model.visual.config._attn_implementation == "eager"


@pytest.mark.parametrize("is_full", [False, True], ids=["frozen tower in bf16", "trained tower under autocast"])
def test_pixels_in_bf16_give_the_same_bits_where_the_tower_computes_in_bf16(checkpoint, tasks, tasks_csv, is_full):
    """Full fine-tuning holds its weights in fp32 and computes under autocast."""
    settings = ModelSettings(str(checkpoint), dtype="bfloat16", load_in_4bit=False)
    model = load_model(settings, find_family(str(checkpoint))).eval()
    if is_full:
        model.float()
    encoder = StepEncoder(load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)
    rows = build_step_rows(tasks, str(tasks_csv), encoder, show_progress=False).dataset
    for kind in (PaddingCollator, PackingCollator):
        logits = []
        for dtype in (torch.float32, torch.bfloat16):
            batch = kind(encoder, pixel_dtype=dtype)([rows[0]])
            assert batch["pixel_values"].dtype == dtype
            batch.pop("subtree_end", None)  # a single step: plainly causal
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_full):
                logits.append(model(**batch).logits)
        assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("overrides", "is_in_bf16"),
    [
        ((), True),
        (("--bf16", "true"), True),
        (("--bf16", "false"), False),
        (("--bf16", "false", "--fp16", "true", "--use_cpu", "false"), False),
        (("--dtype", "float32"), False),
    ],
)
def test_pixels_are_in_bf16_where_weights_and_arithmetic_are(recipe, overrides, is_in_bf16):
    path = recipe.with_name("without.yaml")
    path.write_text(recipe.read_text().replace("bf16: false\n", ""))
    assert parse_recipe([str(path), "--dtype", "bfloat16", *overrides]).computes_in_bf16 == is_in_bf16
