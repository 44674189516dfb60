"""Encodes screenshots small enough for git and names them by content. Knows nothing of tasks."""

import hashlib
import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

# Small text stays readable at 45 (checked by eye). 80 takes 1.4 times the space; lossless, with or without a palette,
# was larger for 9 screenshots in 10.
WEBP_QUALITY = 45

Encoded = dict[Path, tuple[str, bytes]]


def encode_screenshots(paths: list[Path], cache: Path, workers: int) -> Encoded:
    """Map each PNG to (image id, WebP bytes); equal files give one image.

    `cache` keeps what was encoded, by hash and quality, so that the next build only encodes what is new.
    """
    cache.mkdir(parents=True, exist_ok=True)
    hashes = {path: sha256(path.read_bytes()) for path in paths}
    targets = {digest: cache / f"{digest}_q{WEBP_QUALITY}.webp" for digest in hashes.values()}
    sources = {targets[digest]: path for path, digest in hashes.items() if not targets[digest].exists()}
    with ProcessPoolExecutor(workers) as pool:
        for number, _ in enumerate(pool.map(encode_screenshot, sources.values(), sources.keys()), 1):
            if number % 100 == 0:
                print(f"{number}/{len(sources)} screenshots encoded", flush=True)
    content = {digest: target.read_bytes() for digest, target in targets.items()}
    return {path: (f"images/{sha256(content[digest])[:16]}.webp", content[digest]) for path, digest in hashes.items()}


def encode_screenshot(source: Path, target: Path) -> None:
    """Write a screenshot as lossy WebP; a build that is stopped leaves no half file under the target's name."""
    part = target.with_suffix(".part")
    part.write_bytes(encode(source.read_bytes()))
    part.rename(target)


def encode(png: bytes) -> bytes:
    """Turn a screenshot into what agents are trained on and shown."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "webp", quality=WEBP_QUALITY, method=6)
    return stream.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
