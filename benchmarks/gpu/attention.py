"""Attention of a packed sequence at the 8B's shapes: how it is computed here, and the ways that were compared with it.

python -m benchmarks.gpu.attention --json FILE [--tiny]

    two calls    the product's: chains and what is above their forks, `sft.models.tree_attention`
    node loop    what it replaced: one SDPA a node of the tree, masked, keys and values joined and repeated for each
    dense mask   SDPA under a boolean mask of all pairs
    flex         FlexAttention, compiled once for all lengths; its block mask is built outside the times

First each is held against attention computed in fp32: relative errors of output and gradients. Then forward, and
forward and backward pass, of one layer are timed: medians of 20. 32 heads, 8 of keys, 128 wide, bf16; packs of a
system message (178 tokens), screenshots (1,222 each) and branches of about 170. Rows are saved as they come.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.recipe import describe_gpu
from benchmarks.machine import publish, save

TITLE = "Attention of one packed sequence, one layer of Qwen3-VL-8B"
SYSTEM, SCREENSHOT, BRANCH = 178, 1222, 170
PACKS = {8: 2, 2: 4, 40: 1, 1: 4}  # steps a screenshot: screenshots of the pack
HEADS, KEY_HEADS, WIDTH = 32, 8, 128
N_WARMUP, N_TIMED = 3, 20
Attention = Callable[..., Any]  # of query, key and value (1, heads, T, D); returns (1, T, heads, D)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="short sequences on the CPU, to test this program")
    arguments = parser.parse_args()
    machine, rows = describe_gpu(), list[dict[str, Any]]()
    for row in measure(arguments.tiny):
        rows.append(row)
        print(row, flush=True)
        save(TITLE, rows, machine, arguments.json)
    publish(TITLE, rows, machine, arguments.json)


def measure(is_tiny: bool) -> Any:
    """Yield a row for each way and pack; the way that has to be compiled comes last."""
    import torch

    from sft.models.kernels import choose_kernels

    choose_kernels(torch.nn.Module())  # cuDNN's attention off, as in training
    on_gpu = torch.cuda.is_available() and not is_tiny
    divisor = 1 if on_gpu else 16
    trees = {n: build_tree(n, n_screenshots, divisor) for n, n_screenshots in PACKS.items()}
    ways = {"two calls": build_two_calls, "node loop": build_node_loop, "dense mask": build_dense}
    if on_gpu:
        ways["flex"] = build_flex
    references: dict[int, Any] = {}
    for name, build in ways.items():
        for n, end in trees.items():
            end = end.to("cuda" if on_gpu else "cpu")
            inputs, ahead = draw_inputs(end, torch.bfloat16 if on_gpu else torch.float32)
            if n not in references and n in (8, 2):  # fp32 scores of all pairs: 4 GB at most
                references[n] = run(partial(attend_in_fp32, end), inputs, ahead)
            row = {"way": name, "steps_a_screenshot": n, "tokens": end.numel()}
            try:
                yield row | compare(build(end), inputs, ahead, references.get(n))
            except Exception as problem:  # the other ways' figures are worth having, whatever ails this one
                yield row | {"note": f"{type(problem).__name__}: {problem}"[:500]}


def compare(attention: Attention, inputs: Sequence[Any], ahead: Any, expected: Sequence[Any] | None) -> dict[str, Any]:
    """Return the seconds of the first call, compilation included, errors where a reference is given, and times."""
    from benchmarks.clocks import read_clock

    started = read_clock()
    found = run(attention, inputs, ahead)
    row: dict[str, Any] = {"first_s": read_clock() - started}
    if expected is not None:
        names = ("output", "query", "key", "value")
        row |= {f"error_{part}": error(*pair) for part, *pair in zip(names, found, expected)}
    return row | time_both(attention, inputs, ahead)


def build_tree(n_branches: int, n_screenshots: int, divisor: int) -> Any:
    """Return `subtree_end` (T,) of a pack."""
    import torch

    rng, end = random.Random(0), list[int]()
    end += [0] * (SYSTEM // divisor)
    for _ in range(n_screenshots):
        start, n_own = len(end), SCREENSHOT // divisor
        end += [0] * n_own
        for _ in range(n_branches):
            size = (BRANCH + rng.randint(-20, 20)) // divisor
            end += [len(end) + size] * size
        end[start : start + n_own] = [len(end)] * n_own
    end[: SYSTEM // divisor] = [len(end)] * (SYSTEM // divisor)
    return torch.tensor(end)


def draw_inputs(end: Any, dtype: Any) -> tuple[list[Any], Any]:
    """Return query, key and value as a layer has them, (1, heads, T, D) views of (1, T, heads, D), and a gradient."""
    import torch

    torch.manual_seed(0)
    device = end.device
    shapes = [(1, end.numel(), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    inputs = [torch.randn(shape, device=device).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]
    return inputs, torch.randn(shapes[0], device=device).to(dtype)


def run(attention: Attention, inputs: Sequence[Any], ahead: Any) -> list[Any]:
    """Return output and gradients."""
    import torch

    output = attention(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, ahead)]


def error(found: Any, expected: Any) -> float:
    """Return the norm of the difference by that of what is expected."""
    return ((found.float() - expected).norm() / expected.norm()).item()


def time_both(attention: Attention, inputs: Sequence[Any], ahead: Any) -> dict[str, float]:
    """Return milliseconds of the forward pass, and of both passes."""
    import torch

    def forward() -> None:
        with torch.no_grad():
            attention(*inputs)

    return {"forward_ms": time_call(forward), "both_ms": time_call(lambda: run(attention, inputs, ahead))}


def time_call(call: Callable[[], Any]) -> float:
    import torch

    times = []
    for i in range(N_WARMUP + N_TIMED):
        if torch.cuda.is_available():
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
            call()
            marks[1].record()
            torch.cuda.synchronize()
            times.append(marks[0].elapsed_time(marks[1]))
        elif i < 3:  # no figure of a CPU is wanted here
            started = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[N_WARMUP:] or times)


def attend_in_fp32(end: Any, query: Any, key: Any, value: Any) -> Any:
    """Compute the reference, a quarter of the heads at a time."""
    import torch

    from sft.models.tree_attention import build_mask

    n = HEADS // KEY_HEADS
    mask, outputs = build_mask(end[None, None, None]), []
    for q, k, v in zip(*(tensor.float().chunk(4, dim=1) for tensor in (query, key, value))):
        k, v = k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)
        scores = (q @ k.transpose(-1, -2) * WIDTH**-0.5).masked_fill(~mask, float("-inf"))
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, dim=1).transpose(1, 2)


def build_two_calls(end: Any) -> Attention:
    from sft.models.tree_attention import attend

    module, mask = build_module(), end[None, None, None]
    return lambda *qkv: attend(module, *qkv, mask)[0]


def build_dense(end: Any) -> Attention:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from sft.models.tree_attention import build_mask

    module, mask = build_module(), build_mask(end[None, None, None])
    return lambda *qkv: sdpa_attention_forward(module, *qkv, mask)[0]


def build_node_loop(end: Any) -> Attention:
    """A node longer than what precedes it is computed with it as one causal sequence, else under a mask."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from sft.models.tree_attention import find_nodes

    module, nodes = build_module(), find_nodes(end.tolist())
    sizes = [node.size for node in nodes]
    before = [sum(sizes[i] for i in node.path[:-1]) for node in nodes]
    masks = [
        None
        if n < node.size
        else torch.ones(node.size, n + node.size, dtype=torch.bool, device=end.device).tril(n)[None, None]
        for node, n in zip(nodes, before)
    ]

    def join(parts: Sequence[Any], path: Sequence[int]) -> Any:
        return parts[path[0]] if len(path) == 1 else torch.cat([parts[i] for i in path], dim=2)

    def attend(*qkv: Any) -> Any:
        queries, keys, values = (tensor.split(sizes, dim=2) for tensor in qkv)
        outputs = []
        for node, query, mask in zip(nodes, queries, masks):
            query = join(queries, node.path) if mask is None else query
            parts = query, join(keys, node.path), join(values, node.path)
            outputs.append(sdpa_attention_forward(module, *parts, mask)[0][:, -node.size :])
        return torch.cat(outputs, dim=1)

    return attend


def build_flex(end: Any) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask

    def may_see(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query < end[key])

    n = end.numel()
    mask = create_block_mask(may_see, 1, 1, n, n, device=str(end.device))
    flex = compile_flex()
    return lambda *qkv: flex(*qkv, block_mask=mask, enable_gqa=True).transpose(1, 2)


@cache
def compile_flex() -> Any:
    """Return FlexAttention, compiled once for all lengths."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def build_module() -> Any:
    """Return what attention reads of its layer."""
    import torch

    module: Any = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, HEADS // KEY_HEADS
    return module


if __name__ == "__main__":
    main()
