"""One MoE layer of Llama-4 in its three forms: as published, its experts as 4-bit parameters, and as 4-bit linears.

python -m benchmarks.llama4_experts [--json FILE] [--model scout]   # one CUDA GPU, random weights
python -m benchmarks.llama4_experts --small                         # a small layer on the CPU, in float32

Forward and backward to the input, experts frozen. A form that does not fit the card says so instead of a time.
`error` is the relative error of the output against the layer as published, with equal weights.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish

# hidden, inner, experts, tokens
SIZES = {"maverick": (5120, 8192, 128, 4096), "scout": (5120, 8192, 16, 4096), "small": (512, 1024, 16, 512)}
FORMS = ("published", "4-bit parameters", "4-bit linears")
N_WARMUP, N_TIMED = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=("maverick", "scout"), default="maverick")
    parser.add_argument("--small", action="store_true", help="a small layer on the CPU")
    arguments = parser.parse_args()
    import torch

    if not arguments.small and not torch.cuda.is_available():
        parser.exit(2, "found no CUDA GPU; expected one, or --small\n")
    size = "small" if arguments.small else arguments.model
    expected = None
    rows = []
    for form in FORMS:
        try:
            row, output = measure(form, size)
        except torch.OutOfMemoryError:
            rows.append(
                {"form": form, **dict.fromkeys(("weights_gb", "peak_gb", "seconds", "error")), "note": "too big"}
            )
            continue
        expected = output if form == "published" else expected
        error = ((output - expected).norm() / expected.norm()).item() if expected is not None else None
        rows.append({"form": form, **row, "error": error, "note": ""})
    publish(f"MoE layer of Llama-4, {size}: {SIZES[size][3]} tokens", rows, describe_machine(), arguments.json)


def measure(form: str, size: str) -> tuple[dict[str, Any], Any]:
    """Build one form of the layer and time it; return the row and the output, on the CPU."""
    import torch

    device, dtype = ("cpu", torch.float32) if size == "small" else ("cuda", torch.bfloat16)
    torch.manual_seed(0)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    layer = build_layer(form, size, torch.device(device), dtype)
    weights_gb = sum(measure_bytes(p) for p in layer.experts.parameters()) / 1e9
    hidden = torch.randn(1, SIZES[size][3], SIZES[size][0], generator=torch.Generator().manual_seed(1))
    hidden = hidden.to(device, dtype).requires_grad_()
    seconds = []
    for _ in range(N_WARMUP + N_TIMED):
        started = time.perf_counter()
        output, _ = layer(hidden)
        output.sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    row = {"weights_gb": weights_gb, "peak_gb": peak_gb, "seconds": statistics.median(seconds[N_WARMUP:])}
    return row, output.detach().float().cpu()


def build_layer(form: str, size: str, device: Any, dtype: Any) -> Any:
    """Build the layer with random weights, the same in every form, one expert at a time."""
    import torch
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

    from sft.models.llama4 import Llama4SparseMoe
    from sft.models.model import build_linear_maker
    from sft.recipe.settings import ModelSettings

    hidden, inner, n_experts, _ = SIZES[size]
    config = Llama4TextConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=n_experts)
    is_linear = form == "4-bit linears"
    with torch.device(device):
        torch.set_default_dtype(dtype)
        layer = (Llama4SparseMoe if is_linear else Llama4TextMoe)(config)
        torch.set_default_dtype(torch.float32)
    make_linear = build_linear_maker(ModelSettings("", dtype=str(dtype).removeprefix("torch.")), dtype, device)
    with torch.no_grad():
        for name, parameter in sorted(layer.named_parameters()):
            if ".experts." not in f".{name}":
                parameter.normal_(std=0.02, generator=torch.Generator(device).manual_seed(len(name)))
        for i in range(n_experts):
            random = torch.Generator(device).manual_seed(1000 + i)
            gate_up, down = (
                torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02, generator=random)
                for shape in ((hidden, 2 * inner), (inner, hidden))
            )
            if is_linear:
                linears = (make_linear(weight.T.contiguous()) for weight in (gate_up, down))
                layer.experts.add(*linears)
            else:
                layer.experts.gate_up_proj[i], layer.experts.down_proj[i] = gate_up, down
    if form == "4-bit parameters":
        for name in ("gate_up_proj", "down_proj"):
            replace_parameter_4bit(layer.experts, name, compress_statistics=True, quant_type="nf4")
    return layer.requires_grad_(False)


def measure_bytes(parameter: Any) -> int:
    """Return the bytes a parameter holds; scales of 4-bit weights, kept beside them, are left out in every form."""
    return parameter.numel() * parameter.element_size()


if __name__ == "__main__":
    main()
