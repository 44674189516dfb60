"""Whether a base model can be had: a local folder, the local cache or the Hub. Loads nothing."""

import re
from pathlib import Path

from sft.errors import UserError


def find_base_model(model_name_or_path: str, revision: str = "main", needs_weights: bool = True) -> None:
    """Make sure the base model can be had: a local folder, the local cache, or the Hub, asked once.

    Raises:
        UserError: what is missing and how to point to a local folder.
    """
    from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache

    way_out = "download the model on a machine with access and pass --model_name_or_path /path/to/its/folder"
    path = Path(model_name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: found no config.json; expected a model folder as save_pretrained writes it")
        if needs_weights and not any(path.glob("*.safetensors")):
            raise UserError(f"{path}: found no *.safetensors; expected the model's weights there: {way_out}")
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_name_or_path) or path.parent.is_dir():
        raise UserError(f"{path}: found no such folder; expected a model folder or a Hub id such as owner/name")
    if isinstance(try_to_load_from_cache(model_name_or_path, "config.json", revision=revision), str):
        return
    problem = "the Hub is switched off (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        try:  # one plain request: the library's own download retries for half a minute
            url = hf_hub_url(model_name_or_path, "config.json", revision=revision)
            response = get_session().head(url, timeout=5, follow_redirects=True)
            if response.status_code == 200:
                return
            problem = f"the Hub answered {response.status_code}" + (
                "; for a gated or private model log in with `hf auth login`"
                if response.status_code in (401, 403)
                else ""
            )
        except OSError as error:
            problem = f"the Hub cannot be reached ({error})"
        except Exception as error:
            if not type(error).__module__.startswith("httpx"):  # httpx or httpx2, as huggingface_hub has it
                raise
            problem = f"the Hub cannot be reached ({error})"
    raise UserError(
        f"model_name_or_path: found no folder {model_name_or_path} and no copy in the local cache, and {problem}; "
        f"{way_out}"
    )
