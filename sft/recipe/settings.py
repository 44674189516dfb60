"""What a recipe holds beside TRL's own keys: types, defaults, bounds and one sentence of help for each key."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from importlib.util import find_spec
from math import isfinite
from operator import ge, gt, le
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sft.agent import AgentConfig

Purpose = Literal["training", "hyperparameter_search", "ablation", "inference", "other"]  # of a run, in the ledger


@dataclass(frozen=True)
class Key:
    """One key of a recipe: what it is for and what it may hold.

    `default` is `dataclasses.MISSING` where a recipe must give the key. The bounds hold for numbers, and for each
    value of a mapping: `least` and `most` may be reached, `above` may not, and a share is from 0 to below 1.
    `otherwise` says in words what the default stands for where it is out of bounds. `among` are the values that text
    may have, where the type does not say so. `is_filled` refuses text without a character.
    """

    name: str
    type: Any
    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    is_share: bool = False
    otherwise: str = ""
    among: tuple[str, ...] = ()
    is_filled: bool = False
    unit: str = ""

    def check(self, value: Any, problems: list[str]) -> Any:
        """Return `value` in the key's type, or note what was found and expected. Neither True nor 2.7 is an int."""
        expected = describe_type(self.type)
        try:
            checked = TypeAdapter(self.type).validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            detail = ", ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
            given = "" if first["type"] == "literal_error" else f" ({detail})"
            problems.append(f"{self.name}: found {value!r}; expected {expected}{given}")
            return None
        if isinstance(value, bool) and not isinstance(checked, (bool, str)):
            problems.append(f"{self.name}: found {value!r}; expected {expected}")
        else:
            parts = {f" for {name}": v for name, v in checked.items()} if isinstance(checked, dict) else {"": checked}
            for part, found in parts.items():
                if wanted := self._find_missed_bound(found):
                    shown = repr(found) if self.is_filled else found
                    problems.append(f"{self.name}: found {shown}{part}; expected {wanted}")
        return checked

    def describe_bounds(self) -> str:
        """Return what the type does not say of the values, in words, "" where it says all."""
        bounds = " and ".join(f"{words} {bound}" for words, bound, _ in self._list_bounds())
        among = f"one of {', '.join(self.among)}" if self.among else ""
        share = "a share from 0 to below 1" if self.is_share else ""
        return ", or ".join(filter(None, (bounds or among or share, self.otherwise)))

    def _list_bounds(self) -> list[tuple[str, float, Callable[[float, float], bool]]]:
        bounds = (("at least", self.least, ge), ("more than", self.above, gt), ("at most", self.most, le))
        return [(words, bound, keeps) for words, bound, keeps in bounds if bound is not None]

    def _find_missed_bound(self, value: Any) -> str:
        """Return what was expected of a value of the right type, "" where it keeps to every bound."""
        if value == self.default or isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return ""
        if isinstance(value, str):
            if self.is_filled and not value.strip():
                return "text that is not empty" + (", or null" if NoneType in get_args(self.type) else "")
            return self.describe_bounds() if self.among and value not in self.among else ""
        if not isfinite(value):
            return "a finite number"
        if self.is_share:
            return "" if 0 <= value < 1 else self.describe_bounds()
        missed = [f"{words} {bound}" for words, bound, keeps in self._list_bounds() if not keeps(value, bound)]
        return ", or ".join(filter(None, (*missed, self.otherwise))) if missed else ""


def describe_type(expected: Any) -> str:
    """Return a type in words, as messages, --help and docs/recipe.md name it."""
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Literal:
        values = ", ".join(json.dumps(p) if isinstance(p, bool) else str(p) for p in parts)
        return f"one of {values}" if len(parts) > 1 else values
    if origin in (Union, UnionType):
        named = [describe_type(part) for part in parts if part is not NoneType]
        return " or ".join([*named, *(["null"] if NoneType in parts else [])])
    if origin in (tuple, list):
        return f"a list of {describe_type(parts[0]).removeprefix('one of ')}"
    if origin is dict or expected is dict:
        names = get_args(parts[0]) if parts else ()
        return f"a mapping from {', '.join(names)} to {describe_type(parts[1])}" if names else "a mapping"
    if dataclasses.is_dataclass(expected):
        return f"{{{', '.join(f.name for f in dataclasses.fields(expected))}}}"
    return expected.__name__


def _key(default: Any, help: str, **facts: Any) -> Any:
    """Declare a field of the settings below; `facts` are those of `Key`. MISSING: a recipe must give it."""
    given = {"default_factory": dict} if default == {} else {} if default is MISSING else {"default": default}
    return field(**given, metadata={"help": help, **facts})


