"""Uploads a model folder to the Hub: a list of what may leave this machine, everything else stays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sft.compute.tracking import shorten_path, shorten_paths
from sft.errors import UserError
from sft.files import is_within
from sft.models.model_folder import ADAPTER_CONFIG, ADAPTER_FILE, SMALL_FILES, find_base_name, read_json
from sft.recipe.recipe import load_yaml

# Weights, and what is needed to use them. No data, no ledger, no log, no optimiser state, no training_args.bin.
ALLOWED = (
    "README.md",
    *SMALL_FILES,
    "agent_config.json",
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "recipe.yaml",
    "versions.json",
    "training_curves.png",
)


def plan_upload(folder: Path) -> dict[str, Path | bytes]:
    """Return what is uploaded: each name in the repository with its file, or its content where paths are taken out.

    Raises:
        UserError: the folder holds no weights, or an adapter that names no base.
    """
    files = {path.name: path for pattern in ALLOWED for path in sorted(folder.glob(pattern)) if path.is_file()}
    if outside := [str(path) for path in files.values() if not is_within(path, folder)]:
        raise UserError(
            f"found links to files elsewhere: {', '.join(outside)}; expected files of the folder itself: a copy of "
            "what they point to, if it is to be uploaded"
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder}: found no weights; expected the folder of a trained or exported model")
    planned: dict[str, Path | bytes] = dict(files)
    if "recipe.yaml" in files:
        recipe = shorten_paths(load_yaml(files["recipe.yaml"]))
        planned["recipe.yaml"] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode()
    if ADAPTER_CONFIG in files:
        adapter = read_json(files[ADAPTER_CONFIG])
        adapter["base_model_name_or_path"] = shorten_path(str(find_base_name(folder)))
        planned[ADAPTER_CONFIG] = (json.dumps(adapter, indent=2) + "\n").encode()
    return planned


def push_trained(folder: Path, training: Mapping[str, Any]) -> str:
    """Upload what a run has saved, as its recipe's `hub_model_id` and `hub_private_repo` say."""
    is_private = training.get("hub_private_repo") is not False
    return push_folder(folder, training.get("hub_model_id") or folder.name, is_private=is_private)


def push_folder(folder: Path, repository: str, *, is_private: bool = True) -> str:
    """Upload a model folder in one commit, with the login of `hf auth login` or HF_TOKEN; returns its address.

    A repository that exists keeps its visibility; one that is created is private unless told otherwise.

    Raises:
        UserError: no weights, no login, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    planned = plan_upload(folder)
    api = HfApi()
    try:
        created = api.create_repo(repository, private=is_private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in planned.items()]
        commit = api.create_commit(created.repo_id, operations, commit_message="Upload the fine-tuned model")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        way_out = f"log in with `hf auth login`, then `python -m sft.export --model_path {folder} --push {repository}`"
        raise UserError(f"{repository}: found {reason}; expected a Hub that takes the upload: {way_out}") from error
    return str(commit.commit_url)
