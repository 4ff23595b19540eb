"""From configuration and request to the parameters of a load."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex_core.config.loading import LoadOptions
from cortex_core.config.neuron import EngineSection
from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import EngineParams
from neuron.models.options import NAMES, Wanted, params_of

CPU, GPU = ("cpu", 0), ("cuda:0", 1)


def params(
    engine: EngineSection | None = None, where: tuple[str, int] = CPU, **options: Any
) -> EngineParams:
    device, gpus = where
    return params_of(
        engine or EngineSection(), LoadOptions(**options), device=device, gpus=gpus, threads=3
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_parameter_and_a_default(name: str) -> None:
    assert name in EngineParams.__struct_fields__
    assert name in EngineSection.__struct_fields__
    assert name in Wanted.__struct_fields__


def test_unasked_is_what_is_configured() -> None:
    found = params(EngineSection(context=9, kv_type="q8_0", max_step_ms=7.0, host_cache_mb=5))
    assert (found.context, found.kv_type) == (9, "q8_0")
    assert (found.max_step_ms, found.host_cache_mb) == (7.0, 5)


def test_what_is_asked_for_wins() -> None:
    found = params(EngineSection(context=9, kv="unified"), context=0, kv="partitioned", mlock=True)
    assert (found.context, found.kv, found.mlock) == (0, "partitioned", True)


def test_threads_left_open_are_the_devices_part() -> None:
    assert params().threads == 3
    assert params(threads=5).threads == 5


def test_a_cpu_hears_nothing_of_what_is_configured_for_gpus() -> None:
    engine = EngineSection(gpu_layers=7, tensor_split=[1, 2], main_gpu=1, split_mode="row")
    found = params(engine)
    assert (found.gpu_layers, found.tensor_split, found.main_gpu) == (0, (), 0)
    assert found.split_mode == "layer"


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_layers", 3), ("tensor_split", [1.0]), ("main_gpu", 1), ("split_mode", "row")],
)
def test_a_cpu_refuses_what_is_for_gpus_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="cpu is a CPU") as caught:
        params(**{name: value})
    assert caught.value.param == name


def test_all_the_layers_a_cpu_can_put_on_gpus_are_none() -> None:
    assert params(gpu_layers=-1).gpu_layers == 0


def test_a_gpu_takes_them() -> None:
    found = params(where=GPU, gpu_layers=3, tensor_split=[1.0], split_mode="none")
    assert (found.gpu_layers, found.tensor_split, found.split_mode) == (3, (1.0,), "none")


@pytest.mark.parametrize(
    ("name", "value"), [("main_gpu", 1), ("tensor_split", [1.0, 1.0]), ("tensor_split", [0.0])]
)
def test_a_gpu_that_is_not_there_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(where=GPU, **{name: value})
    assert caught.value.param == name


def test_a_configured_gpu_that_is_not_there_is_refused_too() -> None:
    with pytest.raises(InvalidRequest, match="2 shares, but cuda:0 is 1 GPU"):
        params(EngineSection(tensor_split=[1.0, 1.0]), where=GPU)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", -1),
        ("parallel", 0),
        ("parallel", 257),
        ("batch", 16),
        ("gpu_layers", -2),
        ("kv", "half"),
        ("kv_type", "q5_0"),
        ("tensor_split", [-1.0]),
        ("main_gpu", -1),
        ("cells", -1),
        ("mmap", "yes"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert({name: value}, LoadOptions)
