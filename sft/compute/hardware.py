"""What a run ran on: GPUs, CPU, memory, storage, driver. Reads this machine only, and imports no torch."""

import os
import platform
from pathlib import Path
from typing import Any

import psutil

GB = 1e9
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "fuse.sshfs", "9p")
# Dense bf16 peak of one GPU in TFLOP/s, from NVIDIA's data sheets (half of the figures "with sparsity").
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def read_hardware(folder: Path) -> dict[str, Any]:
    """Describe the machine; `folder` says whose storage is meant. What cannot be found out is None."""
    gpus, driver, cuda = _read_gpus()
    return {
        "gpus": gpus,
        "driver": driver,
        "cuda_of_driver": cuda,
        "cpu_model": _read_cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(_read_memory_bytes() / GB, 1),
        "storage": name_storage(folder),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "is_container": Path("/.dockerenv").exists() or "container" in os.environ,
    }


def has_gpu() -> bool:
    """Say whether this process may use a GPU; asked of the driver, so that CUDA is not touched before others fork."""
    return bool(_read_gpus()[0])


def find_peak_tflops(gpu_name: str) -> float | None:
    """Return the dense bf16 peak of a GPU by its name, or None where it is not in the table."""
    words = gpu_name.replace("-", " ").split()
    for name, peak in PEAK_TFLOPS.items():  # the longer names of a series come first
        if all(word in words for word in name.split()):
            return peak
    return None


def name_storage(folder: Path) -> str | None:
    """Return file system and kind of disk of a folder, e.g. "ext4, solid state"."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    mounted = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    file_system = next((mounted[str(at)] for at in (place, *place.parents) if str(at) in mounted), None)
    if file_system is None:
        return None
    if file_system in NETWORK_FILE_SYSTEMS:
        return f"{file_system}, network"
    device = place.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (block / "queue/rotational", block.resolve().parent / "queue/rotational"):
        if queue.is_file():
            return f"{file_system}, {'spinning disk' if queue.read_text().strip() == '1' else 'solid state'}"
    return file_system


def _read_gpus() -> tuple[list[dict[str, Any]], str | None, str | None]:
    """Return the GPUs this process may use, the driver's version and the CUDA version that the driver offers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return [], None, None
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        gpus.append({"name": pynvml.nvmlDeviceGetName(handle), "memory_gb": round(int(total) / GB, 1)})
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and all(part.strip().isdigit() for part in visible.split(",")):
        gpus = [gpus[int(part)] for part in visible.split(",") if int(part) < len(gpus)]
    elif visible == "":
        gpus = []
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    return gpus, pynvml.nvmlSystemGetDriverVersion(), f"{cuda // 1000}.{cuda % 1000 // 10}"


def _read_cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _read_memory_bytes() -> int:
    """Return the machine's memory, or the limit a container sets below it."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        total = min(total, int(text))
    return total
