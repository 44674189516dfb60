"""Operations are counted right whatever kernel computes them, and counting never ends a run."""

import json
import logging

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from test_training import _write_recipe
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import shape_wrapper
from trl.kernels import chunked_logprob

from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint
from eval import rollout
from sft import run
from sft.compute import flops
from sft.compute.flops import FlopCounter
from sft.compute.ledger import load_runs

SHORT = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
WIDE_AS_FP32 = {"out_dtype": torch.float32}


def count(run):
    with FlopCounter() as counter:
        run()
    return counter.total


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("wide", [{}, WIDE_AS_FP32], ids=["plain", "out_dtype"])
def test_products_are_counted_with_an_output_type_and_without(wide):
    """(3, 4) by (4, 5): 60 multiplies and as many adds; two of them in a batch."""
    a, b, added = meta(3, 4), meta(4, 5), meta(3, 5, dtype=torch.float32 if wide else torch.bfloat16)
    assert count(lambda: torch.mm(a, b, **wide)) == 120
    assert count(lambda: torch.addmm(added, a, b, **wide)) == 120
    assert count(lambda: torch.addmm(added, a, b, **wide, out=added)) == 120
    pairs = [meta(2, *tensor.shape) for tensor in (added, a, b)]
    assert count(lambda: torch.bmm(*pairs[1:], **wide)) == 240
    assert count(lambda: torch.baddbmm(*pairs)) == 240
    by_position = flops._COUNTS[torch.ops.aten.baddbmm]  # which has no kernel off CUDA
    assert by_position(*pairs, *wide.values(), out_val=pairs[0]) == 240


def test_product_added_in_place_is_counted():
    assert count(lambda: torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))) == 120
    assert count(lambda: torch.zeros(2, 3, 5).baddbmm_(torch.ones(2, 3, 4), torch.ones(2, 4, 5))) == 240


def test_attention_whose_query_heads_share_keys_is_counted_by_its_query_heads():
    """4 query heads, 2 key heads, 3 by 5 tokens, 8 numbers a head: 60 pairs, two products of 8 forward, five back."""
    query, key = torch.randn(1, 4, 3, 8, requires_grad=True), torch.randn(1, 2, 5, 8)
    assert count(lambda: scaled_dot_product_attention(query.detach(), key, key, enable_gqa=True)) == 60 * 2 * 16
    trained = count(lambda: scaled_dot_product_attention(query, key, key, enable_gqa=True).sum().backward())
    assert trained == 60 * 2 * (16 + 40)


def test_attention_of_a_packed_sequence_is_counted_by_its_tree():
    """Two branches of 2 tokens behind a prefix of 3: chains of 5 and 2, and 2 tokens that see 3: 35 pairs."""
    end = torch.tensor([7, 7, 7, 5, 5, 7, 7])
    query, key = torch.randn(7, 4, 8), torch.randn(7, 2, 8)
    assert count(lambda: torch.ops.sft.attend_tree(query, key, key, end, 0.3)) == 35 * 4 * 2 * 16


def test_backward_pass_of_attention_in_blocks_is_counted_block_by_block():
    """What packed training calls on CUDA. Two blocks, of 2 by 3 and of 4 by 5 tokens: 26 pairs, 4 heads of 8."""
    query, key = meta(6, 4, 8), meta(8, 2, 8)
    borders = torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([0, 3, 8], dtype=torch.int32)
    more = (*borders, 4, 5, 0.0, False)
    backward = flops._COUNTS[torch.ops.aten._flash_attention_backward]
    assert backward(query, query, key, key, query, None, *more, None, None, scale=0.3, out_val=()) == 26 * 4 * 2 * 40


