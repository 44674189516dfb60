"""The model card, README.md of an output folder: rendered from the files beside it, again after each rollout."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, Undefined
from markupsafe import Markup

from sft.compute.ledger import load_runs
from sft.compute.tracking import shorten_path, shorten_paths
from sft.data.overlap import TRAINING_DATA
from sft.errors import UserError
from sft.evaluations import load_evaluations
from sft.files import is_within, write_whole
from sft.markdown import as_code_block, as_markdown_text, as_python_text
from sft.models.model_folder import is_adapter, read_json
from sft.rates import read_rate
from sft.recipe.recipe import load_yaml

BEGIN, END = "<!-- generated from the files of this folder: begin -->", "<!-- generated: end -->"
_TOLD_OF = ("README.md", "recipe.yaml", TRAINING_DATA, "agent_config.json", "versions.json", "export_report.json")
TAGS = ["gui-agent", "clinical-software", "trl", "sft"]


def write_card(folder: Path) -> Path:
    """Write README.md, or renew the generated part of one: text around it and metadata a person added are kept.

    Raises:
        UserError: a file that the card tells of is a link to one elsewhere, whose content it would publish.
    """
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if outside := [name for name in _TOLD_OF if (folder / name).is_symlink() and not is_within(folder / name, folder)]:
        raise UserError(
            f"{folder}: found links to files elsewhere: {', '.join(outside)}; expected files of the folder itself: "
            "the model card would publish what they point to"
        )
    existing = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, after, kept = "", "", {}
    if BEGIN in existing and END in existing:
        card = ModelCard(existing)
        kept = card.data.to_dict()
        before, _, rest = card.text.partition(BEGIN)
        after = rest.rpartition(END)[2]  # a recipe may hold the mark too
    evaluations = load_evaluations(folder)
    metadata = {**kept, **build_metadata(folder, evaluations)}
    if not evaluations:
        metadata.pop("model-index", None)
    body = f"{before.strip()}\n\n{BEGIN}\n\n{render_body(folder, evaluations)}\n{END}\n{after.rstrip()}".strip()
    text = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{body}\n"
    write_whole(path, text)
    return path


def build_metadata(folder: Path, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Hub's metadata, by its own data class; results stand in its `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe = _load_recipe(folder)
    base = shorten_path(str(recipe.get("model_name_or_path", "")))
    is_hub_id = "/" in base
    results = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="next GUI action",
            dataset_type="trajectories",
            dataset_name=evaluation["csv"],
            dataset_revision=evaluation["csv_sha256"][:16],
            metric_type="accuracy",
            metric_name=f"{measure.upper()} by {matcher}, {evaluation['mode']}",
            metric_value=round(rates[measure]["value"], 4),
        )
        for evaluation in evaluations
        if evaluation.get("is_unseen", True)  # a score on training tasks is no result
        for matcher, rates in evaluation["matchers"].items()
        for measure in ("swa", "ta")
    ]
    data = ModelCardData(
        library_name="peft" if is_adapter(folder) else "transformers",
        pipeline_tag="image-text-to-text",
        tags=[*TAGS, "lora"] if is_adapter(folder) else TAGS,
        base_model=base if is_hub_id else None,
        model_name=folder.resolve().name if results else None,
        eval_results=results or None,
    )
    metadata: dict[str, Any] = data.to_dict()
    if is_hub_id:
        metadata["base_model_relation"] = "adapter" if is_adapter(folder) else "finetune"
    return metadata


def render_body(folder: Path, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Render every section; what a folder does not tell is said to be missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, finalize=_escape
    )
    environment.filters |= {
        "data": describe_rollout,
        "rate": read_rate,
        "interval": lambda rate, signed=False: Markup(rate.format(signed)),
        "short": shorten_path,
        "code": lambda value: Markup(f"`{re.sub(r'[^A-Za-z0-9]', '?', str(value))}`"),
        "python": lambda name: Markup(as_python_text(name)),
    }
    recipe, runs = _load_recipe(folder), [run for run in load_runs(folder) if run.start["kind"] == "training"]
    shown = {k: v for k, v in recipe.items() if k not in ("actions", "output_dir", "run_purpose", "country_iso_code")}
    recipe_text = yaml.safe_dump(shorten_paths(shown), sort_keys=False, allow_unicode=True)
    text = environment.get_template("card.md.j2").render(
        name=folder.resolve().name,
        base=shorten_path(str(recipe.get("model_name_or_path", "unknown"))),
        is_adapter=is_adapter(folder),
        evaluations=evaluations,
        gaps=map(Markup, list_gaps(evaluations)),
        data=read_json(folder / TRAINING_DATA),
        recipe=Markup(as_code_block("yaml", recipe_text)),
        agent=read_json(folder / "agent_config.json"),
        versions={k: v for k, v in read_json(folder / "versions.json").items() if k != TRAINING_DATA},
        export=read_json(folder / "export_report.json"),
        runs=runs,
        total=lambda name: sum(run.total(name) for run in runs),
    )
    return text.rstrip() + "\n"


def _escape(value: Any) -> Any:
    """Keep a name, which whoever made the data chose, from being read as anything but text."""
    return value if isinstance(value, (int, float, Markup, Undefined)) else as_markdown_text(value)


def describe_rollout(evaluation: Mapping[str, Any]) -> str:
    """Return what was rolled out and how, as far as it is not the usual."""
    parts = [evaluation["csv"], f"{evaluation['n_tasks']} tasks", f"{evaluation['n_steps']} steps"]
    parts += [evaluation[key] for key, usual in (("engine", "hf"), ("decoding", "free")) if evaluation[key] != usual]
    return ", ".join(parts)


def list_gaps(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in Markdown what the recording's memory has above the model's own, of two runs of the same steps alone."""
    same = ("csv_sha256", "engine", "decoding", "n_tasks", "n_steps")
    lines = []
    for own in (e for e in evaluations if e["mode"] == "own"):
        by = {name: f"points by {as_markdown_text(name)}" for name in own["matchers"]}
        what = f"Exposure gap on {as_markdown_text(describe_rollout(own))} (SWA with the recording's memory minus own)"
        if gap := own.get("exposure_gap"):
            gaps = [
                f"{read_rate(rate).format(signed=True)} points by {as_markdown_text(name)}"
                for name, rate in gap.items()
            ]
            lines.append(f"{what}, paired by task: {', '.join(gaps)}.")
            continue
        for teacher in evaluations:
            if teacher["mode"] == "teacher" and all(teacher[key] == own[key] for key in same):
                gaps = [
                    f"{100 * (rates['swa']['value'] - own['matchers'][name]['swa']['value']):+.1f} {by[name]}"
                    for name, rates in teacher["matchers"].items()
                ]
                lines.append(f"{what}, of two runs, not paired: {', '.join(gaps)}.")
    return lines


def _load_recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    return load_yaml(path) if path.is_file() else {}
