"""What of a processor renders prompts and counts tokens, for commands that start without torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sft.errors import UserError
from sft.prompts import AgentConfig

DEFAULT_PIXELS_PER_TOKEN = 32  # a side, of Qwen3-VL: patches of 16 px, merged two by two; Qwen2.5-VL has 28


class LightProcessor:
    """Stands in for a Qwen-VL processor in `StepEncoder`; a test holds its text and its counts to the real one's."""

    image_token = "<|image_pad|>"

    def __init__(self, folder: str | Path, agent: AgentConfig):
        """Read tokenizer, chat template and image sizes of a checkpoint folder.

        Raises:
            UserError: the folder lacks one of the files.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder}: found no tokenizer.json; expected the folder of a base model")
        self.tokenizer = _LightTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
        self.image_token_id = self.tokenizer.token_to_id(self.image_token)
        self._template = _build_template(folder)
        self._agent, self._pixels_per_token = agent, read_pixels_per_token(folder)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tokenize: bool = False, add_generation_prompt: bool = True
    ) -> str:
        """Render messages as the checkpoint's own template writes them."""
        return str(self._template.render(messages=messages, add_generation_prompt=add_generation_prompt))

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[tuple[int, int]]) -> SimpleNamespace:
        counts = [
            count_image_tokens(width, height, self._agent, self._pixels_per_token) for height, width in image_sizes
        ]
        return SimpleNamespace(num_image_tokens=counts)


class _LightTokenizer:
    def __init__(self, tokenizer: Any, folder: Path):
        self._tokenizer = tokenizer
        config = _read_json(folder / "tokenizer_config.json")
        eos = config.get("eos_token", "<|im_end|>")
        self.eos_token_id = self.token_to_id(eos["content"] if isinstance(eos, Mapping) else eos)

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def token_to_id(self, token: str) -> int:
        return int(self._tokenizer.token_to_id(token))


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
    fields = _read_json(folder / "preprocessor_config.json") or _read_json(folder / "processor_config.json")
    fields = fields.get("image_processor", fields)
    patch, merge = fields.get("patch_size"), fields.get("merge_size")
    return patch * merge if isinstance(patch, int) and isinstance(merge, int) else DEFAULT_PIXELS_PER_TOKEN


def _build_template(folder: Path) -> Any:
    """Compile the chat template under the settings that transformers renders templates with."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file = folder / "chat_template.jinja"
    source = (
        file.read_text(encoding="utf-8")
        if file.is_file()
        else _read_json(folder / "tokenizer_config.json").get("chat_template")
    )
    if not source:
        raise UserError(f"{folder}: found no chat template; expected chat_template.jinja: copy it from the base model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False, **kwargs)
    return environment.from_string(source)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: found broken JSON ({error}); restore the file") from error
    return fields if isinstance(fields, dict) else {}
