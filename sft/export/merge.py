"""Merges a LoRA adapter into its base model's files, shard by shard, without ever building the model."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sft.errors import UserError
from sft.models.experts import find_pieces, is_transposed
from sft.models.families import list_file_names
from sft.models.model import open_adapter
from sft.models.model_folder import ADAPTER_CONFIG, list_weight_files, read_json, read_rank

PREFIX = "base_model.model."
HEAD = "lm_head.weight"
_TIED = (HEAD, "embed_tokens.weight")
# One output file: safetensors copies it once while writing, so a merge holds about twice this.
MAX_SHARD_BYTES = 2_000_000_000
# What makes a merge another sum than base + scale * B @ A.
_OTHER_SUMS = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "monteclora_config",
    "kasa_config",
    "arrow_config",
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter by base weight: `deltas[name]` is (A, B), `replaced[name]` a weight that was trained in full."""

    scale: float
    deltas: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    replaced: Mapping[str, torch.Tensor]

    @property
    def names(self) -> set[str]:
        return {*self.deltas, *self.replaced}


@dataclass(frozen=True)
class ExpertChange:
    """What an adapter's weight `name` changes of one tensor of the base.

    That is the matrix of the expert at `index`, or all of a tensor that is one expert's alone (None); by all rows of
    the update, or by the `part`-th of `n_parts` equal parts of them.
    """

    name: str
    index: int | None
    part: int
    n_parts: int


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter that `sft/run.py` saved.

    Raises:
        UserError: a damaged file, or a kind of adapter whose merge is another sum (DoRA, ranks by pattern).
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(f"{path}: found peft_type {kind!r}; expected LORA: merge it with peft")
    for key in _OTHER_SUMS:
        if config.get(key):
            raise UserError(f"{path}: found {key}; expected plain LoRA: merge it with peft")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path}: found bias {config['bias']!r}; expected none: merge it with peft")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with open_adapter(folder) as file:
        for key in list(file.keys()):
            name, kind = key.removeprefix(PREFIX), "replaced"
            for which in ("A", "B"):
                if name.endswith(f".lora_{which}.weight"):
                    name, kind = name.removesuffix(f".lora_{which}.weight") + ".weight", which
            parts.setdefault(name, {})[kind] = file.get_tensor(key)
    rank, alpha = read_rank(folder), config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise UserError(f"{path}: found lora_alpha {alpha!r}; expected a number: restore the file")
    return Adapter(
        alpha / (rank**0.5 if config.get("use_rslora") else rank),
        {name: (part["A"], part["B"]) for name, part in parts.items() if "A" in part},
        {name: part["replaced"] for name, part in parts.items() if "replaced" in part},
    )


def merge_weights(base: Path, adapter: Adapter | None, output: Path, dtype: torch.dtype) -> int:
    """Write base + scale * B @ A as safetensors shards with an index; returns the number of tensors.

    Sums are formed in fp32 and rounded once. Memory: one shard, its copy while it is written, one weight in fp32.

    An embedding or output layer that was trained alone, on a base whose two are one matrix, is another matrix from
    then on: the folder then holds both, and its config says so.

    Raises:
        UserError: the base has no weight of that name or shape for some part of the adapter.
    """
    config = read_json(base / "config.json")
    names = list_weights(base)
    experts = find_expert_changes(adapter.deltas, names) if adapter else {}
    renamed = _find_in_base(adapter, names, base) if adapter else {}
    shards = _ShardWriter(output)
    for name, path in names.items():
        with safe_open(path, framework="pt") as file:
            weight = file.get_tensor(name)
        if adapter is not None and name in renamed:
            weight = _merge(weight, renamed[name], adapter, base)
        elif adapter is not None and name in experts:
            model_type = config.get("model_type", "")
            weight = merge_experts(weight, experts[name], adapter.deltas, adapter.scale, dtype, model_type, base)
        shards.add(name, weight.to(dtype) if weight.is_floating_point() else weight)
    if adapter is not None and any(name.endswith(_TIED) for name in adapter.names):
        if (head := _find_head(base, adapter, names)) is not None:
            shards.add(HEAD, head.to(dtype))
        _set_everywhere(config, "tie_word_embeddings", False)
    n_tensors = shards.close()
    _set_everywhere(config, "dtype", str(dtype).removeprefix("torch."))
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (base / "generation_config.json").is_file():
        (output / "generation_config.json").write_bytes((base / "generation_config.json").read_bytes())
    return n_tensors


