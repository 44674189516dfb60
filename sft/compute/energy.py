"""Energy and CO2e of this process, by codecarbon in offline mode. Never opens a socket."""

import logging
import os
from typing import Any

from codecarbon import OfflineEmissionsTracker
from codecarbon.output_methods.base_output import BaseOutput

from sft.compute.hardware import has_gpu

log = logging.getLogger("sft")


class EnergyMeter:
    """Measures from `start` to `stop`; `country` is an ISO 3166 code of three letters, None for energy alone.

    One process on a machine measures itself and its children; the first of several measures the whole machine.
    """

    INTERVAL_S = 15

    def __init__(self, country: str | None, n_local_processes: int = 1):
        self.country = country
        self.scope = "process" if n_local_processes == 1 else "machine"
        self._kept = _KeptOutput()
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=country,
            output_methods=[],
            output_handlers=[self._kept],
            allow_multiple_runs=True,
            electricitymaps_api_token="",  # else one found in the environment is used, over the network
            emissions_endpoint=False,
            tracking_mode=self.scope,
            gpu_ids=None if os.environ.get("CUDA_VISIBLE_DEVICES") else list(range(n_local_processes)),
            measure_power_secs=self.INTERVAL_S,
            log_level="error",
        )

    def start(self) -> None:
        self._tracker.start()
        if missing := [part for part, how in self._name_sensors().items() if how.startswith("missing")]:
            log.warning("energy: codecarbon finds no %s here: theirs is not in the figures", " and no ".join(missing))

    def read(self) -> dict[str, Any]:
        """Return energy in kWh by part since `start`, CO2e in kg where the country is known, and how each was had."""
        self._tracker.flush()
        return self._describe()

    def stop(self) -> dict[str, Any]:
        self._tracker.stop()
        return self._describe()

    def _describe(self) -> dict[str, Any]:
        total = self._kept.total
        if total is None:
            return {}
        figures = {
            "energy_kwh": total.energy_consumed,
            "energy_cpu_kwh": total.cpu_energy,
            "energy_gpu_kwh": total.gpu_energy,
            "energy_ram_kwh": total.ram_energy,
            "energy_sensors": self._name_sensors(),
            "energy_scope": self.scope,
            "codecarbon": total.codecarbon_version,
        }
        if self.country:
            figures |= {"co2e_kg": total.emissions, "country": self.country}
        return figures

    def _name_sensors(self) -> dict[str, str]:
        """Say for each part whether a sensor was read, a model estimated its power, or codecarbon does not see it."""
        sensors = dict.fromkeys(("cpu", "ram", *(["gpu"] if has_gpu() else [])), "missing (codecarbon finds none)")
        for item in self._tracker._hardware:
            kind, mode = type(item).__name__, getattr(item, "_mode", "")
            if kind == "CPU":
                is_sensor = mode in ("intel_rapl", "intel_power_gadget")
                sensors["cpu"] = (
                    f"measured ({mode})" if is_sensor else f"estimated ({mode}, from the CPU's rated power)"
                )
            elif kind == "GPU":
                sensors["gpu"] = "measured (NVML)"
            elif kind == "RAM":
                sensors["ram"] = "estimated (codecarbon's model of power by memory size)"
        return sensors


class _KeptOutput(BaseOutput):
    """Where codecarbon writes: nowhere; the newest totals are kept."""

    total: Any = None

    def out(self, total: Any, delta: Any) -> None:
        self.total = total

    def live_out(self, total: Any, delta: Any) -> None:
        self.total = total
