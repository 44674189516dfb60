"""Messages and screenshots to prompt text and token ids: one path for training and rollout. Knows no datasets."""

import io
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sft.agent import AgentConfig
from sft.data.screenshots import RULES_VERSION, hash_screenshot, open_screenshot, read_upright_size, read_version
from sft.errors import UserError
from sft.files import write_whole
from sft.json_text import dump_json
from sft.memory import EMPTY_MEMORY, Memory, fit_memory, memory_chars
from sft.models.images import Layout
from sft.prompts import Message, build_prompt, format_elements, limit_elements

Field = Literal["action", "target", "memory"]

_FIELD_OF_KEY: Mapping[str, Field] = {"action": "action", "short_term": "memory", "long_term": "memory"}
_DECODER = json.JSONDecoder()
_MAX_FITTED = 10_000  # lists of elements that are remembered: a few kB each


@dataclass(frozen=True)
class Prompt:
    """One step's model input as text, and the messages it was rendered from.

    `n_tokens` counts the `n_image_tokens` in. `tail`: (n,) int32, the ids of the text behind the screenshot. `memory`
    is the memory that the text shows, `is_shortened` says that it was cut.
    """

    text: str
    n_tokens: int
    n_image_tokens: int
    tail: np.ndarray
    elements: "ShownElements"
    is_shortened: bool
    messages: Sequence[Message]
    memory: Memory


@dataclass(frozen=True)
class ShownElements:
    """What a prompt shows of its screenshot's elements; nothing where the agent does not use them.

    `n_tokens` counts their list alone. The first `n_prefix_tokens` behind the screenshot end with them; 0 in prompt
    version 1, where they come last.
    """

    elements: Sequence[Mapping[str, Any]] = ()
    n_tokens: int = 0
    n_left_out: int = 0
    n_prefix_tokens: int = 0


