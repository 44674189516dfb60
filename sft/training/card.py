"""The model card, README.md of an output folder: rendered from the files beside it, again after each rollout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft.compute.fields import gpu_hours
from sft.compute.ledger import load_runs
from sft.compute.tracking import shorten_path
from sft.evaluations import load_evaluations
from sft.rates import read_rate

BEGIN, END = "<!-- generated from the files of this folder: begin -->", "<!-- generated: end -->"
TAGS = ["gui-agent", "clinical-software", "trl", "sft"]


def write_card(folder: Path) -> Path:
    """Write README.md, or renew the generated part of one: text around it and metadata a person added are kept."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    existing = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, after, kept = "", "", {}
    if BEGIN in existing and END in existing:
        card = ModelCard(existing)
        kept = card.data.to_dict()
        before, _, rest = card.text.partition(BEGIN)
        after = rest.partition(END)[2]
    evaluations = load_evaluations(folder)
    metadata = {**kept, **build_metadata(folder, evaluations)}
    if not evaluations:
        metadata.pop("model-index", None)
    body = f"{before.strip()}\n\n{BEGIN}\n\n{render_body(folder, evaluations)}\n{END}\n{after.rstrip()}".strip()
    text = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{body}\n"
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def build_metadata(folder: Path, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Hub's metadata, by its own data class; results stand in its `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, is_adapter = _load_recipe(folder), (folder / "adapter_config.json").is_file()
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
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=[*TAGS, "lora"] if is_adapter else TAGS,
        base_model=base if is_hub_id else None,
        model_name=folder.resolve().name if results else None,
        eval_results=results or None,
    )
    metadata: dict[str, Any] = data.to_dict()
    if is_hub_id:
        metadata["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return metadata


def render_body(folder: Path, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Render every section; what a folder does not tell is said to be missing."""
    recipe = _load_recipe(folder)
    base = shorten_path(str(recipe.get("model_name_or_path", "unknown")))
    sections = [
        f"# {folder.resolve().name}",
        f"{base}, fine-tuned to predict the next action of a user of clinical software from a screenshot, the goal "
        "and the memory it wrote itself at the step before.",
        *_render_results(evaluations),
        *_render_data(folder),
        *_render_recipe(folder, recipe),
        *_render_export(folder),
        *_render_compute(folder),
        *_render_limits(),
        *_render_loading(folder, base),
    ]
    return "\n\n".join(sections) + "\n"


def _render_results(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return ["## Results", "None yet: roll the model out with `eval/rollout.py`, which enters its results here."]
    rows = ["| test data | memory | matcher | SWA (%) | TA (%) |", "| --- | --- | --- | --- | --- |"]
    for e in evaluations:
        for matcher, rates in e["matchers"].items():
            swa, ta = (read_rate(rates[measure]).format() for measure in ("swa", "ta"))
            rows.append(f"| {describe_data(e)} | {e['mode']} | {matcher} | {swa} | {ta} |")
        majority = e["majority_baseline"]
        baseline = read_rate(majority).format()
        rows.append(f"| {e['csv']} | none | action, always {majority['action']} | {baseline} |  |")
        rows += [f"| **{note}** |  |  |  |  |" for note in e.get("notes", ())]
    text = (
        "Step-wise accuracy (SWA) and task accuracy (TA) with 95 % intervals over tasks; * is the exact binomial "
        "interval of tasks of one verdict."
    )
    return ["## Results", text, "\n".join(rows), *_render_gap(evaluations)]


def describe_data(evaluation: Mapping[str, Any]) -> str:
    """Return what was rolled out and how, as far as it is not the usual."""
    parts = [evaluation["csv"], f"{evaluation['n_tasks']} tasks", f"{evaluation['n_steps']} steps"]
    parts += [evaluation[key] for key, usual in (("engine", "hf"), ("decoding", "free")) if evaluation[key] != usual]
    return ", ".join(parts)


def _render_gap(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the recording's memory has above the model's own, of two runs of the same steps alone."""
    same = ("csv_sha256", "engine", "decoding", "n_tasks", "n_steps")
    lines = []
    for own in (e for e in evaluations if e["mode"] == "own"):
        what = f"Exposure gap on {describe_data(own)} (SWA with the recording's memory minus own)"
        if gap := own.get("exposure_gap"):
            gaps = [f"{read_rate(rate).format(signed=True)} points by {name}" for name, rate in gap.items()]
            lines.append(f"{what}, paired by task: {', '.join(gaps)}.")
            continue
        for teacher in evaluations:
            if teacher["mode"] == "teacher" and all(teacher[key] == own[key] for key in same):
                gaps = [
                    f"{100 * (rates['swa']['value'] - own['matchers'][name]['swa']['value']):+.1f} points by {name}"
                    for name, rates in teacher["matchers"].items()
                ]
                lines.append(f"{what}, of two runs, not paired: {', '.join(gaps)}.")
    return lines or ["Exposure gap: not measured; `eval/rollout.py --mode all` measures it."]


def _render_data(folder: Path) -> list[str]:
    data = _load_json(folder / "training_data.json")
    rows = ["| part | file | tasks | steps | screenshots | SHA-256 |", "| --- | --- | --- | --- | --- | --- |"]
    for part, d in data.items():
        name = shorten_path(d["csv"])
        counts = f"{d['n_tasks']} | {d['n_steps']} | {d['n_screenshots']}"
        rows.append(f"| {part} | {name} | {counts} | `{d['sha256']}` |")
    return ["## Training data", "\n".join(rows) if data else "Missing: the folder holds no training_data.json."]


def _render_recipe(folder: Path, recipe: Mapping[str, Any]) -> list[str]:
    agent = _load_json(folder / "agent_config.json")
    shown = {k: v for k, v in recipe.items() if k not in ("actions", "output_dir", "run_purpose", "country_iso_code")}
    text = yaml.safe_dump({k: shorten_if_path(v) for k, v in shown.items()}, sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{k} {v}" for k, v in _load_json(folder / "versions.json").items())
    prompt = f"Prompt version {agent.get('prompt_version', 'unknown')}; actions: " + ", ".join(
        action["name"] for action in agent.get("actions", [])
    )
    return ["## Recipe", prompt + ".", f"```yaml\n{text}```", f"Versions: {versions or 'unknown'}."]


def shorten_if_path(value: Any) -> Any:
    """Return a recipe's value without the folders of a path."""
    return shorten_path(value) if isinstance(value, str) and "/" in value else value


def _render_export(folder: Path) -> list[str]:
    report = _load_json(folder / "export_report.json")
    if not report:
        return []
    lines = [
        f"- logits against the {row['form']}: largest gap {row['max_gap']:.3g}, mean {row['mean_gap']:.3g}, same best "
        f"token {100 * row['same_choice']:.1f} %"
        for row in report["logits"]
    ]
    if "rollout" in report:
        rate = read_rate(report["rollout"]["action"]["swa"]["difference"])
        lines.append(f"- SWA by action, merged minus adapter: {rate.format(signed=True)} points")
    return ["## Export", f"Merged into the unquantised base model, {report['dtype']}.", "\n".join(lines)]


def _render_compute(folder: Path) -> list[str]:
    runs = [run for run in load_runs(folder) if run.start["kind"] == "training"]
    if not runs:
        return ["## Compute", "See the model's training folder: the ledger is not part of an export."]
    hardware = runs[-1].start["hardware"]
    gpus = ", ".join(g["name"] for g in hardware["gpus"]) or "no GPU"
    lines = [
        f"- {gpus}; {hardware['cpu_model']}, {hardware['cpu_cores']} cores, {hardware['ram_gb']} GB",
        f"- {len(runs)} training runs in this folder: {', '.join(run.outcome for run in runs)}",
        f"- {sum(map(gpu_hours, runs)):.3f} GPU hours, {sum(r.total('cpu_hours') for r in runs):.3f} CPU hours",
    ]
    if energy := sum(run.total("energy_kwh") for run in runs):
        co2e = sum(run.total("co2e_kg") for run in runs)
        carbon = f", {co2e:.4g} kg CO2e" if co2e else "; CO2e needs country_iso_code in the recipe"
        lines.append(f"- {energy:.4g} kWh (codecarbon, offline{carbon})")
    if flops := sum(run.total("flops") for run in runs):
        lines.append(f"- {flops:.4g} floating-point operations, estimated")
    return ["## Compute", "\n".join(lines)]


def _render_limits() -> list[str]:
    text = (
        "Evaluated offline, on recorded screens: a right action that the recording does not have counts as wrong. Not "
        "a medical device, and not validated for clinical use."
    )
    return ["## Limits", text]


def _render_loading(folder: Path, base: str) -> list[str]:
    name = folder.resolve().name
    given = f', base_model_name="{base}"' if (folder / "adapter_config.json").is_file() else ""
    code = (
        "from eval.predictor import load_model_for_inference\n\n"
        f'predictor = load_model_for_inference(model_path="{name}"{given})\n'
        'step = predictor.predict_step(image_path="screen.png", user_goal="Open the study")'
    )
    return ["## How to load", f"```python\n{code}\n```"]


def _load_recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _load_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
