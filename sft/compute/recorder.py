"""Records one run in the compute ledger while it lasts: outcome, time, memory, energy. Imports no torch."""

import logging
import resource
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import psutil

from sft.compute.ledger import Outcome, append_event, close_killed_runs, hash_host, name_ledger
from sft.recipe.settings import Purpose
from sft.versions import read_versions

if TYPE_CHECKING:
    from sft.compute.energy import EnergyMeter

log = logging.getLogger("sft")

Kind = Literal["training", "rollout"]


class RunRecorder:
    """Context manager around a run: a start, a sign of life every `HEARTBEAT_S`, an end with its outcome.

    Figures that others `note` are written with the next sign of life, so a run that is killed leaves the newest. Only
    rank 0 writes start and end; every rank writes its own figures, the first of each machine its energy.
    """

    HEARTBEAT_S = 15.0

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        purpose: Purpose,
        *,
        country: str | None = None,
        about: Mapping[str, Any] | None = None,
        run: str | None = None,
        rank: int = 0,
        n_processes: int = 1,
        n_local_processes: int = 1,
        is_first_of_machine: bool = True,
        uses_gpu: bool = False,
    ):
        self.folder, self.kind, self.purpose, self.country = folder, kind, purpose, country
        self.run, self.rank = run or uuid.uuid4().hex[:12], rank
        self.n_processes, self.n_local_processes, self.n_gpus = n_processes, n_local_processes, n_processes * uses_gpu
        self._about, self._measures_energy = dict(about or {}), is_first_of_machine
        self._path = name_ledger(folder, rank)
        self._figures: dict[str, Any] = {}
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._report, name="compute-ledger", daemon=True)

    def __enter__(self) -> Self:
        self._started, self._cpu_before = time.perf_counter(), _cpu_seconds()
        if self.rank == 0:
            from sft.compute.hardware import read_hardware

            for run in close_killed_runs(self.folder, by=self.run):
                log.info("compute ledger: closed run %s, which was killed", run)
            process = psutil.Process()
            append_event(
                self._path,
                "start",
                self.run,
                kind=self.kind,
                purpose=self.purpose,
                host=hash_host(),
                pid=process.pid,
                process_started=process.create_time(),
                country=self.country,
                n_processes=self.n_processes,
                n_local_processes=self.n_local_processes,
                n_gpus=self.n_gpus,
                hardware=read_hardware(self.folder),
                versions=read_versions(),
                **self._about,
            )
        self._thread.start()
        return self

    def note(self, **figures: Any) -> None:
        """Keep figures for the next report; a newer value replaces an older one."""
        self._figures |= figures

    def log(self, **fields: Any) -> None:
        """Append one line of the run's course, for the plots; main process only."""
        if self.rank == 0:
            seconds = round(time.perf_counter() - self._started, 3)
            append_event(self._path, "log", self.run, seconds=seconds, host_gb=resident_gb(), **fields)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending.set()
        self._thread.join()
        if self.rank == 0:
            wall_s = time.perf_counter() - self._started
            # the error's kind alone: its text may hold names and paths
            fields = {} if kind is None else {"error": kind.__name__}
            append_event(self._path, "end", self.run, outcome=judge_end(error), wall_s=round(wall_s, 3), **fields)

    def _report(self) -> None:
        """Run beside the work: the energy meter's slow start and the file's writing cost the work nothing."""
        meter = self._start_meter() if self._measures_energy else None
        while not self._is_ending.wait(self.HEARTBEAT_S):
            self._append_figures(meter.read() if meter else {})
        energy = meter.stop() if meter else {}
        if meter and not energy:
            log.warning("energy: codecarbon measured nothing; this run has no figure of it")
        self._append_figures(energy)

    def _start_meter(self) -> "EnergyMeter | None":
        """Start the energy meter, or say why there is none."""
        try:
            from sft.compute.energy import EnergyMeter

            meter = EnergyMeter(self.country, self.n_local_processes)
            meter.start()
        except Exception as error:  # whatever codecarbon lacks on a machine, the other figures are kept
            log.warning("energy is not measured: codecarbon: %s: %s", type(error).__name__, error)
            return None
        return meter

    def _append_figures(self, energy: Mapping[str, Any]) -> None:
        wall_s = time.perf_counter() - self._started
        own = {
            "wall_s": round(wall_s, 3),
            "gpu_hours": (1 if self.n_gpus else 0) * wall_s / 3600,
            "cpu_hours": (_cpu_seconds() - self._cpu_before) / 3600,
            "peak_host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        }
        append_event(self._path, "figures", self.run, rank=self.rank, **own, **dict(self._figures), **energy)


def judge_end(error: BaseException | None) -> Outcome:
    """Return how a run ended: an interrupt or an exit asked for from outside is a kill, any other error a failure."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished"
    return "killed" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"


def _cpu_seconds() -> float:
    """Return the processor time of this process and of its children, living and ended."""
    process = psutil.Process()
    times = process.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return seconds


def resident_gb() -> float:
    """Return the memory of this process."""
    return round(psutil.Process().memory_info().rss / 1e9, 3)
