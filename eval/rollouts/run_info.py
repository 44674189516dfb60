"""`run.json`: what a rollout ran on, and whether an interrupted one may go on. Knows nothing of models in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sft.data.load import Trajectory
from sft.errors import UserError
from sft.models.model_folder import find_base_name
from sft.prompts import ANSWER_VERSION, AgentConfig, agent_to_json
from sft.versions import hash_files, read_versions

_WHERE = ("model_path", "base_model", "test_csv", "image_root", "data")


def build_run_info(
    *,
    mode: str,
    policy: str,
    engine: str,
    api_url: str | None,
    decoding: str,
    model_path: str | None,
    base_model: str | None,
    test_csv: str,
    test_csv_sha256: str,
    image_root: str | None,
    agent: AgentConfig,
    trajectories: list[Trajectory],
    data: dict[str, Any],
) -> dict[str, Any]:
    """Describe a rollout. `fingerprint` covers all that can change an answer: model, data, agent, mode, versions."""
    base = base_model or (find_base_name(model_path) if model_path else None)
    info: dict[str, Any] = {
        "mode": mode,
        "policy": policy,
        "engine": engine,
        "api_url": api_url and hide_user(api_url),
        "decoding": decoding,
        "model_path": model_path,
        "model_sha256": hash_model(model_path),
        "base_model": base,
        "base_model_sha256": hash_model(base),
        "test_csv": test_csv,
        "test_csv_sha256": test_csv_sha256,
        "image_root": image_root,
        "screenshots_sha256": _hash_screenshots(trajectories),
        "n_tasks": len(trajectories),
        "n_steps": sum(len(t.steps) for t in trajectories),
        "data": data,
        "agent": agent_to_json(agent),
        "answer_version": ANSWER_VERSION,
        "versions": read_versions(),
    }
    return _seal({**info, "shard": None, "started": _now(), "finished": None})


def for_mode(info: dict[str, Any], mode: str) -> dict[str, Any]:
    """Describe the same rollout in another mode."""
    return _seal({**info, "mode": mode})


def for_shard(info: dict[str, Any], shard: int, num_shards: int, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Describe the part of a rollout that one of several machines does; the hashes stay those of the whole data."""
    if not trajectories:
        raise UserError(f"--num_shards: found {num_shards} for {info['n_tasks']} tasks; expected at most one a task")
    n_steps = sum(len(t.steps) for t in trajectories)
    return _seal({**info, "shard": [shard, num_shards], "n_tasks": len(trajectories), "n_steps": n_steps})


def merge_run_infos(infos: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """Return what the unsharded rollout would say of itself.

    Raises:
        UserError: the folders are not exactly the shards of one finished rollout.
    """
    paths, shards = list(infos), [info["shard"] for info in infos.values()]
    own = ("shard", "n_tasks", "n_steps", "fingerprint", "started", "finished", *_WHERE)
    first = {k: v for k, v in infos[paths[0]].items() if k not in own}
    for path, info in infos.items():
        if info["shard"] is None or info["finished"] is None:
            raise UserError(f"{path}: found no finished shard; expected one that --num_shards wrote")
        if different := [k for k, v in first.items() if info.get(k) != v]:
            raise UserError(f"{path}: found another rollout than in {paths[0]} (different: {', '.join(different)})")
    expected = [[i, shards[0][1]] for i in range(shards[0][1])]
    if sorted(shards) != expected:
        raise UserError(f"found the shards {sorted(shards)}; expected each of {expected} once")
    return _seal(
        {
            **infos[paths[0]],
            "shard": None,
            "n_tasks": sum(info["n_tasks"] for info in infos.values()),
            "n_steps": sum(info["n_steps"] for info in infos.values()),
            "started": min(info["started"] for info in infos.values()),
            "finished": max(info["finished"] for info in infos.values()),
        }
    )


def _seal(info: dict[str, Any]) -> dict[str, Any]:
    """Set the fingerprint: what can change an answer, not where it lies on this machine or when it ran."""
    covered = {k: v for k, v in info.items() if k not in ("fingerprint", "started", "finished", *_WHERE)}
    fingerprint = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]
    return {**info, "fingerprint": fingerprint}


def read_earlier(output_dir: Path, info: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `run.json` of the run that stopped in a folder, or None where no step was answered there yet.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    path, steps = output_dir / "run.json", output_dir / "steps.jsonl"
    if not steps.is_file() or not steps.stat().st_size:  # before its first answer a run binds nobody
        return None
    earlier = _read_run(path)
    if earlier.get("fingerprint") != info["fingerprint"]:
        described: dict[str, Any] = json.loads(json.dumps(info))  # tuples as the file has them
        keys = [k for k in described if k not in ("started", "finished", "fingerprint", *_WHERE)]
        different = [k for k in keys if earlier.get(k) != described[k]]
        raise UserError(
            f"{output_dir}: found a rollout of something else (different: {', '.join(different)}); "
            "expected the same run or an empty folder: choose another --output_dir"
        )
    return earlier


def open_run(output_dir: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Start a run in a folder, or take up the one that stopped there; returns the run's `run.json`.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if (earlier := read_earlier(output_dir, info)) is not None:
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


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: found steps.jsonl beside it, but the file cannot be read ({error}); choose another --output_dir"
        ) from error
    if not isinstance(run, dict):
        raise UserError(f"{path}: found {type(run).__name__}; expected a JSON object: choose another --output_dir")
    return run


def _hash_screenshots(trajectories: Sequence[Trajectory]) -> str:
    """Hash the screenshots as they were checked, in the order of their paths."""
    sha256_of = {step.image_path: step.image_sha256 for t in trajectories for step in t.steps}
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of[path]) for path in sorted(sha256_of))).hexdigest()


def hide_user(url: str) -> str:
    """Return a server's address without the user and password that it may hold."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def hash_model(model_path: str | None) -> str | None:
    """Hash the weights, configuration and tokenizer of a local folder; a Hub id is named by itself."""
    if model_path is None or not Path(model_path).is_dir():
        return model_path
    reports = ("compute_report.json", "compute_author.yaml")  # may be written here after a rollout
    unrelated = ("training_data.json", "versions.json", "trainer_state.json", *reports)
    suffixes = (".safetensors", ".json", ".jinja", ".txt", ".yaml")
    files = [p for p in Path(model_path).iterdir() if p.is_file() and p.suffix in suffixes]
    return hash_files(sorted(p for p in files if p.name not in unrelated))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