@pytest.mark.parametrize("has_grad", [False, True])
def test_4_bit_product_is_counted_forward_and_back(has_grad):
    layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    inputs = torch.randn(2, 3, 128, requires_grad=has_grad)
    assert count(lambda: layer(inputs)) == 2 * 6 * 128 * 64
    if has_grad:
        assert count(lambda: layer(inputs).sum().backward()) == 2 * 2 * 6 * 128 * 64


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """The recipe of a model most of whose arithmetic is in 4-bit layers."""
    folder = tmp_path_factory.mktemp("qlora")
    size = TinySize(layers=4, hidden=256, intermediate=768)
    return _write_recipe(folder, build_tiny_checkpoint(folder / "base", ["Open the study"], size=size))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_operations_of_4_bit_training_are_those_of_the_formula(qlora, tmp_path, checkpointing):
    arguments = ["--gradient_checkpointing", checkpointing, "--output_dir", str(tmp_path)]
    arguments += ["--max_answer_tokens", "400"]  # of a tokenizer that knows only bytes
    run.main([str(qlora), *SHORT, *arguments])
    figures = load_runs(tmp_path)[0].figures
    assert figures["flops_batch_measured"] / figures["flops_batch_formula"] == pytest.approx(1, abs=0.02)


@pytest.fixture
def head_of_cuda(monkeypatch):
    """TRL's fused head ends its backward pass as on CUDA, where `addmm` has a kernel with `out_dtype`; here a stub."""

    def addmm(added, a, b, out_dtype, *, beta=1, alpha=1, out):
        return out.copy_(added + a.to(out_dtype) @ b.to(out_dtype))

    library = torch.library.Library("aten", "IMPL")
    library.impl("addmm.dtype_out", addmm, "CPU")
    wide = WIDE_AS_FP32
    monkeypatch.setattr(chunked_logprob, "_addmm_fp32", lambda acc, a, b: torch.addmm(acc, a, b, **wide, out=acc))
    yield
    library._destroy()


def test_training_in_bf16_with_the_head_of_cuda_is_counted(tiny_checkpoints, tmp_path, head_of_cuda):
    """torch's own formula of `addmm` takes the type for a shape and ends the first step."""
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    run.main([str(recipe), *SHORT, "--dtype", "bfloat16", "--bf16", "true"])
    figures = load_runs(tmp_path / "out")[0].figures
    assert figures["flops_batch_measured"] / figures["flops_batch_formula"] == pytest.approx(1, abs=0.08)


@pytest.fixture
def uncountable(monkeypatch):
    """An operation of every step and every rollout whose formula fails."""

    def fail(*args, **kwargs):
        raise TypeError("got multiple values for argument 'out_shape'")

    monkeypatch.setitem(flops._COUNTS, torch.ops.aten.mm, shape_wrapper(fail))
    monkeypatch.setitem(flops._COUNTS, torch.ops.aten.matmul, shape_wrapper(fail))
    monkeypatch.setitem(flops._COUNTS, torch.ops.aten.linear, shape_wrapper(fail))


@pytest.mark.slow
def test_operation_that_cannot_be_counted_leaves_the_formula_and_ends_no_run(
    tiny_checkpoints, tmp_path, uncountable, caplog
):
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"])
    with caplog.at_level(logging.WARNING):
        run.main([str(recipe), *SHORT])
    told = [record.message for record in caplog.records if "not counted" in record.message]
    assert len(told) == 1 and "aten.mm" in told[0] and "TypeError: got multiple values" in told[0]
    (record,) = load_runs(tmp_path / "out")
    assert record.outcome == "finished" and record.figures["flops"] > 0
    assert "flops_batch_measured" not in record.figures
    arguments = ["--model_path", str(tmp_path / "out"), "--test_csv", str(tmp_path / "val/tasks.csv")]
    rollout.main([*arguments, "--max_tasks", "1", "--output_dir", str(tmp_path / "results")])
    assert json.loads((tmp_path / "results/metrics.json").read_text())["n_steps"] == 3
    assert "flops_batch_measured" not in load_runs(tmp_path / "results")[0].figures
