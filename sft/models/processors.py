"""Processors: text and screenshots to model inputs, without torchvision. Knows nothing of prompts or training."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import AutoTokenizer, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sft.errors import UserError
from sft.models.chat_template import check_chat_template, close_thought, read_chat_template
from sft.models.hub import find_folder
from sft.models.images import Layout, Llama4Layout, QwenLayout
from sft.models.llama4_images import Llama4ImageProcessor
from sft.models.model_folder import check_small_files, read_json
from sft.models.token_counts import choose_canvas, count_tiles_in_budget, write_image_tokens

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
VIDEO_FILE = "video_preprocessor_config.json"

log = logging.getLogger("sft")


class _ImageTextProcessor(ProcessorMixin):
    """A Qwen-VL processor that loads no video processor, the only part that needs torchvision.

    Images are resized by Pillow rather than torchvision, on every machine alike, so that a model sees the same pixels
    in training and in rollout. Size, order of patches and normalisation are torchvision's; a resized pixel may differ
    by rounding (one in a thousand does, by 1/255 or 2/255). The checkpoint's video settings are kept and written back
    on saving, so that `AutoProcessor` opens the folder where torchvision exists.
    """

    video_processor_type: str

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        video_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
            token = f"<|{name.removesuffix('_token').replace('image', 'image_pad').replace('video', 'video_pad')}|>"
            setattr(self, name, token)
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        self._video_settings = video_settings or {"video_processor_type": self.video_processor_type}

    @classmethod
    def load_image_processor(
        cls, path: str | Path, min_pixels: int, max_pixels: int, revision: str
    ) -> Qwen2VLImageProcessorPil:
        """Open the image processor; screenshots are resized into the given area."""
        budget: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        return Qwen2VLImageProcessorPil.from_pretrained(path, **budget, revision=revision)

    def build_layout(self) -> Layout:
        return QwenLayout(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `processor_config.json`, as the family's own processor with video would write it."""
        fields = super().to_dict()
        fields.pop("video_settings", None)
        fields["image_processor"]["image_processor_type"] = "Qwen2VLImageProcessor"
        return {**fields, "video_processor": self._video_settings}


class Qwen3VLProcessor(_ImageTextProcessor, transformers.Qwen3VLProcessor):
    """Qwen3-VL and Qwen3.5 without video.

    It bears the family's own class name: that is what transformers writes when saving.
    """

    video_processor_type = "Qwen3VLVideoProcessor"


class Qwen2VLProcessor(_ImageTextProcessor, transformers.Qwen2VLProcessor):
    """Qwen2-VL without video, under the family's own class name (see `Qwen3VLProcessor`)."""

    video_processor_type = "Qwen2VLVideoProcessor"


class Qwen2_5_VLProcessor(_ImageTextProcessor, transformers.Qwen2_5_VLProcessor):
    """Qwen2.5-VL without video, under the family's own class name (see `Qwen3VLProcessor`)."""

    video_processor_type = "Qwen2VLVideoProcessor"


class Llama4Processor(transformers.Llama4Processor):
    """Llama-4 on `sft.models.llama4_images`, under the family's own class name, which is saved with it."""

    @classmethod
    def load_image_processor(
        cls, path: str | Path, min_pixels: int, max_pixels: int, revision: str
    ) -> Llama4ImageProcessor:
        """Open the image processor; `max_pixels` buys tiles, `min_pixels` has no meaning: a tile is the least."""
        processor = Llama4ImageProcessor.from_pretrained(path, revision=revision)
        tile = processor.size["height"]
        processor.max_patches = count_tiles_in_budget(max_pixels, tile, processor.max_patches)
        return processor

    @property
    def tokens_a_tile(self) -> int:
        """How many tokens stand for one tile."""
        side = int(self.image_processor.size["height"]) // self.patch_size
        return side**2 // self.downsample_ratio

    def build_layout(self) -> Layout:
        return Llama4Layout(self)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> SimpleNamespace:
        """Return how many tokens pictures of these (height, width) take, separators included."""
        process = self.image_processor
        canvases = [choose_canvas(h, w, process.max_patches, process.size["height"]) for h, w in image_sizes]
        counts = [len(write_image_tokens(canvas, self.tokens_a_tile)) for canvas in canvases]
        return SimpleNamespace(num_image_tokens=counts)


