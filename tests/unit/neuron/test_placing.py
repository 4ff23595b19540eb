"""Where a model goes when nobody says where."""

from __future__ import annotations

import pytest

from cortex_core.errors import NoCapacity
from neuron.models.placing import Candidate, by_room

GB = 10**9


def gpu(name: str, free_gb: float | None, models: int = 0, failure: str | None = None) -> Candidate:
    free = None if free_gb is None else int(free_gb * GB)
    return Candidate(name, False, free, models, failure)


def cpu(name: str, models: int = 0) -> Candidate:
    return Candidate(name, True, 100 * GB, models)


def test_the_gpu_with_most_free_memory():
    assert by_room([gpu("cuda:0", 10), gpu("cuda:1", 20)], GB)[0] == "cuda:1"


def test_a_gpu_before_a_cpu_with_more_memory():
    assert by_room([cpu("cpu"), gpu("cuda:0", 8)], GB)[0] == "cuda:0"


def test_a_cpu_before_a_gpu_that_is_too_small():
    assert by_room([gpu("cuda:0", 2), cpu("cpu")], 5 * GB)[0] == "cpu"


def test_a_gpu_that_hides_its_memory_is_tried():
    assert by_room([gpu("cuda:0", None), cpu("cpu")], 5 * GB)[0] == "cuda:0"


def test_the_cpu_device_with_fewest_models():
    assert by_room([cpu("cpu:0", 2), cpu("cpu:1", 1), cpu("cpu:2", 1)], GB)[0] == "cpu:1"


def test_where_nothing_fits_the_roomiest_is_still_named():
    assert by_room([gpu("cuda:0", 2), gpu("cuda:1", 3)], 5 * GB)[0] == "cuda:1"


def test_a_failed_device_is_passed_over():
    assert by_room([gpu("cuda:0", 20, failure="boom"), gpu("cuda:1", 3)], GB)[0] == "cuda:1"


def test_when_every_device_has_failed_the_refusal_says_why():
    with pytest.raises(NoCapacity, match=r"cuda:0: boom; cuda:1: bang"):
        by_room([gpu("cuda:0", 1, failure="boom"), gpu("cuda:1", 1, failure="bang")], GB)
