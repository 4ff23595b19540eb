"""Models loaded into the test's own process, each as a worker's first."""

from __future__ import annotations

from collections.abc import Callable

from cortex_core.wire.ipc import EngineParams
from neuron.worker import llama
from neuron.worker.load import LoadedModel, LoadedPooler, load
from neuron.worker.vocabulary import Vocabularies

__all__ = ["free_here", "load_here"]


def load_here(
    path: str,
    params: EngineParams,
    on_progress: Callable[[float], bool] = lambda _: True,
    parked_bytes: Callable[[], int] = lambda: 0,
) -> LoadedModel | LoadedPooler:
    llama.start()
    return load(
        path,
        params,
        device="cpu",
        vocabularies=Vocabularies(),
        parked_bytes=parked_bytes,
        on_progress=on_progress,
    )


def free_here(loaded: LoadedModel | LoadedPooler) -> None:
    """With the context that came with it."""
    loaded.context.free()
    loaded.held.close()