PROCESSORS: dict[str, type[_ImageTextProcessor] | type[Llama4Processor]] = {
    c.__name__: c for c in (Qwen3VLProcessor, Qwen2VLProcessor, Qwen2_5_VLProcessor, Llama4Processor)
}


def load_processor(path: str | Path, min_pixels: int, max_pixels: int, revision: str = "main") -> ProcessorMixin:
    """Open the processor of a checkpoint folder or hub model; screenshots are resized into the given area in pixels.

    `revision` is that of a hub model and counts for nothing in a folder.

    Reads hub-style folders (`preprocessor_config.json`) and folders written by `save_processor`
    (`processor_config.json`). Called with images, the processor returns `pixel_values` (sum of patches,
    3 * 2 * patch * patch) float32 and `image_grid_thw` (n_images, 3); `sft.models.llama4_images` describes Llama-4's.
    The side of padding is the caller's to set.

    Raises:
        UserError: no such folder or model, no processor in it, a family without a processor here, files that are not
            whole, or a chat template that does not write all of a prompt.
    """
    folder = find_folder(path, revision)
    check_small_files(folder)
    cls = _find_processor_class(folder)
    chat_template = read_chat_template(folder)
    tokenizer = _open_tokenizer(folder)
    image_processor = cls.load_image_processor(folder, min_pixels, max_pixels, revision)
    if cls is Llama4Processor:
        processor: ProcessorMixin = cls(image_processor, tokenizer, chat_template=chat_template)
    else:
        video_settings = read_json(folder / VIDEO_FILE) or read_json(folder / "processor_config.json").get(
            "video_processor"
        )
        processor = cls(image_processor, tokenizer, chat_template=chat_template, video_settings=video_settings)
    closed = close_thought(chat_template, check_chat_template(path, processor))
    if closed != chat_template:
        processor.chat_template = closed
        log.warning("%s: its chat template opens a thought for the answer; prompts close it, empty, here", path)
    return processor


def save_processor(processor: ProcessorMixin, folder: str | Path) -> None:
    """Write a processor so that `load_processor` and, where torchvision exists, `AutoProcessor` reopen it."""
    processor.save_pretrained(folder)


def _open_tokenizer(folder: Path) -> Any:
    """Open a folder's tokenizer, which must have a vocabulary: without one transformers encodes every text as nothing.

    Raises:
        UserError: no file of a vocabulary, or one that cannot be opened.
    """
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise UserError(
            f"{folder}: found no tokenizer.json; expected the model's tokenizer: copy tokenizer.json and "
            "tokenizer_config.json of its base model into the folder"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # else the library asks at the terminal
    except Exception as error:  # the library raises whatever it meets
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: found code of its own that the model brings (auto_map); expected a model of a supported "
                "family, which needs none: it is never run"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{folder}: found no tokenizer that can be opened ({reason}); restore tokenizer.json"
        ) from error


def _find_processor_class(path: Path) -> type[_ImageTextProcessor] | type[Llama4Processor]:
    fields: dict[str, Any] = {}
    for name in PROCESSOR_FILES:
        fields = {**read_json(path / name), **fields}
    if not fields:
        raise UserError(
            f"{path}: found no {' or '.join(PROCESSOR_FILES)}; expected a vision-language checkpoint: download the "
            "whole model folder, or copy the processor files of its base model into it"
        )
    name = fields.get("processor_class", "")
    if not isinstance(name, str) or name not in PROCESSORS:
        raise UserError(
            f"{path}: found processor_class {name!r}; expected one of {', '.join(PROCESSORS)}: choose such a "
            "model (docs/models.md says what was tested with each family, and how to add one)"
        )
    return PROCESSORS[name]