class StepEncoder:
    """Turns steps into token ids with a processor. `cache_dir` keeps resized screenshots on disk."""

    def __init__(self, processor: Any, agent: AgentConfig, cache_dir: Path | None = None):
        self.processor, self.tokenizer, self.agent = processor, processor.tokenizer, agent
        self._cache = ScreenshotCache(cache_dir, self.layout) if cache_dir else None
        self._fitted: dict[str, ShownElements] = {}
        self._last: tuple[str, list[int]] = ("", [])  # text and its ids

    @cached_property
    def layout(self) -> Layout:
        """What the model's family makes of a screenshot."""
        return self.processor.build_layout()

    def build_prompt(
        self,
        instruction: str,
        memory: Memory,
        image_path: Path,
        elements: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Render a prompt of at most `agent.max_prompt_tokens`; the memory is shortened where it would be longer.

        Of the elements those are shown that `fit_elements` leaves.

        Raises:
            ScreenshotError: the screenshot is missing or damaged.
            ValueError: the prompt is too long even without memory.
        """
        limit, budget = self.agent.max_prompt_tokens, memory_chars(memory)
        shown = self.fit_elements(elements)
        prompt = self._render(instruction, memory, image_path, shown, is_shortened=False)
        while prompt.n_tokens > limit and budget > 4:  # two empty objects are four characters
            budget = max(4, int(budget * 0.8))
            memory = fit_memory(memory, budget)
            prompt = self._render(instruction, memory, image_path, shown, is_shortened=True)
        if prompt.n_tokens > limit:
            n_elements = shown.n_tokens
            raise ValueError(
                f"found a prompt of {prompt.n_tokens} tokens without any memory, "
                f"{self.count_image_tokens(image_path)} of them the screenshot"
                f"{f' and {n_elements} its elements' if n_elements else ''}; expected at most {limit}: "
                f"raise max_prompt_tokens or lower max_pixels{' or max_element_tokens' if n_elements else ''}"
            )
        return prompt

    def encode_prompt(self, text: str, grid: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokenise a prompt, its one image placeholder replaced by the tokens that stand for the screenshot.

        `grid` is the screenshot's row of `layout.grid_name`. The result is what the family's processor gives for
        text and image together, so that a screenshot many prompts share is prepared once.

        Returns:
            The ids and, for each, its modality: 1 for an image token, 0 for text.
        """
        ids = self._tokenize(text)
        image, at = self.layout.write_tokens(grid), ids.index(self.processor.image_token_id)
        types = [0] * at + [1] * len(image) + [0] * (len(ids) - at - 1)
        return [*ids[:at], *image, *ids[at + 1 :]], types

    def encode_screenshots(self, image_paths: Sequence[Path]) -> dict[str, Any]:
        """Prepare screenshots for the vision tower.

        Returns:
            `pixel_values`: (sum of patches, patch dim) float32; `image_grid_thw`: (n_images, 3) int64. With Llama-4
            (sum of tiles, 3, tile, tile) and `aspect_ratios`: (n_images, 2).

        Raises:
            ScreenshotError: one is missing or damaged; `path` says which.
        """
        if self._cache is None:
            return self.layout.encode_images([open_screenshot(path) for path in image_paths])
        return self.layout.encode_prepared([self._cache.load(path) for path in image_paths])

    def encode_completion(self, answer_text: str) -> list[int]:
        """Return the ids the loss is computed on: the answer and the end of the turn, nothing else."""
        return [*self.tokenizer(answer_text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def weigh_completion(self, answer_text: str, weights: Mapping[str, float]) -> list[float]:
        """Return one loss weight for each id of `encode_completion`; the end of the turn has 1.0."""
        offsets = self.tokenizer(answer_text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [*weigh_tokens(answer_text, offsets, weights), 1.0]

    def count_image_tokens(self, image_path: Path) -> int:
        """Return how many tokens a screenshot takes at the agent's pixel budget, from its size alone."""
        return self._count_tokens_of_size(*_read_size(image_path, read_version(image_path)))

    def fit_elements(self, elements: Sequence[Mapping[str, Any]]) -> ShownElements:
        """Choose the elements that a prompt shows: the first `max_elements` of them, or as many as fit.

        A list of more than `max_element_tokens` loses its last elements. What is shown depends on the elements alone.
        """
        if not self.agent.use_grounding:
            return ShownElements()
        key = dump_json(list(elements))
        if key not in self._fitted:
            if len(self._fitted) >= _MAX_FITTED:
                self._fitted.clear()
            self._fitted[key] = self._fit_elements(elements)
        return self._fitted[key]

    def _fit_elements(self, elements: Sequence[Mapping[str, Any]]) -> ShownElements:
        def count(n_shown: int) -> int:
            return len(self._tokenize(format_elements(elements[:n_shown], self.agent)))

        if self.agent.prompt_version == "1":
            return ShownElements(elements, count(len(elements)))
        n_shown, most = len(limit_elements(elements, self.agent)), self.agent.max_element_tokens
        if count(n_shown) > most:
            n_shown = max(bisect_right(range(n_shown), most, key=count) - 1, 0)
        shown = elements[:n_shown]
        line = format_elements(shown, self.agent)
        text = self._render_text(build_prompt("", EMPTY_MEMORY, self.agent, shown))
        ids = self._tokenize(text[: text.index(line) + len(line) + 1])  # with the line's end
        n_prefix = len(ids) - ids.index(self.processor.image_token_id) - 1
        return ShownElements(shown, count(n_shown), len(elements) - n_shown, n_prefix)

    def _count_tokens_of_size(self, width: int, height: int) -> int:
        return int(self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0])

    def _render(
        self, instruction: str, memory: Memory, image_path: Path, shown: ShownElements, is_shortened: bool
    ) -> Prompt:
        messages = build_prompt(instruction, memory, self.agent, shown.elements)
        text = self._render_text(messages)
        ids = self._tokenize(text)
        # the template holds one placeholder that the processor repeats once an image token
        n_image_tokens = self.count_image_tokens(image_path)
        n_tokens = len(ids) - 1 + n_image_tokens
        tail = np.array(ids[ids.index(self.processor.image_token_id) + 1 :], dtype=np.int32)
        return Prompt(text, n_tokens, n_image_tokens, tail, shown, is_shortened, messages, memory)

    def _render_text(self, messages: Sequence[Message]) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _tokenize(self, text: str) -> list[int]:
        """Return a text's ids, not to be changed; a rollout asks twice in a row, for a prompt's length and for it."""
        last, ids = self._last
        if text != last:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._last = text, ids
        return ids


class ScreenshotCache:
    """Keeps one uint8 array a screenshot, keyed by the file's content, how it is opened and the pixel budget.

    Safe for several processes at once: a file appears whole or not at all. Arrays are uncompressed: 3 bytes a pixel
    after resizing, at most 3 * `max_pixels` bytes a screenshot.
    """

    def __init__(self, folder: Path, layout: Layout):
        self.folder, self.layout = folder, layout
        self._hash = lru_cache(maxsize=None)(hash_screenshot)
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, path: Path) -> np.ndarray:
        """Return the screenshot as the family resizes it: (3, height, width) uint8.

        Raises:
            ScreenshotError: the screenshot is missing or damaged.
            UserError: what was kept of it is damaged.
        """
        file = self.folder / f"{self._hash(path)}_{self.layout.name_budget()}_r{RULES_VERSION}.npy"
        if not file.is_file():
            self._write(file, self.layout.prepare(open_screenshot(path)))
        try:
            return np.load(file)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file}: found a damaged file ({error}); delete it, it is made anew") from error

    def _write(self, file: Path, pixels: np.ndarray) -> None:
        array = io.BytesIO()
        np.save(array, pixels)
        write_whole(file, array.getvalue(), is_forced=False)


def find_field_spans(answer: str) -> list[tuple[int, int, Field]]:
    """Return (start, end, field) in characters for each key and value of an answer as `format_answer` writes it.

    `target` and the action's arguments count as "target". Braces and commas between fields belong to none.
    """
    spans: list[tuple[int, int, Field]] = []
    at = 1  # behind the opening brace
    while at < len(answer) - 1:
        start = at
        key, at = _DECODER.raw_decode(answer, at)
        _, at = _DECODER.raw_decode(answer, at + 1)  # behind the colon
        spans.append((start, at, _FIELD_OF_KEY.get(key, "target")))
        at += 1  # behind the comma
    return spans


def weigh_tokens(answer: str, offsets: Sequence[tuple[int, int]], weights: Mapping[str, float]) -> list[float]:
    """Return one weight a token: that of the field its first character is in, 1.0 outside every field.

    `offsets` are the tokens' (start, end) characters in `answer`. A field without a weight has 1.0.
    """
    result = []
    spans = find_field_spans(answer)
    for start, _ in offsets:
        field = next((f for s, e, f in spans if s <= start < e), None)
        result.append(1.0 if field is None else float(weights.get(field, 1.0)))
    return result


@lru_cache(maxsize=65_536)
def _read_size(path: Path, version: tuple[int, int]) -> tuple[int, int]:
    """Remember sizes of files as they are: `version` changes with the file."""
    return read_upright_size(path)