@cache
def list_countries() -> frozenset[str]:
    """Return the ISO 3166 codes of three letters whose carbon intensity is known without a network.

    They stand in codecarbon's table; the package itself, slow to import, is left alone.
    """
    spec = find_spec("codecarbon")
    assert spec is not None and spec.origin is not None, "codecarbon is a dependency of this package"
    table = Path(spec.origin).parent / "data/private_infra/global_energy_mix.json"
    return frozenset(json.loads(table.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class DataSettings:
    """Where the trajectories are and which of them are trained on."""

    train_csv: str = _key(
        MISSING,
        "Trajectories to train on: CSV, JSON Lines, JSON, Parquet, Arrow, or a data set (folder or Hub id).",
        is_filled=True,
    )
    val_csv: str | None = _key(None, "Trajectories to validate on, in any of the same formats.", is_filled=True)
    val_split: float = _key(
        0.0, "Without val_csv: the share of train_csv's tasks that is held out for validation.", is_share=True
    )
    image_root: str | None = _key(None, "Folder of the screenshots; null: the folder of the CSV.", is_filled=True)
    on_bad_rows: Literal["refuse", "quarantine"] = _key(
        "refuse", "Refuse a file that has a bad row, or leave out every task that has one."
    )
    allow_overlap: bool = _key(False, "Validate even on tasks of val_csv whose goals are also trained on.")
    screenshot_cache: str | None = _key(
        None, "Folder that keeps resized screenshots for later epochs and trainings; null: none.", is_filled=True
    )
    vision_cache_gb: float | None = _key(
        None,
        "Disk space under screenshot_cache for the outputs of a frozen vision tower; null or 0: none is kept.",
        least=0,
        unit="GB",
    )
    task_start: int = _key(
        0,
        "Index of the first task to train on, from 0 in natural order; negative: counted from the end.",
    )
    task_end: int | None = _key(
        None, "Index after the last task to train on; negative: counted from the end; null: up to the last task."
    )


@dataclass(frozen=True)
class ModelSettings:
    """Which model is fine-tuned, and how. The names are those of TRL's `ModelConfig`."""

    model_name_or_path: str = _key(MISSING, "The base model: a local folder or a Hub id.", is_filled=True)
    model_revision: str = _key("main", "Hub revision of the base model.", is_filled=True)
    dtype: Literal["bfloat16", "float16", "float32"] = _key(
        "bfloat16", "Number format of the weights, and of the arithmetic on 4-bit weights."
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _key(
        "sdpa", "Attention implementation; flash_attention_2 works with packing: none only."
    )
    load_in_4bit: bool = _key(True, "Quantise the language layers to 4 bits (nf4): QLoRA.")
    use_peft: bool = _key(True, "Train a LoRA adapter; false trains every parameter.")
    lora_r: int = _key(16, "Rank of the LoRA matrices.", least=1, most=8192)
    lora_alpha: int = _key(32, "LoRA scale: the update is multiplied by lora_alpha / lora_r.", least=1)
    lora_dropout: float = _key(0.05, "Dropout on the input of the LoRA matrices.", is_share=True)
    lora_parts: tuple[Literal["language", "experts", "merger", "vision"], ...] = _key(
        ("language",), "Parts of the model that get LoRA matrices; experts exist in mixtures of experts only."
    )
    lora_modules_to_save: tuple[str, ...] = _key(
        (), "Modules trained in full and saved with the adapter, such as embed_tokens."
    )


@dataclass(frozen=True)
class BatchSettings:
    """How steps become batches, and what counts in the loss."""

    packing: Literal["shared_screenshot", "none"] = _key(
        "shared_screenshot",
        "Pack steps that share a screenshot into one sequence that holds it once, or pad each step separately.",
    )
    tokens_per_batch: int = _key(
        4096, "Size of a packed sequence, image tokens included.", least=1, most=1_048_576, unit="tokens"
    )
    loss_weights: dict[Literal["action", "target", "memory"], float] = _key(
        {},
        "Factor on the loss of each part of the answer, 1.0 where none is given; e.g. {action: 4.0, memory: 0.5}.",
        least=0,
    )


@dataclass(frozen=True)
class ValidationSettings:
    """The rollout on validation tasks, with the model's own memory, that runs at each evaluation."""

    val_rollout_tasks: int = _key(
        16, "Validation tasks rolled out at each evaluation; 0 switches the rollout off.", least=0
    )
    val_rollout_batch_size: int = _key(16, "Steps answered at once in that rollout.", least=1)
    early_stopping_patience: int | None = _key(
        None, "Stop after this many evaluations without a better metric_for_best_model.", least=1
    )


@dataclass(frozen=True)
class ComputeSettings:
    """What the compute ledger notes about a training."""

    run_purpose: Purpose = _key("training", "What the training is for, in the compute report's breakdown.")
    country_iso_code: str | None = _key(
        None, "Where the training takes place, as an ISO 3166 code such as DEU: needed for CO2e; null: energy only."
    )


@dataclass(frozen=True)
class ResumeSettings:
    """Whether a training resumes from a checkpoint."""

    resume: str | None = _key(
        None,
        "auto: the newest whole checkpoint of output_dir, if there is one; or a checkpoint's folder; null: step 0.",
        is_filled=True,
    )
    resume_anyway: bool = _key(False, "Resume although recipe or data have changed; the changes are logged.")


# The parts of a `Recipe`, by the name of its field.
SECTIONS: Mapping[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "agent": AgentConfig,
    "batch": BatchSettings,
    "validation": ValidationSettings,
    "compute": ComputeSettings,
    "resume": ResumeSettings,
}


def list_keys(settings: type) -> dict[str, Key]:
    """Return the keys that a class of settings declares, by name."""
    types = get_type_hints(settings)
    declared = [f for f in dataclasses.fields(settings) if f.metadata]
    return {f.name: Key(f.name, types[f.name], find_default(f), **f.metadata) for f in declared}


def find_default(f: "dataclasses.Field[Any]") -> Any:
    """Return the default of a field, MISSING where it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


OWN_KEYS: Mapping[str, Key] = MappingProxyType({k: v for cls in SECTIONS.values() for k, v in list_keys(cls).items()})
