"""Merges a LoRA adapter into its base model's files, shard by shard, without ever building the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sft.errors import UserError
from sft.models.model import open_adapter

PREFIX = "base_model.model."
# One output file: safetensors copies it once while writing, so a merge holds about twice this.
MAX_SHARD_BYTES = 2_000_000_000
# How transformers 5 names modules, and what the same weights are called in files that older versions wrote.
FILE_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter by base weight: `deltas[name]` is (A, B), `replaced[name]` a weight that was trained in full."""

    scale: float
    deltas: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    replaced: Mapping[str, torch.Tensor]

    @property
    def names(self) -> set[str]:
        return {*self.deltas, *self.replaced}


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter that `sft/run.py` saved.

    Raises:
        UserError: a damaged file, or a kind of adapter whose merge is another sum (DoRA, ranks by pattern).
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(key):
            raise UserError(f"{folder}/adapter_config.json: found {key}; expected plain LoRA: merge it with peft")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with open_adapter(folder) as file:
        for key in list(file.keys()):
            name, kind = key.removeprefix(PREFIX), "replaced"
            for which in ("A", "B"):
                if name.endswith(f".lora_{which}.weight"):
                    name, kind = name.removesuffix(f".lora_{which}.weight") + ".weight", which
            parts.setdefault(name, {})[kind] = file.get_tensor(key)
    rank: float = config["r"]
    return Adapter(
        config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank),
        {name: (part["A"], part["B"]) for name, part in parts.items() if "A" in part},
        {name: part["replaced"] for name, part in parts.items() if "replaced" in part},
    )


def merge_weights(base: Path, adapter: Adapter | None, output: Path, dtype: torch.dtype) -> int:
    """Write base + scale * B @ A as safetensors shards with an index; returns the number of tensors.

    Sums are formed in fp32 and rounded once. Memory: one shard, its copy while it is written, one weight in fp32.

    Raises:
        UserError: the base is quantised, or has no weight of that name or shape for some part of the adapter.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise UserError(f"{base}: found a quantised model; expected the weights it was made from: --base_model FOLDER")
    names = list_weights(base)
    renamed = _find_in_base(adapter, names, base) if adapter else {}
    shards = _ShardWriter(output)
    for name, path in names.items():
        with safe_open(path, framework="pt") as file:
            weight = file.get_tensor(name)
        if adapter is not None and name in renamed:
            weight = _merge(weight, renamed[name], adapter, base)
        shards.add(name, weight.to(dtype) if weight.is_floating_point() else weight)
    if adapter is not None:
        for name in sorted(adapter.names - set(renamed.values())):  # an untied output layer, which the base lacks
            shards.add(name, adapter.replaced[name].to(dtype))
            config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    n_tensors = shards.close()
    config["dtype"] = str(dtype).removeprefix("torch.")
    for part in ("text_config", "vision_config"):
        if "dtype" in config.get(part, {}):
            config[part]["dtype"] = config["dtype"]
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (base / "generation_config.json").is_file():
        (output / "generation_config.json").write_bytes((base / "generation_config.json").read_bytes())
    return n_tensors


def list_weights(folder: Path) -> dict[str, Path]:
    """Return each weight of a model folder and the file it is in, in the order of the files."""
    names: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        with safe_open(path, framework="pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    if not names:
        raise UserError(f"{folder}: found no *.safetensors; expected the weights of the unquantised base model")
    return names


def _find_in_base(adapter: Adapter, names: Mapping[str, Path], base: Path) -> dict[str, str]:
    """Return for each base weight that changes the adapter's name of it."""
    found, missing = {}, []
    for name in sorted(adapter.names):
        candidates = [name, *(name.replace(new, old, 1) for new, old in FILE_NAMES if name.startswith(new))]
        match = next((c for c in candidates if c in names), None)
        if match is not None:
            found[match] = name
        elif name != "lm_head.weight" or name not in adapter.replaced:
            missing.append(name)
    if missing:
        raise UserError(
            f"{base}: found no {', '.join(missing[:3])}; expected the base model the adapter was trained on"
        )
    return found


def _merge(weight: torch.Tensor, name: str, adapter: Adapter, base: Path) -> torch.Tensor:
    if name in adapter.replaced:
        merged = adapter.replaced[name]
    else:
        a, b = adapter.deltas[name]
        merged = b.float() @ a.float()
    if merged.shape != weight.shape:
        found = f"found {tuple(weight.shape)} in the base and {tuple(merged.shape)} in the adapter"
        raise UserError(f"{base}: {name}: {found}; expected the base model the adapter was trained on")
    return merged if name in adapter.replaced else merged.mul_(adapter.scale).add_(weight.float())


class _ShardWriter:
    """Collects tensors up to `MAX_SHARD_BYTES`, writes them out, and names the files once their number is known."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._n_bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        n_bytes = tensor.numel() * tensor.element_size()
        if self._tensors and self._n_bytes + n_bytes > MAX_SHARD_BYTES:
            self._write()
        self._tensors[name] = tensor.contiguous()
        self._n_bytes += n_bytes

    def close(self) -> int:
        """Write what is left and the index, where there are several shards."""
        self._write()
        n = len(self._shards)
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._shards):
            target = "model.safetensors" if n == 1 else f"model-{i + 1:05}-of-{n:05}.safetensors"
            self._path(i).rename(self.folder / target)
            weight_map |= dict.fromkeys(names, target)
        if n > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2) + "\n", encoding="utf-8"
            )
        return len(weight_map)

    def _write(self) -> None:
        save_file(self._tensors, self._path(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._tensors))
        self._total += self._n_bytes
        self._tensors, self._n_bytes = {}, 0

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index}.partial"
