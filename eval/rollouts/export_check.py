"""Whether a merged model is the adapter it came from: logits side by side, and a paired rollout of both."""

import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval.predictor import load_model_for_inference
from eval.rollouts.walk import walk_tasks
from eval.scoring.comparison import compare_runs
from eval.scoring.matching import judge
from sft.batches.collator import PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.data.load import load_task_set
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY
from sft.models.model import load_for_inference
from sft.models.processors import load_processor
from sft.recipe.recipe import load_agent_config, load_model_settings
from sft.recipe.settings import ModelSettings

N_STEPS = 4
# The largest mean gap between logits that is rounding, as a share of their standard deviation.
MOST_GAP = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.2}
ANSWER = '{"action":"CLICK","target":"Search"}'


def compare_logits(folder: Path, merged: Path, base: str, dtype: Any, check_csv: str | None) -> list[dict[str, Any]]:
    """Compare the logits of a few answers between the merged model and the adapter on each form of its base.

    The steps are some of the first tasks of `check_csv`, or one made up where there is none. Each model is
    gone before the next is loaded.

    Returns:
        One row per form, that of the unquantised base first: `form`, `max_gap`, `mean_gap`, `same_choice`, the share
        of tokens with the same best one, and `spread`, the standard deviation of the adapter's logits.
    """
    trained = replace(load_model_settings(folder), model_name_or_path=base)
    forms = {f"adapter on the {dtype} base": replace(trained, load_in_4bit=False, dtype=dtype)}
    if trained.load_in_4bit:
        forms["adapter on the 4-bit base"] = trained
    with tempfile.TemporaryDirectory() as scratch:
        batches = list(_build_batches(merged, check_csv, Path(scratch)))
    reference = _read_logits(ModelSettings(str(merged), dtype=dtype, load_in_4bit=False), None, batches)
    return [
        {"form": form, **_describe_gap(reference, _read_logits(settings, folder, batches))}
        for form, settings in forms.items()
    ]


def check_logits(row: Mapping[str, Any], dtype: str) -> None:
    """Make sure that a merged model's logits differ from the adapter's on the unquantised base by rounding only.

    Raises:
        UserError: the merged model is another one.
    """
    if not row["mean_gap"] <= MOST_GAP[dtype] * row["spread"]:  # one that is not a number is refused too
        raise UserError(
            f"found logits of the merged model {row['mean_gap']:.3g} away from those of the {row['form']} on average, "
            f"where these spread by {row['spread']:.3g}; expected at most {MOST_GAP[dtype]:g} of that, which is "
            f"rounding in {dtype}: the merge is another model, and nothing was written"
        )


def compare_rollouts(folder: Path, merged: Path, base: str, check_csv: str, max_tasks: int | None) -> dict[str, Any]:
    """Roll adapter and merged model out with their own memory on the same tasks, and compare them (merged minus)."""
    agent = load_agent_config(merged)
    tasks = load_task_set(check_csv, actions=agent.actions, task_end=max_tasks, needs_elements=agent.use_grounding)
    runs = {}
    for name, path, of in (("merged", merged, None), ("adapter", folder, base)):
        predictor = load_model_for_inference(path, of)
        runs[name] = judge(walk_tasks(tasks.trajectories, predictor.policy, agent, "own", 16), agent.actions)
        del predictor
        _free()
    return compare_runs(runs["merged"], runs["adapter"], names=("merged", "adapter"))


def _build_batches(folder: Path, check_csv: str | None, scratch: Path) -> Iterator[dict[str, torch.Tensor]]:
    agent = load_agent_config(folder)
    encoder = StepEncoder(load_processor(folder, agent.min_pixels, agent.max_pixels), agent)
    collate = PaddingCollator(encoder)
    if check_csv is None:
        path = scratch / "screen.png"
        Image.linear_gradient("L").resize((640, 400)).convert("RGB").save(path)
        prompt = encoder.build_prompt("Open the study", EMPTY_MEMORY, path)
        yield collate([{"prompt": prompt.text, "completion": ANSWER, "image": str(path)}])
        return
    tasks = load_task_set(check_csv, actions=agent.actions, needs_elements=agent.use_grounding).trajectories
    rows = build_step_rows(tasks[:N_STEPS], check_csv, encoder, show_progress=False).dataset
    n_chosen = min(N_STEPS, len(rows))
    for i in range(n_chosen):  # spread over the tasks
        yield collate([rows[i * len(rows) // n_chosen]])


def _read_logits(
    settings: ModelSettings, adapter: Path | None, batches: Sequence[dict[str, torch.Tensor]]
) -> list[torch.Tensor]:
    """Return the logits that predict each answer's tokens: one (n tokens, vocabulary) a batch, fp32.

    The model lives in here only: two at once would take the memory of two.
    """
    try:
        return _run(load_for_inference(settings, adapter), batches)
    finally:
        _free()


@torch.no_grad()
def _run(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    found = []
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits[:, :-1]
        found.append(logits[(batch["labels"][:, 1:] != -100).to(logits.device)].float().cpu())
    return found


def _describe_gap(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> dict[str, float]:
    a, b = torch.cat(list(reference)), torch.cat(list(other))
    gap = (a - b).abs()
    same = (a.argmax(dim=-1) == b.argmax(dim=-1)).float().mean()
    return {
        "max_gap": gap.max().item(),
        "mean_gap": gap.mean().item(),
        "same_choice": same.item(),
        "spread": b.std().item(),
    }


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
