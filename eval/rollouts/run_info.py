"""`run.json`: what a rollout ran on, and whether an interrupted one may resume. Knows nothing of models in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.policies.posting import hide_user
from sft.agent import AgentConfig, agent_to_json
from sft.answers import ANSWER_VERSION
from sft.data.load import Trajectory
from sft.errors import UserError
from sft.files import hash_files, write_whole
from sft.json_text import parse_json
from sft.models.model_folder import find_base_name
from sft.versions import read_versions

RESULTS = ("steps.jsonl", "episodes.jsonl")  # what a rollout, or a live run, has answered so far
_WHERE = ("model_path", "base_model", "test_csv", "image_root", "data")
_WHEN = ("started", "finished")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a rollout ran on: the content of `run.json`, in its order.

    `detector` is what `--detect` found elements with. `environment` is what a live run (mode "live") operated, by what
    rules; None, and left out of the file, for a rollout. `shard` is [which, of how many]; `started` and `finished` are
    in UTC. `fingerprint` covers all that can change an answer (model, data, agent, mode, versions), not where it lies
    on this machine or when it ran. Fields with a default are those that files of older versions may lack.
    """

    mode: str
    policy: str = "model"
    engine: str = "hf"
    api_url: str | None = None
    decoding: str = "free"
    model_path: str | None
    model_sha256: str | None = None
    base_model: str | None = None
    base_model_sha256: str | None = None
    test_csv: str
    test_csv_sha256: str = ""
    image_root: str | None
    screenshots_sha256: str = ""
    n_tasks: int = 0
    n_steps: int
    data: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    answer_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    shard: list[int] | None = None
    started: str = ""
    finished: str | None = None
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if name != "environment" or value is not None}

    def seal(self) -> "RunInfo":
        """Return it with its fingerprint."""
        text = json.dumps(self.list_covered(), sort_keys=True)
        return replace(self, fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16])

    def list_covered(self) -> dict[str, Any]:
        """Return what the fingerprint covers."""
        return {k: v for k, v in self.to_json().items() if k not in ("fingerprint", *_WHEN, *_WHERE)}


def build_run_info(
    *,
    model_path: str | None,
    base_model: str | None,
    api_url: str | None,
    agent: AgentConfig,
    trajectories: Sequence[Trajectory],
    **given: Any,
) -> RunInfo:
    """Describe a rollout that begins now; `given` are the other fields that are not found out here."""
    base = base_model or (find_base_name(model_path) if model_path else None)
    return RunInfo(
        **given,
        api_url=api_url and hide_user(api_url),
        model_path=model_path,
        model_sha256=hash_model(model_path),
        base_model=base,
        base_model_sha256=hash_model(base),
        screenshots_sha256=_hash_screenshots(trajectories),
        n_tasks=len(trajectories),
        n_steps=sum(len(t.steps) for t in trajectories),
        agent=agent_to_json(agent),
        answer_version=ANSWER_VERSION,
        versions=read_versions(),
        started=_now(),
    ).seal()


def for_mode(info: RunInfo, mode: str) -> RunInfo:
    """Describe the same rollout in another mode."""
    return replace(info, mode=mode).seal()


def is_teacher_of(info: RunInfo, other: RunInfo) -> bool:
    """Say whether a rollout is that of the same model on the same data, but in mode teacher, where `other` is not."""
    return info.mode == "teacher" != other.mode and info.seal().fingerprint == for_mode(other, "teacher").fingerprint


def for_shard(info: RunInfo, shard: int, num_shards: int, trajectories: Sequence[Trajectory]) -> RunInfo:
    """Describe the part of a rollout that one of several machines does; the hashes stay those of the whole data."""
    if not trajectories:
        raise UserError(f"--num_shards: found {num_shards} for {info.n_tasks} tasks; expected at most one per task")
    n_steps = sum(len(t.steps) for t in trajectories)
    return replace(info, shard=[shard, num_shards], n_tasks=len(trajectories), n_steps=n_steps).seal()


