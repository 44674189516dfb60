"""Which outputs of a frozen vision tower are on disk, and what may still be written there? Used in training alone."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sft.batches.encoder import StepEncoder
from sft.data.screenshots import RULES_VERSION, read_version
from sft.errors import UserError
from sft.files import write_whole
from sft.models.families import part_of
from sft.models.vision_features import identify_tower, view_bytes
from sft.recipe.launch import read_launch
from sft.recipe.recipe import Recipe, resolves_to_bf16
from sft.recipe.training_keys import find_value

FOLDER_NAME = "vision"  # under `screenshot_cache`
GB = 1e9

log = logging.getLogger("sft")


class VisionCache:
    """Keeps the outputs of one tower on disk, one file a screenshot, for later epochs and trainings.

    Safe for several processes at once: a file appears whole or not at all, and is proved by its checksum when it is
    read. `free_bytes` is what this process may add. What there is no more room for is computed each time; nothing is
    ever removed to make room.
    """

    def __init__(self, folder: Path, tower: str, free_bytes: float):
        self.folder, self.tower, self._free_bytes = folder, tower, free_bytes
        self._is_told = False
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, content_hash: str) -> tuple[torch.Tensor, list[int]] | None:
        """Return features and grid of a screenshot, or None where they have to be computed; a damaged file is removed.

        Features are (outputs, rows, ..., width), as `sft.models.vision_features` has them.
        """
        file = self._find_file(content_hash)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as content:
                features, grid = content.get_tensor("features"), content.get_tensor("grid")
                if content.metadata() != {"crc32": _compute_checksum(features, grid)}:
                    raise SafetensorError("its checksum is another")
        except (SafetensorError, OSError) as error:
            log.warning("%s: found a damaged file (%s); removed, it is made anew", file, error)
            file.unlink(missing_ok=True)
            return None
        return features, grid.tolist()

    def keep(self, content_hash: str, features: torch.Tensor, grid: list[int]) -> None:
        """Write what the tower made of a screenshot, if it is not there and there is room for it."""
        file, n_bytes = self._find_file(content_hash), features.nbytes
        if n_bytes > self._free_bytes:
            self._tell("vision_cache_gb: all of it is used")
        elif not file.is_file():
            tensors = {"features": features.detach().cpu().contiguous(), "grid": torch.tensor(grid)}
            try:
                write_whole(file, save(tensors, {"crc32": _compute_checksum(**tensors)}), is_forced=False)
            except OSError as error:
                self._free_bytes = 0
                self._tell(f"{self.folder}: cannot be written ({error.strerror})")
            self._free_bytes -= n_bytes

    def _tell(self, reason: str) -> None:
        if not self._is_told:
            log.warning("%s; what the vision tower makes of further screenshots is computed each time", reason)
        self._is_told = True

    def _find_file(self, content_hash: str) -> Path:
        return self.folder / f"{content_hash}_{self.tower}.safetensors"


def build_vision_cache(recipe: Recipe, encoder: StepEncoder, model: torch.nn.Module) -> VisionCache | None:
    """Return where this run keeps its tower's outputs, or None where the recipe keeps none.

    The name of a file holds what outputs depend on: the screenshot's content and how it is opened, resized and turned
    into numbers, the tower (`identify_tower`), the format computed in, and the version of transformers, whose code the
    tower is. The processes of a run share out what room is left.

    Raises:
        UserError: the tower is trained, or draws at random.
    """
    gb = recipe.data.vision_cache_gb
    if not gb:
        return None
    assert recipe.data.screenshot_cache is not None, "checked with the recipe"
    _refuse_changing_tower(recipe, model)
    launch = read_launch(os.environ)
    circumstances = [
        transformers.__version__,
        f"opened by rules {RULES_VERSION}, resized to {encoder.layout.name_budget()}",
        json.dumps(encoder.processor.image_processor.to_dict(), sort_keys=True, default=str),
        f"autocast: bf16 {resolves_to_bf16(recipe.training)}, fp16 {bool(find_value(recipe.training, 'fp16'))}",
        f"weights cast by DeepSpeed: {launch.engine.startswith('zero')}",
    ]
    folder, tower = Path(recipe.data.screenshot_cache) / FOLDER_NAME, identify_tower(model, circumstances)
    sizes = {file: read_version(file)[1] for file in folder.glob("*")}  # 0 of one that was only half written
    used, others = sum(sizes.values()), sum(n for file, n in sizes.items() if not file.stem.endswith(tower))
    log.info(
        "outputs of the vision tower are kept in %s: %.2f of %g GB used, %.2f of them by other models or settings",
        *(folder, used / GB, gb, others / GB),
    )
    return VisionCache(folder, tower, max(0.0, gb * GB - used) / launch.n_processes)


def _refuse_changing_tower(recipe: Recipe, model: Any) -> None:
    """Refuse what only the model's layers and config tell; what a recipe says by itself is refused when it is read."""
    saved = recipe.model.lora_modules_to_save
    parts = {name: part_of(f"{name}.") for name, _ in model.named_modules() if saved and name.endswith(saved)}
    if trained := [name for name, part in parts.items() if part in ("vision", "merger")]:
        raise UserError(
            f"vision_cache_gb: found {trained[0]} among lora_modules_to_save, whose training changes what is kept; "
            "expected a frozen vision tower and merger, or vision_cache_gb: null"
        )
    if rates := {key: p for key, p in model.config.vision_config.to_dict().items() if "dropout" in key and p}:
        raise UserError(f"vision_cache_gb: found a tower with dropout ({rates}); expected vision_cache_gb: null")


def _compute_checksum(features: torch.Tensor, grid: torch.Tensor) -> str:
    return str(zlib.crc32(view_bytes(grid), zlib.crc32(view_bytes(features))))
