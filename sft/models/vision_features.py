"""What a frozen vision tower makes of screenshots: given to the model in place of pixels where it is known already."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from sft.models.families import part_of

Keep = Callable[[str, torch.Tensor, list[int]], None]  # content hash, features, grid


@dataclass(frozen=True)
class ShownScreenshots:
    """The screenshots of a batch, in the order of their tokens, some with the tower's outputs, some with pixels.

    `hashes` are those of their content, `grids` their rows of the layout's `grid_name`, `n_rows` what each takes of
    `pixel_values`, which holds those alone whose `features` are None. Features: (outputs, rows, ..., width), of which
    the first is the tower's main one and the others go to the first language layers (Qwen3-VL's deepstack).
    """

    hashes: list[str]
    grids: list[list[int]]
    n_rows: list[int]
    features: list[torch.Tensor | None]

    @property
    def new(self) -> list[int]:
        """Return which of them the tower has to compute."""
        return [i for i, features in enumerate(self.features) if features is None]

    def to(self, device: Any, non_blocking: bool = False) -> "ShownScreenshots":
        """Move the features, as accelerate does with every entry of a batch."""
        return self._map(lambda features: features.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ShownScreenshots":
        """Do what torch's loader does with every tensor of a batch."""
        return self._map(lambda features: features.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ShownScreenshots":
        return replace(self, features=[None if f is None else change(f) for f in self.features])


class FrozenTower:
    """Stands before the vision tower of a model: computes what is not known, and hands it to `keep`.

    That is called in a thread of its own, so that a step waits for no disk unless the one before has not finished.
    Outside `show` the tower is what it was.
    """

    def __init__(self, model: torch.nn.Module, keep: Keep):
        self._keep, self._thread = keep, ThreadPoolExecutor(1)
        self._keeping: Future[None] | None = None
        self._shown: ShownScreenshots | None = None
        tower = find_tower(model)
        self._compute = tower.forward
        tower.forward = self._forward

    @contextmanager
    def show(self, screenshots: ShownScreenshots) -> Iterator[None]:
        """Let the model see these screenshots within."""
        self._shown = screenshots
        try:
            yield
        finally:
            self._shown = None

    def finish(self) -> None:
        """Wait until everything that was computed is kept."""
        if self._keeping is not None:
            self._keeping.result()

    def _forward(self, pixels: torch.Tensor, **kwargs: Any) -> Any:
        shown = self._shown
        if shown is None:
            return self._compute(pixels, **kwargs)
        features, new = list(shown.features), shown.new
        if new:
            if "grid_thw" in kwargs:
                kwargs["grid_thw"] = kwargs["grid_thw"][new]
            output = self._compute(pixels, **kwargs)
            computed = torch.stack([output.get("pooler_output", output["last_hidden_state"]), *_deepstack(output)])
            sizes = [shown.n_rows[i] * computed.shape[1] // len(pixels) for i in new]
            parts = computed.detach().split(sizes, dim=1)
            self.finish()
            self._keeping = self._thread.submit(self._keep_all, shown, dict(zip(new, parts)))
            for i, part in zip(new, parts):
                features[i] = part
            if len(new) == len(features):
                return output
        main, *deepstack = torch.cat([f for f in features if f is not None], dim=1)
        # Llama-4 reads the first of the two, Qwen-VL the second
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=main, pooler_output=main, deepstack_features=deepstack or None
        )

    def _keep_all(self, shown: ShownScreenshots, features: Mapping[int, torch.Tensor]) -> None:
        for i, part in features.items():
            self._keep(shown.hashes[i], part, shown.grids[i])


def find_tower(model: torch.nn.Module) -> Any:
    """Return the vision tower of a model; Qwen-VL's holds the merger."""
    return next(
        module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and part_of(f"{name}.") == "vision"
    )


def identify_tower(model: torch.nn.Module, circumstances: Sequence[str]) -> str:
    """Return a hash of what the tower's outputs depend on beside the screenshot.

    These are its weights and the merger's, as they are in memory, their number format, the tower's configuration, and
    `circumstances`.
    """
    config: Any = model.config
    digest = hashlib.sha256("\n".join([config.vision_config.to_json_string(), *circumstances]).encode())
    for name, parameter in model.named_parameters():
        if part_of(name) in ("vision", "merger"):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(view_bytes(parameter))
    return digest.hexdigest()[:16]


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers, in any format."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _deepstack(output: Any) -> list[torch.Tensor]:
    return output.get("deepstack_features") or []