def merge_run_infos(infos: Mapping[Path, RunInfo]) -> RunInfo:
    """Return what the unsharded rollout would say of itself.

    Raises:
        UserError: the folders are not exactly the shards of one finished rollout.
    """
    first_path, first = next(iter(infos.items()))
    shards, ends = [], []
    for path, info in infos.items():
        if info.shard is None or info.finished is None:
            raise UserError(
                f"{path}: found no finished shard; expected one that --num_shards wrote: a shard that was stopped is "
                "resumed by its own command"
            )
        shards.append(info.shard)
        ends.append(info.finished)
        whole = replace(info, shard=first.shard, n_tasks=first.n_tasks, n_steps=first.n_steps)
        if different := _list_differences(whole, first):
            raise UserError(
                f"{path}: found another rollout than in {first_path} (different: {', '.join(different)}); expected "
                "shards of one rollout: leave this one out, or roll it out again as the others were"
            )
    expected = [[i, shards[0][1]] for i in range(shards[0][1])]
    if sorted(shards) != expected:
        raise UserError(f"found the shards {sorted(shards)}; expected each of {expected} once")
    return replace(
        first,
        shard=None,
        n_tasks=sum(info.n_tasks for info in infos.values()),
        n_steps=sum(info.n_steps for info in infos.values()),
        started=min(info.started for info in infos.values()),
        finished=max(ends),
    ).seal()


def read_earlier(output_dir: Path, info: RunInfo) -> RunInfo | None:
    """Return the `run.json` of the run that stopped in a folder, or None where no step was answered there yet.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    begun = [p for name in RESULTS if (p := output_dir / name).is_file() and p.stat().st_size]
    if not begun:  # before its first answer a run binds nobody
        return None
    try:
        earlier = read_run(output_dir)
    except UserError as error:
        raise UserError(f"{error}, which wrote {begun[0].name} beside it: choose another --output_dir") from error
    if earlier.fingerprint != info.fingerprint:
        raise UserError(
            f"{output_dir}: found a rollout of something else "
            f"(different: {', '.join(_list_differences(earlier, info))}); "
            "expected the same run or an empty folder: choose another --output_dir"
        )
    return earlier


def open_run(output_dir: Path, info: RunInfo) -> RunInfo:
    """Start a run in a folder, or resume the one that stopped there; returns the run's `run.json`.

    Raises:
        UserError: the folder holds a rollout of something else.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if (earlier := read_earlier(output_dir, info)) is not None:
        return earlier
    write_run(output_dir, info)
    return info


def close_run(output_dir: Path, info: RunInfo) -> RunInfo:
    """Note when a run finished; a run that had finished before keeps its time."""
    if info.finished is None:
        info = replace(info, finished=_now())
        write_run(output_dir, info)
    return info


def write_run(output_dir: Path, info: RunInfo) -> None:
    """Write `run.json` whole or not at all."""
    write_whole(output_dir / "run.json", json.dumps(info.to_json(), indent=2) + "\n")


def read_run(output_dir: Path) -> RunInfo:
    """Read the `run.json` of a rollout's folder; keys that this version does not know are left out.

    Raises:
        UserError: the file is missing or is not what a rollout wrote.
    """
    path = output_dir / "run.json"
    if not path.is_file():
        raise UserError(f"{path}: found no such file; expected the --output_dir of a rollout")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: found no JSON object ({error}); expected what the rollout wrote") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found no JSON object but a {type(found).__name__}; expected what the rollout wrote")
    required = {f.name for f in fields(RunInfo) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(found)):
        raise UserError(f"{path}: found no {', '.join(missing)}; expected what the rollout wrote")
    return RunInfo(**{f.name: found[f.name] for f in fields(RunInfo) if f.name in found})


def list_other_answers(info: RunInfo, other: RunInfo) -> list[str]:
    """Return in what a rollout and a live run differ, of what makes them answers of one model to the same tasks.

    What runs the model, and how many of the file's tasks, may differ. A served model, and one of the Hub, is its name.
    """
    same = ("policy", "model_sha256", "base_model_sha256", "decoding", "agent", "answer_version", "test_csv_sha256")
    return [name for name in _list_differences(info, other) if name in same]


def _list_differences(info: RunInfo, other: RunInfo) -> list[str]:
    """Return the fields in which two rollouts differ, of those that can change an answer."""
    ours, theirs = (json.loads(json.dumps(i.list_covered())) for i in (info, other))  # tuples as a file has them
    return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]


def _hash_screenshots(trajectories: Sequence[Trajectory]) -> str:
    """Hash the screenshots as they were checked, in the order of their paths."""
    sha256_of = {step.image_path: step.image_sha256 for t in trajectories for step in t.steps}
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of[path]) for path in sorted(sha256_of))).hexdigest()


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
