"""What training leaves out changes nothing: loss and gradients are those of separate steps computed in full."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packing import AGENT, assert_same, build_rows, compute_gradients
from test_training import _write_recipe
from trl.trainer.utils import add_fused_lm_head

from sft import run
from sft.batches.collator import IGNORED_LABEL, PackingCollator, PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.models.fused_lora import FusedLoraLinear, FusedLoraLinear4bit, fuse_lora
from sft.models.model import build_lora_config, find_family, load_model
from sft.models.processors import load_processor
from sft.models.scored_tokens import find_scored_tokens, find_text_model, prepare_last_layer, scored_alone
from sft.models.tree_attention import attend, choose_queries, count_pairs, find_blocks, use_tree_attention
from sft.recipe.settings import ModelSettings
from sft.trainer import weighted_log_probs

WEIGHTS = {"action": 4.0, "target": 2.0, "memory": 0.3}


def load_adapted(checkpoint, in_4bit=True):
    """The tiny model with LoRA on its language layers, `lora_B` random so that every matrix has a gradient."""
    settings = ModelSettings(str(checkpoint), dtype="float32", load_in_4bit=in_4bit, lora_dropout=0.0)
    family = find_family(str(checkpoint))
    torch.manual_seed(1)
    base = load_model(settings, family)
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    model = get_peft_model(base, build_lora_config(settings, family))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    use_tree_attention(model.config)
    return model


def build_encoder(checkpoint):
    return StepEncoder(load_processor(checkpoint, AGENT.min_pixels, AGENT.max_pixels), AGENT)


def compute_lean_gradients(model, batch, in_last_layer):
    """Loss, number of answer tokens and gradients as the trainer computes them."""
    model.zero_grad()
    inputs = dict(batch)
    if (end := inputs.pop("subtree_end", None)) is not None:
        inputs["attention_mask"] = end[:, None, None]
    scored = find_scored_tokens(inputs.pop("labels"), IGNORED_LABEL)
    with scored_alone(model, scored, in_last_layer):
        output = model(**inputs, shift_labels=scored.labels, fused_lm_head=True, use_cache=False)
    n_tokens = int(output.label_mask.sum())
    loss = -output.log_probs.sum() / n_tokens
    loss.backward()
    return loss.item(), n_tokens, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("in_4bit", [True, False], ids=["4 bit", "plain"])
def test_scored_tokens_and_fused_lora_train_as_separate_steps(checkpoint, screenshots, in_4bit):
    encoder, model = build_encoder(checkpoint), load_adapted(checkpoint, in_4bit)
    rows = build_rows(encoder, [screenshots[i] for i in (0, 1, 0, 2, 1, 0)])
    expected = compute_gradients(model, [PaddingCollator(encoder)([row]) for row in rows])
    fuse_lora(model)
    assert any(isinstance(m, FusedLoraLinear4bit if in_4bit else FusedLoraLinear) for m in model.modules())
    assert prepare_last_layer(model)
    batches = [collator(encoder)(rows) for collator in (PackingCollator, PaddingCollator)]
    for batch in batches:
        for in_last_layer in (True, False):
            assert_same(compute_lean_gradients(model, batch, in_last_layer), expected)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    computed = []
    last = find_text_model(model).layers[-1]
    last.post_attention_layernorm.register_forward_hook(lambda module, args, output: computed.append(output.shape))
    for batch in batches:
        assert_same(compute_lean_gradients(model, batch, True), expected)
        assert len(computed) == 2 and len(set(computed)) == 1, "once, and once more backwards"
        assert computed[0].numel() < batch["input_ids"].numel() * computed[0][-1] / 2
        computed.clear()


@pytest.mark.parametrize("collator", [PackingCollator, PaddingCollator])
def test_outputs_of_scored_tokens_are_those_of_all_tokens_at_their_places(
    tiny_checkpoints,
    screenshots,
    collator,
):
    checkpoint = tiny_checkpoints["qwen3_vl"]
    encoder, model = build_encoder(checkpoint), load_adapted(checkpoint)
    batch = collator(encoder, WEIGHTS)(build_rows(encoder, [screenshots[i] for i in (0, 1, 1)]))
    labels, weights = batch.pop("labels"), batch.pop("loss_weights")[:, 1:]
    if (end := batch.pop("subtree_end", None)) is not None:
        batch["attention_mask"] = end[:, None, None]
    with torch.no_grad():
        with weighted_log_probs(model, weights):
            whole = model(**batch, labels=labels, fused_lm_head=True)
        scored = find_scored_tokens(labels, IGNORED_LABEL)
        prepare_last_layer(model)
        with scored_alone(model, scored, True), weighted_log_probs(model, scored.take(weights)):
            alone = model(**batch, shift_labels=scored.labels, fused_lm_head=True)
        again = model(**batch, labels=labels, fused_lm_head=True)
    assert int(alone.label_mask.sum()) == int((labels != IGNORED_LABEL).sum())
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(alone, name), scored.take(getattr(whole, name)), rtol=1e-5, atol=1e-6)
    assert len(set(weights.flatten().tolist())) == 4
    assert torch.equal(again.entropy, whole.entropy), "outside, the layer is the stock one"


@pytest.fixture
def train(tiny_checkpoints, tmp_path, monkeypatch, trainers):
    """Train three steps, validated at the end; with `in_full`, as without this file's subject. Return the trainer."""
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    common = ["--max_steps", "3", "--eval_steps", "3", "--save_strategy", "no", "--load_best_model_at_end", "false"]

    def train(*arguments, in_full):
        with monkeypatch.context() as patch:
            if in_full:
                patch.setattr("sft.trainer.fuse_lora", lambda model: None)
                patch.setattr("sft.trainer.prepare_last_layer", lambda model: False)
                patch.setattr("sft.trainer.find_scored_tokens", lambda *_: None)
            run.main([str(recipe), *common, "--output_dir", str(tmp_path / f"out{len(trainers)}"), *arguments])
        return trainers[-1]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["shared_screenshot", "none"])
