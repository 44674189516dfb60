"""Versions of this package and of what it runs on. Knows nothing of models or data."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sft.files import hash_files

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "pillow")


def read_versions() -> dict[str, str]:
    """Return the version of Python and of every package that shapes a result; uninstalled ones are left out."""
    versions = {"python": platform.python_version(), "code": hash_code()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def hash_code() -> str:
    """Return a short hash over the source files of `sft` and `eval`: two runs with one hash ran the same code."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(
        p
        for folder in ("sft", "eval")
        for p in (root / folder).rglob("*")
        if p.suffix in (".py", ".j2", ".css", ".js")
    )
    return hash_files(files)[:12]
