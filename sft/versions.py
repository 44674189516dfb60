"""Versions of this package and of what it runs on, and hashes of files. Knows nothing of models or data."""

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the contents of files, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
