"""Packed steps train exactly as separate ones: same loss, same gradients, and no branch sees another."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, build_tiny
from datasets import Dataset
from transformers import AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import SFTConfig

from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.batches.collator import (
    IGNORED_LABEL,
    PackingCollator,
    PaddingCollator,
    build_dense_mask,
    check_answer_only_labels,
)
from sft.batches.encoder import StepEncoder
from sft.batches.packing import TokenSequence, find_shared_parts, pack_sequences
from sft.data.screenshots import hash_screenshot
from sft.memory import Memory
from sft.models import tree_attention
from sft.models.images import mrope_positions
from sft.models.model import build_lora_config, find_family, load_model
from sft.models.processors import load_processor
from sft.models.tree_attention import attend, count_pairs, find_blocks, find_nodes, use_tree_attention
from sft.recipe.settings import ModelSettings
from sft.trainer import TrajectoryTrainer

TOLERANCE = 1e-5
AGENT = AgentConfig(min_pixels=16_384, max_pixels=65_536)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    texts = ["Open the study of DOE^J and measure the lesion", '{"action":"CLICK","target":"Layout"}']
    return build_tiny(tmp_path_factory.mktemp(request.param), texts, request.param)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return StepEncoder(load_processor(checkpoint, AGENT.min_pixels, AGENT.max_pixels), AGENT)


@pytest.fixture
def model(checkpoint):
    return build_lora_model(checkpoint)


def build_lora_model(checkpoint):
    """Load the tiny model with LoRA on its language layers, `lora_B` random so that every matrix has a gradient."""
    from peft import get_peft_model

    settings = ModelSettings(str(checkpoint), dtype="float32", load_in_4bit=False, lora_dropout=0.0)
    family = find_family(str(checkpoint))
    torch.manual_seed(1)
    model = get_peft_model(load_model(settings, family), build_lora_config(settings, family))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    use_tree_attention(model.config)
    return model


def build_rows(encoder: StepEncoder, images: list[Path]) -> list[dict]:
    """One row an image: goals and memories of different lengths, every second goal the same."""
    rows = []
    for i, image in enumerate(images):
        memory = Memory({"last_target": "Layout " * (i % 4)}, {"completed_subtasks": ["open"] * i})
        prompt = encoder.build_prompt(f"Measure lesion {i // 2}", memory, image)
        answer = Answer(Action("TEXT", f"Name {i}", {"text": "DOE^J" * (1 + i % 3)}), {"last_action": "TEXT"}, {})
        rows.append(
            {
                "image": str(image),
                "image_sha256": hash_screenshot(image),
                "prompt": prompt.text,
                "completion": format_answer(answer, AGENT),
            }
        )
    return rows


def compute_loss(model, batch):
    """Sum of the answer tokens' negative log-likelihoods, and their number."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    if "subtree_end" in inputs:
        inputs["attention_mask"] = inputs.pop("subtree_end")[:, None, None]
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, int((targets != IGNORED_LABEL).sum())


def compute_gradients(model, batches):
    """Accumulated token-normalised loss and gradients over several batches."""
    model.zero_grad()
    losses = [compute_loss(model, batch) for batch in batches]
    n_tokens = sum(n for _, n in losses)
    total = sum(loss for loss, _ in losses) / n_tokens
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total.item(), n_tokens, gradients


def assert_same(found, expected):
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        difference = (found[2][name] - gradient).norm() / gradient.norm()
        assert gradient.norm() > 0 and difference <= TOLERANCE, name


@pytest.mark.parametrize("n_branches", [1, 2, 5, 8])
def test_packed_branches_on_one_screenshot_train_as_separate_steps(model, encoder, screenshots, n_branches):
    rows = build_rows(encoder, screenshots[:1] * n_branches)
    packed = PackingCollator(encoder)(rows)
    alone = [PaddingCollator(encoder)([row]) for row in rows]
    n_alone = sum(batch["input_ids"].numel() for batch in alone)
    assert len(packed["pixel_values"]) == len(alone[0]["pixel_values"])
    assert packed["input_ids"].numel() < n_alone or n_branches == 1
    assert_same(compute_gradients(model, [packed]), compute_gradients(model, alone))


