"""Which pictures may a report show? Those that the rollout was run on, whatever files its folder names."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from eval.rollouts.run_info import RunInfo
from eval.step_result import StepResult
from sft.data.image_paths import resolve_image
from sft.data.screenshots import hash_screenshot


def find_recorded_hashes(steps: Iterable[StepResult], info: RunInfo, image_root: Path) -> dict[str, str]:
    """Return by image id the SHA-256 of what the model was shown: a run's folder may name any file of this machine.

    A rollout of an older version has one hash over all screenshots alone; where they are no longer all there, none of
    them can be told from any other picture, and none is named.
    """
    recorded = {step.image_id: step.image_sha256 for step in steps}
    if all(recorded.values()):
        return recorded
    root = image_root.resolve()
    try:
        path_of = {image_id: resolve_image(image_id, root) for image_id in recorded}
        sha256_of = {path: hash_screenshot(path) for path in sorted(set(path_of.values()))}
    except ValueError:
        return {}
    whole = hashlib.sha256(b"".join(map(bytes.fromhex, sha256_of.values()))).hexdigest()
    return {i: sha256_of[path] for i, path in path_of.items()} if whole == info.screenshots_sha256 else {}
