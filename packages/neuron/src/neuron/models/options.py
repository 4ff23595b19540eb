"""The parameters of a load, from what the operator configured and what its asker wants. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex_core.config.loading import LoadOptions, SamplingDefaults
from cortex_core.config.neuron import EngineSection
from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import EngineParams

__all__ = ["NAMES", "Wanted", "asked", "params_of", "wanted_of"]

NAMES = LoadOptions.__struct_fields__
_GPU_ONLY = ("split_mode", "tensor_split", "main_gpu")
_LIMITS = ("host_cache_mb", "max_step_ms", "max_waiting", "max_wait_s")


class Wanted(LoadOptions, frozen=True, kw_only=True):
    """A load as its asker sees it; None = whatever is configured, or already there. `source`: the
    hub to take it from."""

    device: str | None = None
    source: str | None = None
    sampling: SamplingDefaults | None = None


def wanted_of(options: LoadOptions) -> Wanted:
    """A load request's, an estimate's or a default model's, with what else it says of a load.
    Raises InvalidRequest for sampling out of range."""
    known = options.__struct_fields__
    wanted = Wanted(
        **{name: getattr(options, name) for name in Wanted.__struct_fields__ if name in known}
    )
    if wanted.sampling is not None:
        wanted.sampling.check()
    return wanted


def asked(options: LoadOptions) -> dict[str, Any]:
    """The options that are given, as EngineParams has them."""
    given = {name: getattr(options, name) for name in NAMES}
    if given["tensor_split"] is not None:
        given["tensor_split"] = tuple(given["tensor_split"])
    return {name: value for name, value in given.items() if value is not None}


def params_of(
    engine: EngineSection, options: LoadOptions, *, device: str, gpus: int, threads: int
) -> EngineParams:
    """`gpus`: how many the device's worker sees, 0 on a CPU; `threads`: what a configured 0 comes
    to. What is configured for GPUs says nothing to a CPU; what a load asks for must be possible.
    Raises InvalidRequest, naming the option."""
    given = asked(options)
    values = {name: getattr(engine, name) for name in (*NAMES, *_LIMITS)}
    values["tensor_split"] = tuple(engine.tensor_split)
    _check(values | given if gpus else given, device, gpus)
    if gpus == 0:
        defaults = EngineParams()
        values |= {name: getattr(defaults, name) for name in _GPU_ONLY}
        values["gpu_layers"] = 0
    params = EngineParams(**(values | given))
    if gpus == 0 and params.gpu_layers < 0:
        params = msgspec.structs.replace(params, gpu_layers=0)  # all that there can be
    return params if params.threads else msgspec.structs.replace(params, threads=threads)


def _check(given: dict[str, Any], device: str, gpus: int) -> None:
    if gpus == 0:
        for name in (*_GPU_ONLY, "gpu_layers"):
            if given.get(name) not in (None, 0, -1, "layer", ()):
                raise InvalidRequest(
                    f"{name}: {given[name]!r} is for GPUs, and {device} is a CPU", param=name
                )
        return
    if given.get("main_gpu", 0) >= gpus:
        raise InvalidRequest(
            f"main_gpu: there is no {given['main_gpu']}; {device} is {gpus} GPU(s), from 0",
            param="main_gpu",
        )
    shares = given.get("tensor_split", ())
    if len(shares) > gpus:
        raise InvalidRequest(
            f"tensor_split: {len(shares)} shares, but {device} is {gpus} GPU(s)",
            param="tensor_split",
        )
    if shares and not sum(shares):
        raise InvalidRequest("tensor_split: every share is 0", param="tensor_split")
