"""`run.json`: what a rollout ran on, and whether an interrupted one may go on. Knows nothing of models in memory."""

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.prompts import AgentConfig
from sft.trajectory import Trajectory
from sft.versions import hash_files, read_versions


def build_run_info(
    *,
    mode: str,
    policy: str,
    model_path: str | None,
    base_model: str | None,
    test_csv: str,
    image_root: str | None,
    agent: AgentConfig,
    trajectories: list[Trajectory],
) -> dict[str, Any]:
    """Describe a rollout. `fingerprint` covers all that can change an answer: model, data, agent, mode, versions."""
    info: dict[str, Any] = {
        "mode": mode,
        "policy": policy,
        "model_path": model_path,
        "model_sha256": _hash_model(model_path),
        "base_model": base_model,
        "base_model_sha256": _hash_model(base_model),
        "test_csv": test_csv,
        "test_csv_sha256": hash_files([Path(test_csv)]),
        "image_root": image_root,
        "n_tasks": len(trajectories),
        "n_steps": sum(len(t.steps) for t in trajectories),
        "agent": asdict(agent),
        "versions": read_versions(),
    }
    covered = {k: v for k, v in info.items() if k not in ("model_path", "base_model", "test_csv", "image_root")}
    info["fingerprint"] = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]
    return {**info, "started": _now(), "finished": None}


def open_run(output_dir: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Start a run in a folder, or take up the one that stopped there; returns the run's `run.json`.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    path = output_dir / "run.json"
    output_dir.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier.get("fingerprint") != info["fingerprint"]:
            different = [
                k for k in info if k not in ("started", "finished", "fingerprint") and earlier.get(k) != info[k]
            ]
            raise UserError(
                f"{output_dir}: found a rollout of something else (different: {', '.join(different)}); "
                "expected the same run or an empty folder: choose another --output_dir"
            )
        return earlier
    write_run(output_dir, info)
    return info


def close_run(output_dir: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Note when a run finished; a run that had finished before keeps its time."""
    if info["finished"] is None:
        info = {**info, "finished": _now()}
        write_run(output_dir, info)
    return info


def write_run(output_dir: Path, info: dict[str, Any]) -> None:
    """Write `run.json` whole or not at all."""
    temporary = output_dir / "run.json.tmp"
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    temporary.replace(output_dir / "run.json")


def _hash_model(model_path: str | None) -> str | None:
    """Hash the weights of a local folder; a Hub id is named by itself."""
    if model_path is None or not Path(model_path).is_dir():
        return None
    return hash_files(sorted(Path(model_path).glob("*.safetensors")))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
