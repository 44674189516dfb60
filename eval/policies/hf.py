"""Greedy answers of a vision-language model in this process, a whole batch at a time (engine `hf`)."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from eval.policies.answer_store import AnswerStore
from eval.policies.constrained import SchemaConstraint, build_answer_schema
from eval.policies.decoding import AnswerEnd, EncodedPrompt, Screenshot, generate_greedy, read_end_ids
from eval.policies.policy import RawAnswer, StepRequest
from eval.policies.prefix_store import PrefixStore
from sft.batches.encoder import Prompt, StepEncoder
from sft.data.screenshots import ScreenshotError, read_version
from sft.models.asked_tokens import asked_alone

N_WORKERS = 2
CAPACITY = 2_000_000_000  # bytes of prepared screenshots held at once; one of 1920x1080 is about 50 MB

Prepared = dict[str, Any] | ScreenshotError


class ModelPolicy:
    """Greedy answers of a vision-language model, a whole batch at a time."""

    def __init__(self, model: Any, encoder: StepEncoder, is_constrained: bool = False):
        self.model, self.encoder = model, encoder
        self.screenshots = ScreenshotLoader(encoder)
        self._store, self._prefixes = AnswerStore(), PrefixStore()
        self._end = AnswerEnd(encoder.tokenizer, read_end_ids(model))
        self._constraint = build_constraint(model, encoder) if is_constrained else None

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        """Answer each step that can be asked.

        One whose prompt is too long even without memory becomes an error, and so does one whose screenshot went bad
        after the data was checked.
        """
        started = time.perf_counter()
        # Before they are loaded: one that is written anew meanwhile will be another screenshot next time.
        versions = [read_version(request.image_path) for request in requests]
        loaded = self.screenshots.load(request.image_path for request in requests)
        self.screenshots.prepare(r.next_image_path for r in requests if r.next_image_path is not None)
        built = [self._build_prompt(r, loaded[r.image_path], version) for r, version in zip(requests, versions)]
        answers = iter(self._generate([prompt for prompt in built if not isinstance(prompt, ValueError)], started))
        return [RawAnswer("", error=str(p)) if isinstance(p, ValueError) else next(answers) for p in built]

    def _build_prompt(
        self, request: StepRequest, screenshot: Screenshot | ScreenshotError, version: tuple[int, int]
    ) -> tuple[Prompt, EncodedPrompt] | ValueError:
        if isinstance(screenshot, ScreenshotError):
            return screenshot
        path = request.image_path
        try:
            prompt = self.encoder.build_prompt(request.instruction, request.memory, path, request.elements)
        except ValueError as error:
            return error
        return prompt, self._encode(prompt, (path, version), screenshot)

    def _generate(self, built: Sequence[tuple[Prompt, EncodedPrompt]], started: float) -> list[RawAnswer]:
        if not built:
            return []
        limit = self.encoder.agent.max_answer_tokens
        prompts = [prompt for _, prompt in built]
        stores = self._store, self._prefixes
        with asked_alone(self.model):
            answers = generate_greedy(self.model, prompts, self._end, limit, *stores, self._constraint)
        latency_s = (time.perf_counter() - started) / len(built)
        return [
            RawAnswer(
                self.encoder.tokenizer.decode(answer.ids, skip_special_tokens=True),
                "stop" if answer.is_ended else "length",
                len(prompt.ids),
                len(answer.ids),
                latency_s,
                source.text,
                memory_shown=source.memory,
            )
            for answer, (source, prompt) in zip(answers, built)
        ]

    def _encode(self, prompt: Prompt, image_key: Any, screenshot: Screenshot) -> EncodedPrompt:
        layout = self.encoder.layout
        grid = screenshot[layout.grid_name][0].tolist()
        ids, types = self.encoder.encode_prompt(prompt.text, grid)
        n_prefix = len(types) - types[::-1].index(1) + prompt.elements.n_prefix_tokens
        positions = layout.place(np.array(types), grid)
        return EncodedPrompt(ids, positions, types.index(1), n_prefix, image_key, layout.pick_inputs(screenshot))


def build_constraint(model: Any, encoder: StepEncoder) -> SchemaConstraint:
    """Build what holds answers to the agent's answer schema."""
    n_tokens = model.get_output_embeddings().weight.shape[0]
    return SchemaConstraint(encoder.tokenizer, build_answer_schema(encoder.agent), n_tokens)


class ScreenshotLoader:
    """Prepares screenshots for the vision tower in threads; holds the most recently used, `CAPACITY` bytes of them.

    A file that is written anew is another screenshot.
    """

    def __init__(self, encoder: StepEncoder):
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(N_WORKERS, thread_name_prefix="screenshots")
        self._prepared: OrderedDict[tuple[Path, tuple[int, int]], Future[Prepared]] = OrderedDict()

    def load(self, paths: Iterable[Path]) -> dict[Path, Prepared]:
        """Return what `StepEncoder.encode_screenshots` gives of each distinct screenshot; waits where needed.

        One that cannot be opened is there as its error.
        """
        return {path: prepared.result() for path, prepared in self.prepare(paths).items()}

    def prepare(self, paths: Iterable[Path]) -> dict[Path, Future[Prepared]]:
        """Begin to prepare screenshots that will be asked for soon."""
        begun = {}
        for path in dict.fromkeys(paths):
            key = (path, read_version(path))
            if key not in self._prepared:
                self._prepared[key] = self._pool.submit(self._encode, path)
            self._prepared.move_to_end(key)
            begun[path] = self._prepared[key]
        n_bytes = sum(map(_count_bytes, self._prepared.values()))
        while n_bytes > CAPACITY and len(self._prepared) > len(begun):
            n_bytes -= _count_bytes(self._prepared.popitem(last=False)[1])
        return begun

    def _encode(self, path: Path) -> Prepared:
        try:
            return self.encoder.encode_screenshots([path])
        except ScreenshotError as error:
            return error


def _count_bytes(prepared: Future[Prepared]) -> int:
    """Count what a screenshot takes that is prepared already."""
    if not prepared.done() or isinstance(images := prepared.result(), ScreenshotError):
        return 0
    return sum(values.nbytes for values in images.values())