@pytest.mark.slow
def test_packed_steps_on_different_screenshots_train_as_separate_steps(model, encoder, screenshots):
    rows = build_rows(encoder, [screenshots[i] for i in (0, 1, 0, 2, 1, 0)])
    packed, alone = PackingCollator(encoder)(rows), [PaddingCollator(encoder)([row]) for row in rows]
    assert len(packed["pixel_values"]) == sum(len(alone[i]["pixel_values"]) for i in (0, 1, 3))
    assert_same(compute_gradients(model, [packed]), compute_gradients(model, alone))


def test_padded_batch_trains_as_separate_steps(model, encoder, screenshots):
    rows = build_rows(encoder, [screenshots[i] for i in (0, 1, 2)])
    padded = [PaddingCollator(encoder)(rows)]
    assert_same(
        compute_gradients(model, padded), compute_gradients(model, [PaddingCollator(encoder)([r]) for r in rows])
    )


class ChosenBatches(list):
    """Batch sampler of these batches, in every epoch."""

    def set_epoch(self, epoch):
        pass


def take_step(checkpoint, encoder, rows, batches, folder):
    """Have the trainer take one step that is as long as the gradient; return the logged loss and that gradient."""
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(batches),
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        router_aux_loss_coef=0.0,
        use_cpu=True,
        bf16=False,
        max_length=None,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = TrajectoryTrainer(
        model=build_lora_model(checkpoint),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=encoder.processor,
        data_collator=PackingCollator(encoder),
        pack_sampler=ChosenBatches(batches),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    return trainer.state.log_history[0]["loss"], {n: p - after[n].detach() for n, p in before.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "batches",
    [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 1, 3], [2]]],
    ids=["1x4", "2x2", "4x1", "3+1"],
)
def test_one_step_is_along_the_mean_over_tokens_however_they_are_accumulated(
    checkpoint, model, encoder, screenshots, tmp_path, batches
):
    """1x4, 2x2, 4x1 and two unequal batches: answers of different lengths, so that a mean over batches is another."""
    rows = build_rows(encoder, [screenshots[i] for i in (0, 0, 1, 0)])
    loss, _, gradients = compute_gradients(model, [PaddingCollator(encoder)([row]) for row in rows])
    found, step = take_step(checkpoint, encoder, rows, batches, tmp_path)
    assert found == pytest.approx(loss, rel=1e-4)
    assert step.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (step[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_eager_attention_gives_the_same_from_a_dense_mask(checkpoint, encoder, screenshots):
    rows = build_rows(encoder, [screenshots[i] for i in (0, 1, 0, 0)])
    batch = PackingCollator(encoder)(rows)
    end = batch.pop("subtree_end")
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    masks = {"sdpa": end[:, None, None], "eager": build_dense_mask(end, torch.float32)}
    logits = {}
    for implementation, mask in masks.items():
        settings = ModelSettings(str(checkpoint), "main", "float32", implementation, load_in_4bit=False)
        model = load_model(settings, find_family(str(checkpoint)))
        if implementation == "sdpa":
            use_tree_attention(model.config)
        logits[implementation] = model(**inputs, attention_mask=mask, use_cache=False).logits
    largest = logits["sdpa"].abs().max().item()
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=1e-4, atol=1e-5 * max(1, largest))


def test_changing_one_branch_leaves_the_logits_of_the_others_bit_identical(model, encoder, screenshots):
    rows = build_rows(encoder, screenshots[:1] * 3)
    changed = [dict(row) for row in rows]
    changed[1]["completion"] = changed[1]["completion"].replace("Name 1", "Name 7")
    model.eval()

    def answer_logits(rows_):
        batch = PackingCollator(encoder)(rows_)
        end = batch.pop("subtree_end")
        labels = batch.pop("labels")[0]
        logits = model(**batch, attention_mask=end[:, None, None], use_cache=False).logits[0]
        return batch["input_ids"][0], labels, logits

    ids, _, before = answer_logits(rows)
    ids_after, _, after = answer_logits(changed)
    assert ids.shape == ids_after.shape, "the change was to keep the number of tokens"
    differs = (before != after).any(dim=-1)
    touched = ids != ids_after
    first, last = int(touched.nonzero().min()), int(differs.nonzero().max())
    assert touched.any() and differs.any()
    assert not differs[:first].any()
    branch = PackingCollator(encoder)(rows)["subtree_end"][0]
    assert last < int(branch[first]), "a later branch saw the change"


@pytest.mark.parametrize("checkpoint", [family for family in FAMILIES if family != "llama4"], indirect=True)
def test_positions_of_a_packed_sequence_are_those_the_model_gives_each_step_alone(checkpoint, encoder, screenshots):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    for row in build_rows(encoder, screenshots):
        batch = PaddingCollator(encoder)([row])
        expected, _ = model.model.get_rope_index(
            batch["input_ids"], batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"]
        )
        merge = encoder.processor.image_processor.merge_size
        found = mrope_positions(batch["mm_token_type_ids"][0].numpy(), batch["image_grid_thw"][0].tolist(), merge)
        assert found.tolist() == expected[:, 0].tolist()


def test_labels_are_the_answers_and_their_ends_only(encoder, screenshots):
    rows = build_rows(encoder, [screenshots[i] for i in (0, 0, 1)])
    assert check_answer_only_labels(encoder, rows) == rows[0]["completion"] + encoder.tokenizer.eos_token


def sequence(ids, n_prompt, image_key=0):
    """A text-only sequence of hand-written ids."""
    labels = [IGNORED_LABEL] * n_prompt + ids[n_prompt:]
    positions = np.tile(np.arange(len(ids)), (3, 1))
    types, weights = np.zeros(len(ids), int), np.ones(len(ids))
    return TokenSequence(np.array(ids), np.array(labels), types, weights, positions, n_prompt, image_key)


def test_a_shared_prefix_is_held_once_and_branches_follow_it():
    packed = pack_sequences([sequence([1, 2, 3, 8, 50], 4), sequence([1, 2, 3, 7, 60, 61], 4)])
    assert packed.ids.tolist() == [1, 2, 3, 7, 60, 61, 8, 50]
    assert packed.labels.tolist() == [-100, -100, -100, -100, 60, 61, -100, 50]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    assert packed.subtree_end.tolist() == [8, 8, 8, 6, 6, 6, 8, 8]


def test_equal_prompts_share_all_but_their_last_token_so_that_no_branch_begins_with_a_label():
    packed = pack_sequences([sequence([1, 2, 3, 50], 3), sequence([1, 2, 3, 50], 3)])
    assert packed.ids.tolist() == [1, 2, 3, 50, 3, 50]
    assert packed.labels.tolist() == [-100, -100, -100, 50, -100, 50]


def test_mask_lets_a_token_see_its_ancestors_and_itself_only():
    packed = pack_sequences([sequence([1, 2, 3], 2), sequence([1, 4, 5], 2)])
    mask = build_dense_mask(torch.from_numpy(packed.subtree_end)[None], torch.float32)[0, 0]
    assert packed.ids.tolist() == [1, 2, 3, 4, 5]
    assert (mask == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_shared_parts_are_those_that_two_prompts_begin_with():
    """By hand: all begin with 1 2; two go on with 3 4; equal prompts share all but their last token."""
    prompts = [[1, 2, 3, 4, 5], [1, 2, 9], [1, 2, 3, 4, 6, 7], [1, 2, 9]]
    parts = find_shared_parts([np.array(ids) for ids in prompts], itertools.count())
    assert [[n for _, n in part] for part in parts] == [[2, 2], [2], [2, 2], [2]]
    assert len({part for each in parts for part in each}) == 2
    assert find_shared_parts([np.array(ids) for ids in ([1, 2], [3, 4])], itertools.count()) == [(), ()]
    assert find_shared_parts([np.array([1, 2])], itertools.count()) == [()]


def test_shared_parts_count_what_a_packed_sequence_of_any_of_the_prompts_holds():
    rng = random.Random(0)
    prompts = [[*rng.choices([1, 2], k=rng.randint(1, 9)), 0] for _ in range(60)]  # 0 ends a prompt and is in no other
    parts = find_shared_parts([np.array(ids) for ids in prompts], itertools.count())
    for _ in range(200):
        chosen = rng.sample(range(60), rng.randint(1, 20))
        packed = pack_sequences([sequence([*prompts[i], 7, 7], len(prompts[i])) for i in chosen])
        n_own = sum(len(prompts[i]) + 2 - sum(n for _, n in parts[i]) for i in chosen)
        assert len(packed.ids) == n_own + sum(dict(part for i in chosen for part in parts[i]).values())


TREE = ([1, 2, 3, 4, 5, 6, 9], [1, 2, 3, 4, 7, 9, 9, 9, 9], [1, 2, 6, 9], [7, 8, 9, 9, 9])


def test_path_to_a_node_is_what_its_last_token_may_see():
    end = pack_sequences([sequence(i, len(i) - 1) for i in TREE]).subtree_end.tolist()
    nodes = find_nodes(end)
    tokens = torch.arange(len(end)).split([node.size for node in nodes])
    for node in nodes:
        last = int(tokens[node.path[-1]][-1])
        assert torch.cat([tokens[i] for i in node.path]).tolist() == [k for k in range(last + 1) if last < end[k]]
    assert [node.size for node in nodes] == [2, 2, 3, 5, 2, 5]


def test_chains_and_what_is_above_their_forks_are_all_that_a_token_may_see():
    """By hand: two screenshots behind a system message, the first with two branches; another tree beside them."""
    end = pack_sequences([sequence(i, len(i) - 1) for i in TREE]).subtree_end.tolist()
    chains, above = find_blocks(end)
    assert [block.queries for block in chains] == [((0, 7),), ((7, 12),), ((12, 14),), ((14, 19),)]
    assert [block.keys for block in chains] == [block.queries for block in chains]
    assert [(block.queries, block.keys) for block in above] == [
        (((7, 12),), ((0, 2), (2, 4))),
        (((12, 14),), ((0, 2),)),
    ]


def test_chains_on_one_fork_are_one_block_wherever_they_stand():
    end = pack_sequences([sequence(i, len(i)) for i in ([1, 2, 3], [1, 4, 5], [1, 4, 6], [1, 7])]).subtree_end
    _, above = find_blocks(end.tolist())
    assert [(block.queries, block.keys) for block in above] == [
        (((3, 5), (6, 7)), ((0, 1),)),
        (((5, 6),), ((0, 1), (3, 4))),
    ]


def grow_tree(rng: random.Random, depth: int) -> torch.Tensor:
    """`subtree_end` (1, T) of one random tree or two side by side, up to `depth` forks deep; not as packing sorts."""
    end: list[int] = []

    def grow(left: int) -> None:
        start, n_own = len(end), rng.randint(1, 9)
        end.extend([0] * n_own)
        for _ in range(rng.choice([2, 3] if left == depth else [0, 2, 3]) if left else 0):
            grow(left - 1)
        end[start : start + n_own] = [len(end)] * n_own

    for _ in range(rng.choice([1, 1, 2])):
        grow(depth)
    return torch.tensor(end)[None]


def attend_both_ways(end, inputs, ahead, scaling=None):
    """Outputs and gradients of query, key and value: ours in their type, and under a dense mask in fp64."""
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, inputs[0].shape[1] // inputs[1].shape[1]
    results = []
    for function, dtype, mask in (
        (attend, inputs[0].dtype, end[:, None, None]),
        (sdpa_attention_forward, torch.float64, build_dense_mask(end, torch.float64)),
    ):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        output = function(module, *leaves, mask, scaling=scaling)[0]
        results.append([output, *torch.autograd.grad(output, leaves, ahead.to(dtype))])
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_attention_in_two_calls_equals_attention_under_the_dense_mask(depth, dtype):
    """Random trees and forests, heads that share keys and heads that do not, odd lengths."""
    rng = random.Random(depth)
    torch.manual_seed(depth)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for n_heads, n_keys, width in [(1, 1, 8), (4, 2, 16), (6, 1, 24), (3, 3, 8)] * 4:
        end = grow_tree(rng, depth)
        inputs = [torch.randn(1, n, end.numel(), width).to(dtype) for n in (n_heads, n_keys, n_keys)]
        ahead = torch.randn(1, end.numel(), n_heads, width).to(dtype)
        for found, expected in zip(*attend_both_ways(end, inputs, ahead, scaling=0.3)):
            assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.fixture
def kernel_of_cuda(monkeypatch):
    """CUDA's kernels for blocks, as far as a CPU can stand in: what they require, and each block by the CPU's.

    From torch's flash_api.cpp: 32-bit borders, lengths up to those named, contiguous last dimensions, and logarithmic
    sums that are read as if they were contiguous.
    """
    attend_block, attend_block_backward = (
        getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{way}") for way in ("", "_backward")
    )

    def cut(rows, borders):
        return [part.transpose(0, 1)[None] for part in rows.tensor_split(borders[1:-1].tolist())]

    def check(queries, keys, query_borders, key_borders, most_queries, most_keys):
        for rows, borders, most in ((queries, query_borders, most_queries), (keys, key_borders, most_keys)):
            assert borders.dtype == torch.int32 and borders.is_contiguous()
            assert borders[0] == 0 and borders[-1] == len(rows) and borders.diff().min() > 0
            assert borders.diff().max() <= most
            assert rows.stride(-1) == 1
        assert most_queries > 1 and len(query_borders) == len(key_borders)

    def forward(query, key, value, query_borders, key_borders, *rest, scale=None, **windows):
        check(query, key, query_borders, key_borders, *rest[:2])
        assert rest[2:] == (0.0, rest[3], False) and value.shape == key.shape
        blocks = zip(cut(query, query_borders), cut(key, key_borders), cut(value, key_borders))
        results = [attend_block(*block, 0.0, rest[3], scale=scale) for block in blocks]
        output = torch.empty_like(query).copy_(torch.cat([found[0].transpose(0, 1) for found, _ in results]))
        empty = torch.empty(0)
        return output, torch.cat([sums[0] for _, sums in results], dim=1).contiguous(), empty, empty, empty

    def backward(ahead, query, key, value, output, sums, query_borders, key_borders, *rest, scale=None, **windows):
        check(query, key, query_borders, key_borders, *rest[:2])
        assert rest[2] == 0 and sums.shape == (query.shape[1], query.shape[0])
        sums = sums.as_strided(sums.shape, (sums.shape[1], 1), sums.storage_offset())
        by_query = [cut(rows, query_borders) for rows in (ahead.contiguous(), query, output.contiguous())]
        by_key = [cut(rows, key_borders) for rows in (key, value)]
        parts = sums.tensor_split(query_borders[1:-1].tolist(), dim=1)
        grads = [
            attend_block_backward(g, q, k, v, o, s[None], 0.0, rest[3], scale=scale)
            for g, q, o, k, v, s in zip(*by_query, *by_key, parts)
        ]
        return tuple(torch.cat([grad[0].transpose(0, 1) for grad in column]) for column in zip(*grads))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    monkeypatch.setattr(tree_attention, "_takes_borders", lambda device: True)
    yield
    library._destroy()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_kernel_that_takes_all_blocks_at_once_gets_their_borders(kernel_of_cuda, depth, is_transposed):
    rng = random.Random(depth)
    for n_heads, n_keys in [(4, 2), (6, 1), (3, 3), (4, 2), (4, 1), (2, 2)]:
        end = grow_tree(rng, depth)
        inputs = [torch.randn(1, n, end.numel(), 8) for n in (n_heads, n_keys, n_keys)]
        if is_transposed:  # as a model's rotary embedding leaves them
            inputs = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
        ahead = torch.randn(1, n_heads, end.numel(), 8).transpose(1, 2)
        for found, expected in zip(*attend_both_ways(end, inputs, ahead)):
            assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_chosen_queries_reach_that_kernel_as_blocks_too(kernel_of_cuda, depth):
    rng = random.Random(depth)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    for share in (0.1, 0.5, 1.0) * 3:
        end = grow_tree(rng, depth)
        n = end.numel()
        places = torch.tensor(sorted(rng.sample(range(n), max(1, int(share * n)))))
        inputs = [torch.randn(1, heads, n, 8, requires_grad=True) for heads in (4, 2, 2)]
        ahead = torch.randn(1, len(places), 4, 8)
        end = end.reshape(1, 1, 1, n)
        whole = attend(module, *inputs, end)[0][:, places]
        found = attend(module, inputs[0][:, :, places], *inputs[1:], end, places=places[None])[0]
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
        expected = torch.autograd.grad((whole * ahead).sum(), inputs)
        for gradient, other in zip(torch.autograd.grad((found * ahead).sum(), inputs), expected):
            assert (gradient - other).norm() <= 1e-5 * other.norm() + 1e-6


def test_single_tokens_are_no_step_of_decoding_for_the_kernel(kernel_of_cuda):
    """A tree of chains of one token each but the first; a bound of 1 query would have torch reshape them."""
    inputs = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    for found, expected in zip(*attend_both_ways(torch.tensor([[4, 2, 3, 4]]), inputs, torch.randn(1, 4, 2, 8))):
        assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def test_numerical_derivatives_agree():
    end = torch.tensor([7, 7, 6, 4, 6, 6, 7, 9, 9])[None, None, None]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    inputs = [torch.randn(1, n, 9, 8, dtype=torch.float64, requires_grad=True) for n in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda *qkv: attend(module, *qkv, end)[0], inputs)


@pytest.mark.parametrize("reason", ["no kernel", "dropout"])
def test_attention_without_its_kernel_is_computed_under_the_dense_mask(monkeypatch, reason):
    if reason == "no kernel":
        monkeypatch.setattr(tree_attention, "_has_kernel", lambda *_: False)
    monkeypatch.setattr(tree_attention, "_TreeAttention", None)
    end = torch.tensor([7, 7, 6, 4, 6, 6, 7, 9, 9])[None]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    inputs = [torch.randn(1, n, 9, 8, dtype=torch.float64) for n in (2, 1, 1)]
    torch.manual_seed(0)
    chance = 0.0 if reason == "no kernel" else 0.5
    found = attend(module, *inputs, end[:, None, None], dropout=chance)[0]
    torch.manual_seed(0)
    expected = sdpa_attention_forward(module, *inputs, build_dense_mask(end, torch.float64), dropout=chance)[0]
    torch.testing.assert_close(found, expected)


def test_autocast_brings_query_key_and_value_to_one_type():
    """A norm whose weight is in fp32 leaves queries in fp32 and values in bf16; SDPA itself would cast them."""
    end = torch.tensor([6, 6, 4, 4, 6, 6])[None]
    inputs = [torch.randn(1, 1, 6, 8) for _ in range(3)]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 1
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(module, *inputs[:2], inputs[2].bfloat16(), end[:, None, None])[0]
    plain = attend(module, *(tensor.bfloat16() for tensor in inputs), end[:, None, None])[0]
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, plain)


def test_a_sequence_without_forks_is_computed_by_stock_attention(monkeypatch):
    calls = []
    monkeypatch.setattr(tree_attention, "sdpa_attention_forward", lambda *args, **kwargs: calls.append(args) or (0, 0))
    attend(torch.nn.Module(), *[torch.randn(1, 1, 5, 8)] * 3, torch.tensor([5] * 5)[None, None, None])
    assert calls[0][-1] is None  # no mask


def test_pairs_are_counted_as_attention_computes_them():
    """By hand, as rows by keys: the chains of 5 and 1 tokens, and that one by the path of 2 tokens above it."""
    assert count_pairs(torch.tensor([6, 6, 5, 5, 5, 6])) == 25 + 1 + 2
    assert count_pairs(torch.tensor([5, 5, 5, 5, 5])) == 25
    assert count_pairs(torch.tensor([4, 4, 3, 4])) == 9 + 1 + 2
    assert count_pairs(torch.tensor([2, 2, 4, 4])) == 4 + 4  # two sequences side by side