def list_weights(folder: Path) -> dict[str, Path]:
    """Return each weight of a model folder and the file it is in, in the order of the files."""
    names: dict[str, Path] = {}
    for path in list_weight_files(folder):
        with safe_open(path, framework="pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    return names


def _find_head(base: Path, adapter: Adapter, names: Mapping[str, Path]) -> torch.Tensor | None:
    """Return the output layer that the base's files lack, as it is the embedding: the trained one, or the old one."""
    if any(name.endswith(HEAD) for name in names):
        return None
    if HEAD in adapter.replaced:
        return adapter.replaced[HEAD]
    (name,) = (name for name in names if name.endswith("embed_tokens.weight"))
    with safe_open(names[name], framework="pt") as file:
        return file.get_tensor(name)


def _set_everywhere(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a model's config at the top, in its text part, if there is one, and in every part that has it.

    `torch_dtype`, the older name of `dtype`, is replaced.
    """
    parts = {name: part for name, part in config.items() if name.endswith("_config") and isinstance(part, dict)}
    for name, part in {"": config, **parts}.items():
        older = part.pop("torch_dtype", None) if key == "dtype" else None
        if older is not None or key in part or name in ("", "text_config"):
            part[key] = value


def _find_in_base(adapter: Adapter, names: Mapping[str, Path], base: Path) -> dict[str, str]:
    """Return for each base weight that changes the adapter's name of it."""
    found, missing = {}, []
    for name in sorted(adapter.names):
        match = next((c for c in list_file_names(name) if c in names), None)
        if match is not None:
            found[match] = name
        elif find_expert_changes([name], names):
            continue
        elif name != HEAD or name not in adapter.replaced:  # it may be the embedding
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


def find_expert_changes(names: Iterable[str], in_base: Mapping[str, Path]) -> dict[str, list[ExpertChange]]:
    """Return for each tensor of the base that holds experts what of the adapter's weights changes it."""
    found: dict[str, list[ExpertChange]] = {}
    for name in sorted(names):
        if ".experts." not in name or name in in_base:
            continue
        pieces = find_pieces(name.removesuffix(".weight"), in_base)
        for i, piece in enumerate(pieces):
            found.setdefault(piece.name, []).append(ExpertChange(name, piece.index, i, len(pieces)))
    return found


def merge_experts(
    weight: torch.Tensor,
    changes: Iterable[ExpertChange],
    deltas: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    dtype: torch.dtype,
    model_type: str,
    base: Path,
) -> torch.Tensor:
    """Return a tensor of one or many experts in `dtype`, scale * B @ A added; one expert is in fp32 at a time.

    Raises:
        UserError: the base's experts have another shape than the adapter's.
    """
    merged = weight.to(dtype, copy=True)
    for change in changes:
        place = ... if change.index is None else change.index
        a, b = deltas[change.name]
        update = b.chunk(change.n_parts)[change.part].float() @ a.float()
        if change.index is not None and is_transposed(weight[place].shape, update.shape, model_type):
            update = update.T
        if update.shape != weight[place].shape:
            found = f"found {tuple(weight[place].shape)} in the base and {tuple(update.shape)} in the adapter"
            raise UserError(f"{base}: {change.name}: {found}; expected the base model the adapter was trained on")
        merged[place] = update.mul_(scale).add_(weight[place].float()).to(dtype)
    return merged


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
