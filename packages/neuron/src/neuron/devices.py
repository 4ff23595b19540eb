"""The devices of this host: GPUs as NVML tells them, CPUs as /proc tells them.

A reading that fails leaves that one fact None; a library that is absent or broken means no GPUs,
with the cause logged. Nothing here may take the neuron down, and nothing here runs on the event
loop: NVML calls can hang for seconds on a sick driver.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pynvml
from msgspec.structs import replace

from cortex_core.fleet.discovery import DeviceState, WorkerState
from neuron import logs

__all__ = ["Devices", "cpu_devices", "cpu_flags", "discover", "host_memory"]

T = TypeVar("T")

_log = logs.get(__name__)
_UNBORN = WorkerState("starting")


class Devices:
    """Discovers once, then re-reads every `interval_s` on a daemon thread of its own, so that a
    call that never returns costs fresh readings and nothing else."""

    def __init__(self, cpu_workers: int, interval_s: float = 3.0) -> None:
        self._cpu_workers = cpu_workers
        self._interval_s = interval_s
        self._stop = threading.Event()

    async def discover(self, timeout_s: float = 15.0) -> list[DeviceState]:
        """The devices; without GPUs when NVML does not answer within `timeout_s`."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[DeviceState]] = loop.create_future()

        def answer(devices: list[DeviceState]) -> None:
            if not found.done():
                found.set_result(devices)

        self._run(lambda: loop.call_soon_threadsafe(answer, discover(self._cpu_workers)))
        try:
            return await asyncio.wait_for(found, timeout_s)
        except TimeoutError:
            _log.error("NVML does not answer; going on without GPUs", waited_s=timeout_s)
            return cpu_devices(self._cpu_workers, has_gpu=False)

    def follow(
        self, devices: list[DeviceState], on_reading: Callable[[list[DeviceState]], None]
    ) -> None:
        """Call `on_reading` on the running loop whenever a reading differs from the last one."""
        loop = asyncio.get_running_loop()

        def watch() -> None:
            known = devices
            while not self._stop.wait(self._interval_s):
                fresh = _read_again(known)
                if fresh != known and not self._stop.is_set():
                    known = fresh
                    try:
                        loop.call_soon_threadsafe(on_reading, fresh)
                    except RuntimeError:  # the loop has closed while we were reading
                        return

        self._run(watch)

    def stop(self) -> None:
        """No reading is delivered after this; a call in progress is left to end by itself."""
        self._stop.set()

    @staticmethod
    def _run(work: Callable[[], object]) -> None:
        threading.Thread(target=work, name="devices", daemon=True).start()


def discover(cpu_workers: int) -> list[DeviceState]:
    """Every device, GPUs first. The CPU is one where there is no GPU, or where it is asked for."""
    gpus = _discover_gpus()
    return gpus + cpu_devices(cpu_workers, has_gpu=bool(gpus))


def cpu_devices(cpu_workers: int, has_gpu: bool) -> list[DeviceState]:
    """ "cpu", or "cpu:0", "cpu:1", … when there are several; they share the host's memory."""
    count = cpu_workers or (0 if has_gpu else 1)
    ids = ["cpu"] if count == 1 else [f"cpu:{n}" for n in range(count)]
    total, free = host_memory()
    name = _cpu_name()
    return [
        DeviceState(
            id=identity,
            kind="cpu",
            name=name,
            worker=_UNBORN,
            memory_total_bytes=total,
            memory_free_bytes=free,
        )
        for identity in ids
    ]


def _read_again(devices: list[DeviceState]) -> list[DeviceState]:
    """The same devices with fresh readings; a device that fell off the bus keeps its identity."""
    _, host_free = host_memory()
    fresh = []
    for device in devices:
        if device.kind == "cpu":
            fresh.append(replace(device, memory_free_bytes=host_free))
        else:
            fresh.append(replace(device, **_gpu_readings(device.index or 0)))
    return fresh


def _discover_gpus() -> list[DeviceState]:
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception as error:  # NVMLError, or whatever a broken library makes ctypes raise
        _log.info("no GPUs", cause=f"NVML: {error}")
        return []
    driver = _ask("driver version", pynvml.nvmlSystemGetDriverVersion)
    cuda = _ask("CUDA version", pynvml.nvmlSystemGetCudaDriverVersion_v2)
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None
    gpus = [_gpu(index, driver, version) for index in range(count)]
    return [gpu for gpu in gpus if gpu is not None]


def _gpu(index: int, driver: str | None, cuda: str | None) -> DeviceState | None:
    handle = _ask(f"handle of GPU {index}", lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return None  # CUDA will not see it either
    capability = _ask(
        "compute capability", lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    )
    return DeviceState(
        id=f"cuda:{index}",
        kind="cuda",
        name=_ask("name", lambda: pynvml.nvmlDeviceGetName(handle)) or "unknown GPU",
        worker=_UNBORN,
        index=index,
        uuid=_ask("uuid", lambda: pynvml.nvmlDeviceGetUUID(handle)),
        memory_total_bytes=_ask(
            "total memory", lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        ),
        compute_capability="{}.{}".format(*capability) if capability else None,
        driver_version=driver,
        cuda_version=cuda,
        **_gpu_readings(index),
    )


def _gpu_readings(index: int) -> dict[str, Any]:
    """What changes while a GPU runs. A lost GPU reads as None throughout."""
    handle = _ask(f"handle of GPU {index}", lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return dict.fromkeys(("memory_free_bytes", "utilisation_percent", "temperature_c"))
    sensor = pynvml.NVML_TEMPERATURE_GPU
    return {
        "memory_free_bytes": _ask(
            "free memory", lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        ),
        "utilisation_percent": _ask(
            "utilisation", lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        ),
        "temperature_c": _ask(
            "temperature", lambda: int(pynvml.nvmlDeviceGetTemperature(handle, sensor))
        ),
    }


_refused: set[str] = set()


def _ask(what: str, call: Callable[[], T]) -> T | None:
    """The answer, or None with the refusal logged the first time."""
    try:
        return call()
    except Exception as error:
        if what not in _refused:
            _refused.add(what)
            _log.warning("NVML would not tell", what=what, cause=str(error))
        return None


def host_memory() -> tuple[int | None, int | None]:
    """Total and available bytes; None where /proc does not say."""
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return facts.get("MemTotal"), facts.get("MemAvailable")


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, by the names of /proc/cpuinfo; nothing where it does not say."""
    return frozenset(_first_of_cpuinfo("flags").split())


def _cpu_name() -> str:
    return _first_of_cpuinfo("model name") or "CPU"


def _first_of_cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    facts = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in facts if name.strip() == key), "")
