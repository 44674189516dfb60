"""Messages and screenshots to prompt text and token ids: one path for training and rollout. Knows no datasets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sft.batches.cache import ScreenshotCache
from sft.batches.weights import weigh_tokens
from sft.data.screenshots import open_screenshot, read_upright_size, read_version
from sft.memory import EMPTY_MEMORY, Memory, fit_memory, memory_chars
from sft.models.layouts import Layout
from sft.prompts import AgentConfig, Message, build_prompt


@dataclass(frozen=True)
class Prompt:
    """One step's model input as text, and the messages it was rendered from.

    `n_tokens` counts image tokens in; `memory` is the memory that the text shows, `is_shortened` says that it was cut.
    """

    text: str
    n_tokens: int
    is_shortened: bool
    messages: Sequence[Message]
    memory: Memory


class StepEncoder:
    """Turns steps into token ids with a processor. `cache_dir` keeps resized screenshots on disk."""

    def __init__(self, processor: Any, agent: AgentConfig, cache_dir: Path | None = None):
        self.processor, self.tokenizer, self.agent = processor, processor.tokenizer, agent
        self._cache = ScreenshotCache(cache_dir, self.layout) if cache_dir else None

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

        Raises:
            ScreenshotError: the screenshot is missing or damaged.
            ValueError: the prompt is too long even without memory.
        """
        limit, budget = self.agent.max_prompt_tokens, memory_chars(memory)
        prompt = self._render(instruction, memory, image_path, elements, is_shortened=False)
        while prompt.n_tokens > limit and budget > 4:  # two empty objects are four characters
            budget = max(4, int(budget * 0.8))
            memory = fit_memory(memory, budget)
            prompt = self._render(instruction, memory, image_path, elements, is_shortened=True)
        if prompt.n_tokens > limit:
            raise ValueError(
                f"found a prompt of {prompt.n_tokens} tokens without any memory, "
                f"{self.count_image_tokens(image_path)} of them the screenshot; expected at most {limit}: "
                "raise max_prompt_tokens or lower max_pixels"
            )
        return prompt

    def encode_prompt(self, text: str, grid: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokenise a prompt, its one image placeholder replaced by the tokens that stand for the screenshot.

        `grid` is the screenshot's row of `layout.grid_name`. The result is what the family's processor gives for
        text and image together, so that a screenshot many prompts share is prepared once.

        Returns:
            The ids and, for each, its modality: 1 for an image token, 0 for text.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
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

    def count_prefix_tokens(self, image_path: Path) -> int:
        """Return how many tokens every prompt on a screenshot begins with: system message and image."""
        return self._n_system_tokens + self.count_image_tokens(image_path)

    @cached_property
    def _n_system_tokens(self) -> int:
        messages = build_prompt("", EMPTY_MEMORY, self.agent)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids.index(self.processor.image_token_id)

    def _count_tokens_of_size(self, width: int, height: int) -> int:
        return int(self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0])

    def _render(
        self,
        instruction: str,
        memory: Memory,
        image_path: Path,
        elements: Sequence[Mapping[str, Any]],
        is_shortened: bool,
    ) -> Prompt:
        messages = build_prompt(instruction, memory, self.agent, elements)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        n_text_tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        # the template holds one placeholder that the processor repeats once an image token
        return Prompt(text, n_text_tokens - 1 + self.count_image_tokens(image_path), is_shortened, messages, memory)


def find_tight_answer_limit(answers: Iterable[tuple[str, int]], agent: AgentConfig) -> str | None:
    """Say that `max_answer_tokens` would cut the memory that `memory_budget_chars` allows, or return None.

    `answers` are those of the data with their tokens: in Chinese, or in digits and ids, a character takes three times
    the tokens of English. Where no answer has a third of the budget's length, memory is not expected to reach it.
    """
    if agent.memory_writer != "model" or not (agent.use_short_term or agent.use_long_term):
        return None
    sizes = [(len(text), n_tokens) for text, n_tokens in answers]
    longest = max((n_chars for n_chars, _ in sizes), default=0)
    needed = round(agent.memory_budget_chars * max((n_tokens / n_chars for n_chars, n_tokens in sizes), default=0.0))
    if needed <= agent.max_answer_tokens or 3 * longest < agent.memory_budget_chars:
        return None
    return (
        f"memory_budget_chars={agent.memory_budget_chars} is up to {needed} tokens in texts like these, and "
        f"max_answer_tokens={agent.max_answer_tokens} would cut an answer with such a memory: raise max_answer_tokens "
        "or lower memory_budget_chars"
    )


@lru_cache(maxsize=65_536)
def _read_size(path: Path, version: tuple[int, int]) -> tuple[int, int]:
    """Remember sizes of files as they are: `version` changes with the file."""
    return read_upright_size(path)