@pytest.mark.parametrize("weights", ["{}", "{action: 4.0, memory: 0.3}"])
def test_logged_losses_and_metrics_of_training_and_validation_are_the_same(train, packing, weights):
    arguments = ["--packing", packing, "--loss_weights", weights, "--lora_dropout", "0"]
    arguments += ["--per_device_train_batch_size", "3" if packing == "none" else "1"]
    full, lean = (train(*arguments, in_full=in_full).state.log_history for in_full in (True, False))
    names = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
    names += tuple(f"eval_{name}" for name in names if name != "grad_norm")
    for name in names:
        expected, found = ([line[name] for line in history if name in line] for history in (full, lean))
        assert expected and found == pytest.approx(expected, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "is_alone"), [("--label_smoothing_factor=0.1", False), ("--loss_type=dft", True)], ids=str
)
def test_smoothed_labels_take_the_logits_of_all_tokens(train, setting, is_alone):
    full, lean = (train(*setting.split("="), "--lora_dropout", "0", in_full=full) for full in (True, False))
    assert lean.scores_alone == lean.cuts_last_layer == is_alone
    losses = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in (full, lean)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_last_layer_that_carries_a_state_or_meets_deepstack_is_computed_in_full(tmp_path, tiny_checkpoints):
    """Qwen3.5's tiny model attends in its second layer, Qwen3-VL's adds deepstack's features behind its first."""
    for family, n_layers in (("qwen3_5", 1), ("qwen3_vl", 1)):
        model = load_adapted(tiny_checkpoints[family])
        layers = find_text_model(model).layers
        del layers[n_layers:]
        assert not prepare_last_layer(model)
    model = load_adapted(tiny_checkpoints["qwen3_vl"])
    model.config.get_text_config()._attn_implementation = "eager"
    assert not prepare_last_layer(model)


def test_token_before_each_label_is_scored_by_it():
    """Three labels in the first row, one in the second, which is filled up."""
    labels = torch.tensor([[-100, -100, 5, 6, -100, 7], [-100, -100, -100, 8, -100, -100]])
    scored = find_scored_tokens(labels, -100)
    assert scored.places.tolist() == [[1, 2, 4], [2, 0, 1]]
    assert scored.labels.tolist() == [[5, 6, 7], [8, -100, -100]]
    assert scored.take(torch.arange(12).view(2, 6)).tolist() == [[1, 2, 4], [8, 6, 7]]
    assert scored.take(torch.arange(6)[None]).tolist() == [[1, 2, 4], [2, 0, 1]]
    assert find_scored_tokens(torch.full((2, 3), -100), -100) is None


# prefix 0 1, first branch 2-5 which goes on in 6 or in 7 8, second branch 9-11; another root 12-14
TREE = [12, 12, 9, 9, 9, 9, 7, 9, 9, 12, 12, 12, 15, 15, 15]
PLACES = [3, 4, 6, 8, 10, 11, 13]


