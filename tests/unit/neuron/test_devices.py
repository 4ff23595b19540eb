"""Devices as the real nvidia-ml-py reports them over a stub of the driver's library."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from cortex_core.fleet.discovery import DeviceState, WorkerState
from neuron.devices import cpu_devices, cpu_flags

GIB = 1 << 30
SOURCE = Path(__file__).with_name("stub_nvml.c")
DISCOVER = """
import logging, msgspec, sys
from neuron import devices, logs
logs.configure("debug")
print(msgspec.json.encode(devices.discover(int(sys.argv[1]))).decode())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", target, SOURCE], check=True)
    return folder


def run(code: str, *args: str, folder: Path, fail: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"LD_LIBRARY_PATH": str(folder), "STUB_NVML": fail, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def discover(folder: Path, fail: str = "", cpu_workers: int = 0) -> tuple[list[DeviceState], str]:
    done = run(DISCOVER, str(cpu_workers), folder=folder, fail=fail)
    return msgspec.json.decode(done.stdout, type=list[DeviceState]), done.stderr


def test_two_gpus_are_described_whole(library: Path):
    devices, log = discover(library)
    assert devices == [
        DeviceState(
            id="cuda:0",
            kind="cuda",
            name="Stub GPU A",
            worker=WorkerState("starting"),
            index=0,
            uuid="GPU-00000000",
            memory_total_bytes=24 * GIB,
            memory_free_bytes=20 * GIB,
            compute_capability="8.6",
            utilisation_percent=37,
            temperature_c=61,
            driver_version="580.12.34",
            cuda_version="13.2",
        ),
        DeviceState(
            id="cuda:1",
            kind="cuda",
            name="Stub GPU B",
            worker=WorkerState("starting"),
            index=1,
            uuid="GPU-00000001",
            memory_total_bytes=8 * GIB,
            memory_free_bytes=5 * GIB,
            compute_capability="9.0",
            utilisation_percent=37,
            temperature_c=62,
            driver_version="580.12.34",
            cuda_version="13.2",
        ),
    ]
    assert "warning" not in log


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("nvmlSystemGetDriverVersion", {"driver_version"}),
        ("nvmlSystemGetCudaDriverVersion_v2", {"cuda_version"}),
        ("nvmlDeviceGetUUID", {"uuid"}),
        ("nvmlDeviceGetMemoryInfo", {"memory_total_bytes", "memory_free_bytes"}),
        ("nvmlDeviceGetCudaComputeCapability", {"compute_capability"}),
        ("nvmlDeviceGetUtilizationRates", {"utilisation_percent"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
    ],
)
def test_a_call_that_fails_costs_its_own_facts_only(library: Path, call: str, fields: set[str]):
    devices, log = discover(library, fail=call)
    assert [device.id for device in devices] == ["cuda:0", "cuda:1"]
    for device in devices:
        unknown = {name for name in device.__struct_fields__ if getattr(device, name) is None}
        assert unknown == fields
    assert "Unknown Error" in log


def test_a_gpu_without_a_name_is_still_a_gpu(library: Path):
    devices, _ = discover(library, fail="nvmlDeviceGetName")
    assert [device.name for device in devices] == ["unknown GPU"] * 2


def test_everything_failing_but_the_count_leaves_two_bare_gpus(library: Path):
    calls = (
        "nvmlSystemGetDriverVersion,nvmlSystemGetCudaDriverVersion_v2,nvmlDeviceGetName,"
        "nvmlDeviceGetUUID,nvmlDeviceGetMemoryInfo,nvmlDeviceGetCudaComputeCapability,"
        "nvmlDeviceGetUtilizationRates,nvmlDeviceGetTemperature"
    )
    devices, _ = discover(library, fail=calls)
    assert [(d.id, d.index, d.uuid) for d in devices] == [("cuda:0", 0, None), ("cuda:1", 1, None)]


def test_a_gpu_that_has_fallen_off_the_bus_is_left_out(library: Path):
    devices, log = discover(library, fail="lost")
    assert [device.id for device in devices] == ["cuda:0"]
    assert "GPU is lost" in log


@pytest.mark.parametrize(
    "call", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"]
)
def test_a_driver_that_fails_means_the_cpu(library: Path, call: str):
    devices, log = discover(library, fail=call)
    assert [device.id for device in devices] == ["cpu"]
    assert "Unknown Error" in log


def test_no_library_means_the_cpu(tmp_path: Path):
    devices, log = discover(tmp_path)
    assert [device.id for device in devices] == ["cpu"]
    assert '"no GPUs"' in log
    assert "NVML Shared Library Not Found" in log


def test_a_library_that_is_none_means_the_cpu(tmp_path: Path):
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    devices, _ = discover(tmp_path)
    assert [device.id for device in devices] == ["cpu"]


def test_a_library_without_the_functions_means_the_cpu(tmp_path: Path):
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;")
    target = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", target, empty], check=True)
    devices, log = discover(tmp_path)
    assert [device.id for device in devices] == ["cpu"]
    assert "Function Not Found" in log


def test_a_driver_that_hangs_holds_nobody_up(library: Path):
    code = """
import asyncio
from neuron.devices import Devices
devices = Devices(0)
found = asyncio.run(devices.discover(timeout_s=0.2))
print([device.id for device in found])
"""
    start = time.monotonic()
    assert run(code, folder=library, fail="hang").stdout.strip() == "['cpu']"
    assert time.monotonic() - start < 10


def test_readings_are_followed_and_a_lost_gpu_keeps_its_identity(library: Path):
    # The variable is set for the C library's getenv, as a driver's state would change below us.
    code = """
import asyncio, ctypes
from neuron.devices import Devices

async def main():
    devices = Devices(0, interval_s=0.01)
    first = await devices.discover()
    fresh = asyncio.get_running_loop().create_future()
    devices.follow(first, lambda found: fresh.done() or fresh.set_result(found))
    ctypes.CDLL(None).setenv(b"STUB_NVML", b"lost", 1)
    found = await asyncio.wait_for(fresh, 10)
    devices.stop()
    print([(d.id, d.uuid, d.memory_free_bytes is None) for d in found])

asyncio.run(main())
"""
    done = run(code, folder=library)
    assert done.stdout.strip() == (
        "[('cuda:0', 'GPU-00000000', False), ('cuda:1', 'GPU-00000001', True)]"
    )


def test_cpu_devices_beside_gpus_only_where_asked_for(library: Path):
    assert [d.id for d in discover(library, cpu_workers=1)[0]] == ["cuda:0", "cuda:1", "cpu"]
    assert [d.id for d in discover(library, cpu_workers=2)[0]][2:] == ["cpu:0", "cpu:1"]


def test_cpu_devices_know_the_hosts_memory():
    for device in cpu_devices(2, has_gpu=False):
        assert device.memory_total_bytes is not None
        assert device.memory_free_bytes is not None
        assert 0 < device.memory_free_bytes <= device.memory_total_bytes
        assert device.name


def test_what_the_processor_can_do_is_what_proc_says():
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    told = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    assert cpu_flags() == set(told.partition(":")[2].split())


def test_a_processor_that_does_not_say_can_do_nothing_and_is_still_one(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert cpu_flags.__wrapped__() == frozenset()
    assert [device.name for device in cpu_devices(1, has_gpu=False)] == ["CPU"]
