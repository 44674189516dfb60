"""Merge a fine-tuned adapter into its unquantised base model and check what that changes.

python -m sft.export --model_path OUT --to DIR [--dtype bfloat16] [--check_csv CSV] [--push OWNER/NAME [--public]]

Writes DIR with safetensors shards, the processor and agent_config.json: a model folder for transformers and vLLM. It
is reopened, and its logits are compared with the adapter's on the base as it was trained (4 bits) and unquantised;
with --check_csv both are rolled out, and the difference in step-wise accuracy is printed with its interval. DIR
appears when all of this is done; a merge that is another model than the adapter on its base is refused.
Without `--to`, `--push` uploads OUT itself. Repositories are private unless --public is given.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from sft.errors import UserError, run_command
from sft.files import check_new, read_folder, write_new
from sft.models.model_folder import DTYPES, check_model_folder, find_base_name
from sft.rates import Rate
from sft.recipe.recipe import load_agent_config, load_model_settings
from sft.training.outputs import RUN_FILES
from sft.verbs import build_parser


def main(argv: list[str]) -> None:
    parser = build_parser("python -m sft.export", __doc__)
    parser.add_argument("--model_path", type=Path, required=True, help="folder that sft/run.py wrote")
    parser.add_argument("--to", type=Path, help="new folder for the merged model")
    parser.add_argument("--base_model", help="unquantised base model [the one it was trained on]")
    parser.add_argument("--dtype", choices=DTYPES, help="number format [that of the training]")
    parser.add_argument("--check_csv", help="trajectory CSV on which both are rolled out")
    parser.add_argument("--max_tasks", type=int, help="roll out only the first tasks of it")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to this Hub repository")
    parser.add_argument("--public", action="store_true", help="let everybody see a repository that --push creates")
    arguments = parser.parse_args(argv)
    if arguments.to is None and arguments.push is None:
        parser.error("expected --to DIR, --push OWNER/NAME, or both")
    load_agent_config(arguments.model_path)  # says what is missing in a folder that is not a trained model's
    with read_folder(arguments.model_path):  # what a training is writing there is half of another model
        if arguments.to is not None:
            export(arguments)
        if arguments.push is not None:
            from sft.training.push import push_folder

            url = push_folder(arguments.to or arguments.model_path, arguments.push, is_private=not arguments.public)
            print(f"Uploaded: {url}")


def export(arguments: argparse.Namespace) -> None:
    """Merge, reopen and compare; DIR appears under its name only when all of it is done and the merge is right.

    Raises:
        UserError: nothing was written: an adapter or base that cannot be merged, or a merge that is another model.
    """
    folder, to = arguments.model_path, arguments.to
    check_new(to)
    base_name = find_base_name(folder, arguments.base_model)
    if base_name is None:
        raise UserError(f"{folder}: found no adapter_config.json; expected an adapter: a full model needs no merge")
    settings = load_model_settings(folder)
    dtype = arguments.dtype or settings.dtype
    if arguments.check_csv:
        from sft.data.load import load_task_set

        agent = load_agent_config(folder)  # what is wrong with the data is told before anything is merged
        load_task_set(arguments.check_csv, actions=agent.actions, needs_elements=agent.use_grounding)
    base = find_base_folder(base_name, settings.model_revision)
    with write_new(to) as partial:
        n_tensors = merge(folder, base, partial, dtype)
        print(f"Merged {n_tensors} tensors")
        report = {"dtype": dtype, **compare(folder, partial, base, dtype, arguments)}
        (partial / "export_report.json").write_text(
            json.dumps(report, indent=2, default=Rate.as_json) + "\n", encoding="utf-8"
        )

    from sft.training.card import write_card

    write_card(to)
    print(f"Exported to {to}")


def merge(folder: Path, base: Path, to: Path, dtype: str) -> int:
    """Write the merged weights and all that belongs to them; return the number of tensors."""
    import torch

    from sft.export.merge import load_adapter, merge_weights
    from sft.models.processors import load_processor, save_processor

    n_tensors = merge_weights(base, load_adapter(folder), to, getattr(torch, dtype))
    agent = load_agent_config(folder)
    save_processor(load_processor(folder, agent.min_pixels, agent.max_pixels), to)
    for name in RUN_FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, to)
    return n_tensors


def compare(folder: Path, merged: Path, base: Path, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the merged model with the adapter, by logits and, with a CSV, by rollouts; print and return the result.

    Raises:
        UserError: the logits differ by more than rounding.
    """
    from eval.rollouts.export_check import check_logits, compare_logits, compare_rollouts

    report: dict[str, Any] = {"logits": []}
    for row in compare_logits(folder, merged, str(base), dtype, arguments.check_csv):
        report["logits"].append(row)
        gap = f"largest {row['max_gap']:.3g}, mean {row['mean_gap']:.3g}"
        print(f"logits, merged against {row['form']}: {gap}; same best token {100 * row['same_choice']:.1f} %")
    check_logits(report["logits"][0], dtype)
    if arguments.check_csv:
        compared = compare_rollouts(folder, merged, str(base), arguments.check_csv, arguments.max_tasks)
        report["rollout"] = {"n_tasks": compared["n_tasks"], "n_steps": compared["n_steps"], **compared["matchers"]}
        for matcher, rates in compared["matchers"].items():
            points = rates["swa"]["difference"].format(signed=True)
            print(f"SWA by {matcher}, merged - adapter: {points} points, {compared['n_steps']} steps")
    return report


def find_base_folder(name: str, revision: str) -> Path:
    """Return the folder of a base model: the one named, or the local cache's copy, fetched from the Hub if need be.

    Raises:
        UserError: it cannot be had, is quantised, or its files are not whole.
    """
    from sft.models.hub import BESIDE_WEIGHTS, find_base_model, find_folder

    find_base_model(name, revision)
    folder = find_folder(name, revision, (*BESIDE_WEIGHTS, "*.safetensors"))
    check_model_folder(folder)
    return folder


if __name__ == "__main__":
    run_command(main)
