"""What of a processor renders prompts and counts tokens, for commands that start without torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sft.errors import UserError
from sft.models.chat_template import check_chat_template, close_thought, read_chat_template
from sft.models.llama4_tiles import IMAGE_TOKEN, choose_canvas, count_tiles_in_budget, write_image_tokens
from sft.models.model_folder import check_small_files, read_json
from sft.prompts import AgentConfig

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_PIXELS_PER_TOKEN = 32  # a side, of Qwen3-VL: patches of 16 px, merged two by two; Qwen2.5-VL has 28


class LightProcessor:
    """Stands in for a family's processor in `StepEncoder`; a test holds its text and its counts to the real one's."""

    def __init__(self, folder: str | Path, agent: AgentConfig):
        """Read tokenizer, chat template and image sizes of a checkpoint folder.

        Raises:
            UserError: the folder lacks one of the files, or its template does not write all of a prompt.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder}: found no tokenizer.json; expected the folder of a base model")
        check_small_files(folder)
        self.tokenizer = _LightTokenizer(_open_tokenizer(folder / "tokenizer.json"), folder)
        self._count = build_image_counter(folder, agent)
        self.image_token = "<|image_pad|>" if read_tiles(folder) is None else IMAGE_TOKEN
        self.image_token_id = self.tokenizer.token_to_id(self.image_token)
        self._template = read_chat_template(folder)
        self._template = close_thought(self._template, check_chat_template(folder, self))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tokenize: bool = False, add_generation_prompt: bool = True
    ) -> str:
        """Render messages as the checkpoint's own template writes them."""
        from transformers.utils.chat_template_utils import render_jinja_template  # needs no torch

        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            **self.tokenizer.special_tokens,
        )
        return str(rendered[0][0])  # texts, and where in them answers stand

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[tuple[int, int]]) -> SimpleNamespace:
        return SimpleNamespace(num_image_tokens=[self._count(width, height) for height, width in image_sizes])


class _LightTokenizer:
    def __init__(self, tokenizer: Any, folder: Path):
        self._tokenizer = tokenizer
        config = read_json(folder / "tokenizer_config.json")
        named = {name: config[name] for name in SPECIAL_TOKENS if config.get(name)}
        self.special_tokens = {n: t["content"] if isinstance(t, Mapping) else t for n, t in named.items()}
        self.eos_token_id = self.token_to_id(self.special_tokens.get("eos_token", "<|im_end|>"))

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def token_to_id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        return -1 if found is None else int(found)


def build_image_counter(folder: Path | None, agent: AgentConfig) -> Callable[[int, int], int]:
    """Return what counts the image tokens of a screenshot (width, height) under the agent's pixel budget.

    Without a checkpoint folder they are those of Qwen3-VL.
    """
    tiles = read_tiles(folder) if folder is not None else None
    if folder is None or tiles is None:
        side = read_pixels_per_token(folder) if folder is not None else DEFAULT_PIXELS_PER_TOKEN
        return lambda width, height: count_image_tokens(width, height, agent, side)
    tile, most, tokens_a_tile = tiles
    max_tiles = count_tiles_in_budget(agent.max_pixels, tile, most)
    return lambda width, height: len(write_image_tokens(choose_canvas(height, width, max_tiles, tile), tokens_a_tile))


def read_tiles(folder: Path) -> tuple[int, int, int] | None:
    """Return Llama-4's pixels a tile side, most tiles and tokens a tile; None in a checkpoint of another family."""
    fields = read_json(folder / "processor_config.json")
    image = fields.get("image_processor") or read_json(folder / "preprocessor_config.json")
    if "Llama4Processor" not in (fields.get("processor_class"), image.get("processor_class")):
        return None
    tile = image["size"]["height"]
    side = tile // fields.get("patch_size", 14)
    return tile, image.get("max_patches", 16), int(side**2 * fields.get("pixel_shuffle_ratio", 0.5) ** 2)


def count_image_tokens(
    width: int, height: int, agent: AgentConfig, pixels_per_token: int = DEFAULT_PIXELS_PER_TOKEN
) -> int:
    """Return the image tokens of a screenshot within the agent's pixel budget: Qwen-VL's resizing, in integers."""
    side = pixels_per_token
    h, w = round(height / side) * side, round(width / side) * side
    if h * w > agent.max_pixels:
        scale = math.sqrt(height * width / agent.max_pixels)
        h, w = (max(side, math.floor(n / scale / side) * side) for n in (height, width))
    elif h * w < agent.min_pixels:
        scale = math.sqrt(agent.min_pixels / (height * width))
        h, w = (math.ceil(n * scale / side) * side for n in (height, width))
    return (h // side) * (w // side)


def read_pixels_per_token(folder: Path) -> int:
    """Return how many pixels a side one image token covers, from a checkpoint's processor files."""
    if (tiles := read_tiles(folder)) is not None:
        return tiles[0] // math.isqrt(tiles[2])
    fields = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json")
    fields = fields.get("image_processor", fields)
    patch, merge = fields.get("patch_size"), fields.get("merge_size")
    return patch * merge if isinstance(patch, int) and isinstance(merge, int) else DEFAULT_PIXELS_PER_TOKEN


def _open_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: found no tokenizer that can be opened ({error}); restore the file") from error
