"""Answers from vLLM, for large rollouts on GPUs (extra `vllm`), and what of an adapter it would leave out."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.policies.constrained import build_answer_schema
from eval.policies.policy import RawAnswer, StepRequest
from sft.agent import AgentConfig
from sft.batches.encoder import Prompt, StepEncoder
from sft.compute.hardware import has_gpu
from sft.data.screenshots import open_screenshot
from sft.errors import UserError
from sft.json_text import find_object
from sft.models.families import part_of
from sft.models.model_folder import ADAPTER_FILE, find_base_name, read_dtype, read_header, read_rank
from sft.models.processors import load_processor
from sft.recipe.recipe import load_model_settings

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("sft")


class VllmPolicy:
    """Greedy answers of a base model, with or without a LoRA adapter, at the precision it was trained in but 4 bit.

    vLLM shares the keys and values of equal prefixes by itself, so steps on one screenshot cost what they do in `hf`.
    """

    def __init__(self, model_path: str, base_model: str | None, agent: AgentConfig, is_constrained: bool):
        """Load the model.

        Raises:
            UserError: no vLLM here, or an adapter that vLLM takes in part only.
        """
        folder = Path(model_path)
        refuse_left_out(folder)
        # vLLM forks its engine, and a fork cannot use CUDA once this process has so much as looked for it
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            import torch
            from vllm import LLM, SamplingParams
            from vllm.lora.request import LoRARequest
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise UserError(f"--engine vllm: found no vllm ({error}); expected pip install -e '.[vllm]'") from error

        base = find_base_name(folder, base_model)
        options: dict[str, Any] = {}
        if base:
            dtype = load_model_settings(folder).dtype
            options = {"enable_lora": True, "max_lora_rank": round_rank(read_rank(folder)), "dtype": dtype}
        elif (folder / "config.json").is_file():  # vLLM's own choice would round an fp32 model to half precision
            options["dtype"] = read_dtype(folder)
        self.encoder = StepEncoder(load_processor(model_path, agent.min_pixels, agent.max_pixels), agent)
        self._llm = LLM(
            model=base or model_path,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"min_pixels": agent.min_pixels, "max_pixels": agent.max_pixels},
            max_model_len=agent.max_prompt_tokens + agent.max_answer_tokens,
            enable_prefix_caching=True,
            enforce_eager=torch.version.cuda is None or not has_gpu(),  # compiling for a CPU takes minutes
            **options,
        )
        self._adapter = LoRARequest("adapter", 1, str(folder)) if base else None
        structured = StructuredOutputsParams(json=build_answer_schema(agent)) if is_constrained else None
        self._sampling = SamplingParams(
            temperature=0.0, max_tokens=agent.max_answer_tokens, structured_outputs=structured
        )

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        """Answer each step that can be asked; a prompt too long and a screenshot gone bad become errors."""
        started = time.perf_counter()
        answers: dict[int, RawAnswer] = {}
        prompts: dict[int, Prompt] = {}
        opened: dict[Path, Image] = {}
        for i, request in enumerate(requests):
            try:
                if request.image_path not in opened:
                    opened[request.image_path] = open_screenshot(request.image_path)
                prompts[i] = self.encoder.build_prompt(
                    request.instruction, request.memory, request.image_path, request.elements
                )
            except ValueError as error:
                answers[i] = RawAnswer("", error=str(error))
        inputs = [
            {"prompt": prompt.text, "multi_modal_data": {"image": opened[requests[i].image_path]}}
            for i, prompt in prompts.items()
        ]
        outputs = self._llm.generate(inputs, self._sampling, lora_request=self._adapter, use_tqdm=False)
        latency_s = (time.perf_counter() - started) / max(len(prompts), 1)
        for (i, prompt), output in zip(prompts.items(), outputs):
            answer = output.outputs[0]
            n_prompt, n_answer = len(output.prompt_token_ids), len(answer.token_ids)
            found = find_object(answer.text, is_whole=False)  # kept up to where `hf` would have stopped
            answers[i] = RawAnswer(
                answer.text if found.fields is None else answer.text[: found.end],
                answer.finish_reason,
                n_prompt,
                n_answer,
                latency_s,
                prompt.text,
                memory_shown=prompt.memory,
            )
        return [answers[i] for i in range(len(requests))]


def round_rank(rank: int) -> int:
    """Return the least rank that vLLM prepares for and that an adapter of this rank fits into."""
    return next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank)


def find_left_out(folder: Path) -> list[str]:
    """Return in words what vLLM would leave out of an adapter's weights, nothing where it takes them all.

    vLLM (0.32) puts LoRA on the language model alone: it warns of LoRA elsewhere and continues without it, and of
    weights saved in full it takes none.
    """
    path = folder / ADAPTER_FILE
    names = list(read_header(path)) if path.is_file() else []
    is_lora = {name: ".lora_A." in name or ".lora_B." in name for name in names}
    parts = sorted({part_of(name) for name in names if is_lora[name]} - {"language"})
    in_full = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names if not is_lora[name]})
    left_out = [f"LoRA on {' and '.join(parts)}"] if parts else []
    return [*left_out, *([f"weights saved in full ({', '.join(in_full)})"] if in_full else [])]


def refuse_left_out(folder: Path) -> None:
    """Make sure that vLLM takes the whole of an adapter.

    Raises:
        UserError: it would answer with another model than the one that was trained.
    """
    if left_out := find_left_out(folder):
        raise UserError(
            f"{folder}: found {' and '.join(left_out)}, which vLLM leaves out of an adapter; expected LoRA on the "
            f"language model alone: merge it with python -m sft.export --model_path {folder} --to DIR, and give DIR"
        )


def warn_of_left_out(folder: Path) -> None:
    """Log what a server may leave out, where the adapter lies here: it is not known what it serves."""
    if left_out := find_left_out(folder):
        log.warning(
            "%s: found %s, which vLLM leaves out if it serves this adapter on its base; serve the model that "
            "python -m sft.export merges",
            folder,
            " and ".join(left_out),
        )