def test_blocks_of_chosen_queries_by_hand():
    def read(blocks):
        return [(block.queries, block.keys) for block in blocks]

    own, before, above = choose_queries(*find_blocks(TREE), PLACES)
    assert read(own) == [
        (((0, 2),), ((3, 5),)),
        (((2, 3),), ((6, 7),)),
        (((3, 4),), ((8, 9),)),
        (((4, 6),), ((10, 12),)),
        (((6, 7),), ((13, 14),)),
    ]
    assert read(before) == [
        (((0, 2),), ((0, 3),)),
        (((2, 3),), ((0, 6),)),
        (((3, 4),), ((7, 8),)),
        (((4, 6),), ((9, 10),)),
        (((6, 7),), ((12, 13),)),
    ]
    assert read(above) == [(((3, 4),), ((0, 2), (2, 6))), (((4, 6),), ((0, 2),))]
    pairs = 4 + 1 + 1 + 4 + 1 + (6 + 6 + 1 + 2 + 1) + (6 + 4)
    assert count_pairs(torch.tensor(TREE), torch.tensor([PLACES])) == pairs


@pytest.mark.parametrize("places", [PLACES, [14], [0], list(range(15)), list(range(1, 15, 2))], ids=str)
def test_chosen_queries_attend_as_they_do_among_all(places):
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, 15, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    end, places = torch.tensor(TREE)[None, None, None], torch.tensor([places])
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    weights = torch.randn(1, places.numel(), 4, 8, dtype=torch.float64)
    whole, _ = attend(module, *inputs, end)
    found, _ = attend(module, inputs[0][:, :, places[0]], *inputs[1:], end, places=places)
    torch.testing.assert_close(found, whole[:, places[0]])
    expected = torch.autograd.grad((whole[:, places[0]] * weights).sum(), inputs)
    for gradient, other in zip(torch.autograd.grad((found * weights).sum(), inputs), expected):
        torch.testing.assert_close(gradient, other)
    masked, _ = attend(module, inputs[0][:, :, places[0]], *inputs[1:], end, dropout=1e-12, places=places)
    torch.testing.assert_close(masked, found)


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 24), torch.nn.Linear(24, 8, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


def build_adapted_layers(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["first", "second"], init_lora_weights=False, **settings)
    return get_peft_model(Layers().to(dtype), config)


def run_layers(model, dtype=torch.float32):
    torch.manual_seed(1)
    inputs = torch.randn(2, 5, 16, dtype=dtype, requires_grad=True)
    model.zero_grad()
    torch.manual_seed(2)
    output = model(inputs)
    output.float().square().sum().backward()
    return [output.detach(), inputs.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_lora_computes_and_trains_as_peft_does(dropout):
    model = build_adapted_layers(lora_dropout=dropout)
    names, expected = list(model.state_dict()), run_layers(model)
    fuse_lora(model)
    assert list(model.state_dict()) == names
    assert type(model.base_model.model.first) is FusedLoraLinear
    for found, other in zip(run_layers(model), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_lora_under_autocast_is_as_near_to_the_exact_sum_as_peft_s(dropout):
    model = build_adapted_layers(lora_dropout=dropout)
    exact = run_layers(model)
    with torch.autocast("cpu", torch.bfloat16):
        stock = run_layers(model)
        fuse_lora(model)
        fused = run_layers(model)
    assert [t.dtype for t in fused] == [t.dtype for t in stock] and fused[0].dtype == torch.bfloat16
    for side in (stock, fused):
        assert max((t.float() - e).norm() / e.norm() for t, e in zip(side, exact)) < 2**-5


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.disable_adapter_layers(),
        lambda model: model.merge_adapter(),
        lambda model: model.add_adapter("other", model.peft_config["default"]),
        lambda model: model.base_model.set_adapter([]),
    ],
    ids=["off", "merged", "second one, not active", "none active"],
)
def test_what_is_not_one_plain_sum_is_left_to_peft(change):
    stock, fused = build_adapted_layers(), build_adapted_layers()
    fuse_lora(fused)
    for model in (stock, fused):
        change(model)
    inputs = torch.randn(3, 16)
    torch.testing.assert_close(fused(inputs), stock(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_variants_and_biases_are_left_to_peft(settings):
    model = build_adapted_layers(**settings)
    expected = run_layers(model)
    fuse_lora(model)
    for found, other in zip(run_layers(model), expected, strict=True):
        assert torch.equal(found, other)


def test_base_of_another_number_format_is_left_to_peft():
    """A rollout of a bf16 base with its fp32 adapter, without autocast: the same bits."""
    model = build_adapted_layers(torch.bfloat16)
    assert model.base_model.model.first.lora_A["default"].weight.dtype == torch.float32
    expected = run_layers(model, torch.bfloat16)
    fuse_lora(model)
    for found, other in zip(run_layers(model, torch.bfloat16), expected, strict=True):
        assert torch.equal(found, other)
