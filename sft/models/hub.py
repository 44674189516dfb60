"""Where a model is: a local folder, the local cache or the Hub, and whether it can be had. Loads nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.models.model_folder import check_model_folder, find_config_problems, read_json

BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt")  # patterns of names
_WAY_OUT = "download the model on a machine with access and pass --model_name_or_path /path/to/its/folder"


def find_base_model(model_name_or_path: str, revision: str = "main", needs_weights: bool = True) -> None:
    """Make sure the base model can be had and loaded: a local folder, the local cache, or the Hub, asked once.

    Raises:
        UserError: what is missing or wrong, and the way out.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    path = Path(model_name_or_path)
    if path.is_dir():
        return check_model_folder(path, needs_weights)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_name_or_path) or path.parent.is_dir():
        raise UserError(f"{path}: found no such folder; expected a model folder or a Hub id such as owner/name")
    cached = try_to_load_from_cache(model_name_or_path, "config.json", revision=revision)
    if isinstance(cached, str):
        if constants.HF_HUB_OFFLINE:
            return check_model_folder(Path(cached).parent, needs_weights)
        config = read_json(Path(cached))
    else:
        config = _ask_hub(model_name_or_path, revision)
    if problems := find_config_problems(config, model_name_or_path):
        raise UserError("\n".join(problems))
    return None


def find_folder(model_name_or_path: str | Path, revision: str = "main", files: Sequence[str] = BESIDE_WEIGHTS) -> Path:
    """Return the folder of a model: the one named, or the cache's copy of a Hub model, fetched where it is missing.

    `files` are patterns of what is needed of a Hub model.

    Raises:
        UserError: no such folder, or a Hub model that cannot be had.
    """
    from huggingface_hub import snapshot_download

    path, name = Path(model_name_or_path), str(model_name_or_path)
    if path.is_dir():
        return path
    if isinstance(model_name_or_path, Path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise UserError(
            f"{path}: found no such folder; expected a model folder: check the path, or download the model"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the library's own errors are of these
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: found no such folder and could not fetch it from the hub ({reason}); expected a local model "
            "folder or a reachable hub model: download it and give the folder's path"
        ) from error


def _ask_hub(name: str, revision: str) -> dict[str, Any]:
    """Return a Hub model's `config.json`, by one plain request: the library's own retries for half a minute."""
    from huggingface_hub import constants, get_session, get_token, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    problem = "the Hub is switched off (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        url = hf_hub_url(name, "config.json", revision=revision)
        try:
            response = get_session().get(url, headers=build_hf_headers(), timeout=5, follow_redirects=True)
            if response.status_code == 200:
                config = response.json()
                return config if isinstance(config, dict) else {}
            problem = _describe_refusal(response, name, revision, has_token=get_token() is not None)
        except (OSError, ValueError) as error:
            problem = f"the Hub cannot be reached ({error})"
        except Exception as error:
            if not type(error).__module__.startswith("httpx"):  # httpx or httpx2, as huggingface_hub has it
                raise
            problem = f"the Hub cannot be reached ({error})"
    raise UserError(
        f"model_name_or_path: found no folder {name} and no copy in the local cache, and {problem}; {_WAY_OUT}"
    )


def _describe_refusal(response: Any, name: str, revision: str, has_token: bool) -> str:
    """Say in words why the Hub did not give a file; its error code tells cases of one status apart."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    answered, log_in = f"the Hub answered {status}", "log in with `hf auth login` or set HF_TOKEN"
    if status == 403 or code == "GatedRepo":
        if not has_token:
            return f"{answered}: the model is gated; accept its terms there, then {log_in}"
        return (
            f"{answered}: the account you are logged in with has no access; ask for it on the model's page, and see "
            "that the token may read gated or private models"
        )
    if status == 401:
        if not has_token:
            return (
                f"{answered}: there is no such model, or it is gated or private: for a gated or private model {log_in}"
            )
        return f"{answered}: it does not know the token; log in anew with `hf auth login`, or set another HF_TOKEN"
    if status == 404:
        if code == "RevisionNotFound":
            return f"{answered}: the model has no revision {revision!r} (model_revision)"
        if code == "EntryNotFound":
            return f"{answered}: the model has no config.json (is it GGUF alone?); choose the one it was made of"
        return f"{answered}: there is no such model" + ("" if has_token else f"; if it is private, {log_in}")
    if status == 429:
        seconds = response.headers.get("Retry-After", "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait some minutes"
        return f"{answered}: too many requests; {wait} and start again" + ("" if has_token else ", or log in")
    if status >= 500:
        return f"{answered}: it is out of order for now; start again later"
    return answered
