"""What may a model folder ask for that anybody may have written: time, memory, matrices? Loads no weights."""

import re
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.models.model_folder import ADAPTER_CONFIG, ADAPTER_FILE, read_header, read_json, read_rank

LONGEST_S = 10.0
_MOST_BYTES = 1 << 30
_STATUS = Path("/proc/self/statm")


class TooMuchWorkError(Exception):
    """What was limited took too long."""


@contextmanager
def limit_work() -> Iterator[None]:
    """Interrupt what does not return in `LONGEST_S`, and deny it memory beyond a GB more than there is in use.

    By a signal, which only a process's main thread gets: elsewhere only memory is limited.

    Raises:
        TooMuchWorkError, MemoryError: it was interrupted, or denied.
    """

    def interrupt(*_: object) -> None:
        raise TooMuchWorkError(f"it takes longer than {LONGEST_S:g} s")

    is_timed = threading.current_thread() is threading.main_thread()
    before = resource.getrlimit(resource.RLIMIT_AS)
    if _STATUS.is_file():
        most = int(_STATUS.read_text().split()[0]) * resource.getpagesize() + _MOST_BYTES
        if before[0] == resource.RLIM_INFINITY or before[0] > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    previous = signal.signal(signal.SIGALRM, interrupt) if is_timed else None
    try:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        yield
    finally:
        if is_timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_adapter_config(folder: Path, module_names: Sequence[str]) -> None:
    """Make sure that an adapter's config asks for nothing that its weights, which are there, do not.

    peft builds matrices of the rank that stands there, matches its patterns with every module's name, and imports what
    `megatron_core` names.

    Raises:
        UserError: a rank beyond that of the weights, a pattern that is none or too slow, or another kind of layer.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if config.get("megatron_config"):
        raise UserError(f"{path}: found megatron_config; expected an adapter of peft's own layers")
    by_name = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(numbers, dict) for numbers in by_name):
        raise UserError(f"{path}: found {by_name} as patterns; expected numbers by name: restore the file")
    shapes = [fields["shape"] for name, fields in read_header(folder / ADAPTER_FILE).items() if ".lora_A." in name]
    largest = max((shape[0] for shape in shapes if shape), default=None)
    ranks = [read_rank(folder), *by_name[0].values()]
    if largest and (wrong := [rank for rank in ranks if not isinstance(rank, int) or rank > largest]):
        raise UserError(f"{path}: found rank {wrong[0]!r}; expected at most {largest}, as its weights have")
    _match_patterns(path, _list_patterns(config, by_name), module_names)


def _list_patterns(config: dict[str, Any], by_name: Sequence[dict[str, Any]]) -> list[str]:
    """Return the patterns of an adapter's config, as peft matches them with names."""
    whole = [config.get(key) for key in ("target_modules", "exclude_modules")]  # a list of these are plain names
    layers = config.get("layers_pattern") or ()
    ends = ([layers] if isinstance(layers, str) else layers, config.get("modules_to_save") or (), *by_name)
    return [
        *(pattern for pattern in whole if isinstance(pattern, str)),
        *(rf"(?:.*\.)?(?:{name})(?:\..*)?" for names in ends if isinstance(names, (list, dict)) for name in names),
    ]


def _match_patterns(path: Path, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            with limit_work():
                compiled = re.compile(pattern)
                for name in names:
                    compiled.fullmatch(name)
        except (re.error, TooMuchWorkError, MemoryError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path}: found the pattern {pattern[:60]!r}, which cannot be matched with the model's names "
                f"({error}); expected names, or a pattern as peft writes it"
            ) from error
