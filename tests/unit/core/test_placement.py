"""Where a model goes, who leaves for it, and why it goes nowhere: each decision with reasons."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.placement import (
    DeviceView,
    NodeView,
    NoPlacement,
    Placement,
    Resident,
    Want,
    place,
)

MIB = 2**20
NOW = 1000.0
LRU = EvictionSection()
PRIORITY = EvictionSection(strategy="priority")


def gpu(total: int = 1000, free: int | None = 1000, id: str = "cuda:0", **more: Any) -> DeviceView:
    free_bytes = None if free is None else free * MIB
    return DeviceView(id=id, total_bytes=total * MIB, free_bytes=free_bytes, **more)


def resident(model: str, size: int = 500, **more: Any) -> Resident:
    facts = {"device": "cuda:0", "loaded_at": 0.0, "last_used": 500.0} | more
    return Resident(model=model, memory_bytes=size * MIB, **facts)


def node(name: str, *devices: DeviceView, need: int = 500, **more: Any) -> NodeView:
    devices = devices or (gpu(),)
    needs = {device.id: need * MIB for device in devices}
    return NodeView(**{"name": name, "devices": devices, "needs": needs} | more)


def full(name: str, *residents: Resident, need: int = 500, total: int = 1000) -> NodeView:
    return node(name, gpu(total, 0), need=need, residents=residents)


def want(waiting: int = 1, may_evict: bool = True, **entry: Any) -> Want:
    return Want(entry=ModelEntry(id="new", **entry), waiting=waiting, may_evict=may_evict)


def placed(*nodes: NodeView, wanted: Want | None = None, by: EvictionSection = LRU) -> Placement:
    found = place(wanted or want(), nodes, by, NOW)
    assert isinstance(found, Placement), found
    return found


def refused(*nodes: NodeView, wanted: Want | None = None, by: EvictionSection = LRU) -> NoPlacement:
    found = place(wanted or want(), nodes, by, NOW)
    assert isinstance(found, NoPlacement), found
    return found


# which of those where it fits


def test_the_node_with_the_most_free_memory_gets_it():
    found = placed(node("a", gpu(free=600)), node("b", gpu(free=900)))
    assert (found.node, found.device, found.evict) == ("b", "cuda:0", ())
    assert found.need_bytes == 500 * MIB


def test_of_equals_the_first_name_gets_it():
    assert placed(node("b"), node("a")).node == "a"


def test_free_room_comes_before_eviction():
    assert placed(full("a", resident("old")), node("b", gpu(free=500))).node == "b"


def test_a_node_it_is_pinned_on_comes_first_even_if_others_must_leave_there():
    found = placed(node("a"), full("b", resident("old")), wanted=want(pinned_on=("b",)))
    assert (found.node, found.evict) == ("b", ("old",))


def test_another_node_serves_when_the_pinned_one_is_unreachable():
    nodes = node("a"), node("b", absence="silent for 6 s")
    assert placed(*nodes, wanted=want(pinned_on=("b",))).node == "a"


def test_a_gpu_comes_before_a_cpu_with_more_memory():
    cpu = gpu(64000, 60000, id="cpu", kind="cpu")
    assert placed(node("a", cpu, gpu(free=500))).device == "cuda:0"


def test_every_device_of_a_node_is_considered():
    assert placed(node("a", gpu(free=100), gpu(free=700, id="cuda:1"))).device == "cuda:1"


# constraints


def test_only_nodes_with_enough_devices_of_that_size_count():
    two = node("b", gpu(free=500), gpu(free=500, id="cuda:1"))
    assert placed(node("a"), two, wanted=want(min_devices=2)).node == "b"
    found = refused(node("a"), wanted=want(min_device_vram_mb=1001))
    assert found.causes == {
        "a": "has 0 of the 1 devices that it must have, GPUs with 1,001 MiB in all"
    }
    assert found.is_forever


def test_host_memory_is_no_video_memory():
    cpu = node("a", gpu(64000, 64000, id="cpu", kind="cpu"))
    assert refused(cpu, wanted=want(min_device_vram_mb=1000)).is_forever


def test_a_device_that_is_too_small_is_not_chosen_on_a_node_that_has_a_larger_one():
    mixed = node("a", gpu(800, 800), gpu(2000, 600, id="cuda:1"))
    assert placed(mixed, wanted=want(min_device_vram_mb=1500)).device == "cuda:1"


# who leaves


def test_the_longest_unused_model_leaves():
    found = placed(full("a", resident("x", last_used=700), resident("y", last_used=600)))
    assert found.evict == ("y",)


def test_nobody_leaves_in_vain():
    small = resident("small", 100, last_used=1)
    found = placed(full("a", small, resident("large", 900, last_used=2)))
    assert found.evict == ("large",)


def test_as_many_leave_as_must_and_the_least_missed_first():
    found = placed(
        full("a", *(resident(model, 250, last_used=at) for at, model in enumerate("wxyz")))
    )
    assert found.evict == ("w", "x")


def test_between_nodes_those_who_are_missed_least_leave():
    found = placed(full("a", resident("x", last_used=700)), full("b", resident("y")))
    assert found.node == "b"


def test_by_priority_a_lower_class_leaves_first_then_what_is_cheap_to_load_again():
    low = resident("low", priority=-1, reload_s=90, demand=9)
    cheap = resident("cheap", reload_s=5, demand=2)
    dear = resident("dear", reload_s=60, demand=2, last_used=0)
    assert placed(full("a", dear, cheap, low), by=PRIORITY).evict == ("low",)
    assert placed(full("a", dear, cheap), by=PRIORITY).evict == ("cheap",)
    assert placed(full("a", dear, cheap), by=LRU).evict == ("dear",)


def test_models_of_one_class_may_take_each_others_place():
    same = full("a", resident("old", priority=3))
    assert placed(same, wanted=want(residency_priority=3)).evict == ("old",)


def test_cpu_devices_that_share_the_hosts_memory_make_room_for_each_other():
    cpus = [gpu(1000, 0, id=id, kind="cpu", pool="host") for id in ("cpu:0", "cpu:1")]
    there = resident("old", 600, device="cpu:1")
    assert placed(node("a", *cpus, residents=(there,))).evict == ("old",)
    apart = [replace(cpu, pool="") for cpu in cpus]
    assert placed(node("a", *apart, residents=(there,))).device == "cpu:1"


# who stays


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"is_pinned": True}, "old is pinned"),
        ({"priority": 1}, "old is of class 1, above 0"),
    ],
)
def test_what_may_never_be_evicted_is_not_waited_for(facts: dict[str, Any], why: str):
    found = refused(full("a", resident("old", **facts)))
    assert why in found.causes["a"]
    assert not found.is_worth_waiting
    assert not found.is_forever
    assert found.after_drain is None


def test_a_busy_model_is_not_evicted_but_would_be_once_its_requests_have_ended():
    found = refused(full("a", resident("old", busy=2)))
    assert "old is busy with 2" in found.causes["a"]
    assert found.is_worth_waiting
    assert found.after_drain is not None
    assert (found.after_drain.node, found.after_drain.evict) == ("a", ("old",))


def test_a_model_that_has_just_come_stays_for_a_while():
    found = refused(full("a", resident("old", loaded_at=NOW - 10, demand=1)))
    assert "old is to stay 20 s more" in found.causes["a"]
    assert found.retry_at == NOW + 20
    assert found.is_worth_waiting
    assert found.after_drain is None


def test_a_model_that_has_just_come_gives_way_when_clearly_more_want_another():
    young = full("a", resident("old", loaded_at=NOW - 10, demand=0.4))  # two of late
    refused(young, wanted=want(waiting=2))
    assert placed(young, wanted=want(waiting=3)).evict == ("old",)


def test_one_client_alone_is_never_clearly_more():
    refused(full("a", resident("old", loaded_at=NOW - 10)), wanted=want(waiting=1))


def test_a_young_model_is_not_drained_either():
    found = refused(full("a", resident("old", loaded_at=NOW - 10, busy=1, demand=1)))
    assert found.after_drain is None


def test_without_permission_to_evict_only_free_room_counts():
    found = refused(full("a", resident("old")), wanted=want(may_evict=False))
    assert "nothing is evicted for it" in found.causes["a"]
    assert not found.is_worth_waiting


def test_who_is_leaving_gives_only_a_part_and_somebody_busy_the_rest_is_worth_the_wait():
    leaving, busy = resident("old", 300, phase="unloading"), resident("used", 700, busy=1)
    found = refused(full("a", leaving, busy, need=900))
    assert found.is_worth_waiting
    assert found.after_drain is None


def test_who_is_leaving_already_is_waited_for():
    leaving = resident("old", phase="draining", busy=1)
    found = refused(full("a", leaving, resident("other")))
    assert "old will have left enough" in found.causes["a"]
    assert found.is_worth_waiting


def test_nobody_is_evicted_beside_a_model_whose_size_is_not_settled():
    coming = resident("coming", phase="loading")
    found = refused(full("a", coming, resident("other")))
    assert "coming will first have to be there" in found.causes["a"]


def test_memory_that_a_loading_model_has_not_taken_yet_is_not_free():
    coming = resident("coming", 600, phase="loading")
    assert (
        "400 MiB of 1,000 MiB are free"
        in refused(node("a", gpu(free=1000), residents=(coming,))).causes["a"]
    )


# what nobody knows


def test_memory_that_the_driver_does_not_tell_is_counted():
    unknown = gpu(1000, None)
    found = refused(node("a", unknown, residents=(resident("old", 600, is_pinned=True),)))
    assert "400 MiB of 1,000 MiB are free (by what the models there take" in found.causes["a"]
    assert placed(node("a", unknown, residents=(resident("old", 500),))).evict == ()


def test_a_device_of_which_nothing_is_known_is_tried_after_all_others():
    unknown = DeviceView(id="cuda:0")
    found = placed(node("a", unknown), node("b", gpu(free=500)))
    assert found.node == "b"
    alone = placed(node("a", unknown))
    assert "nobody knows what is free, so it fits" in alone.why[0]


def test_a_need_that_nobody_knows_yet_is_waited_for():
    found = refused(NodeView(name="a", devices=(gpu(),)))
    assert "nobody knows yet" in found.causes["a"]
    assert found.is_worth_waiting


# nodes that cannot, now or ever


def test_what_fits_on_no_empty_node_never_fits():
    found = refused(node("a", need=1001), node("b", need=2000, absence="gone"))
    assert found.is_forever
    assert not found.is_worth_waiting
    assert found.causes["a"] == "cuda:0: needs 1,001 MiB, and there are 1,000 MiB in all"


def test_one_node_that_could_hold_it_keeps_the_answer_open():
    assert not refused(node("a", need=1001), node("b", absence="gone")).is_forever


def test_a_fault_of_the_model_is_forever_and_a_fault_of_the_node_is_not():
    corrupt = Fault("gguf_corrupt", "bad magic")
    found = refused(node("a", fault=corrupt))
    assert found.is_forever
    assert found.causes["a"] == "cannot load it: bad magic"
    silent = refused(node("a", fault=Fault("node_unavailable", "no answer")))
    assert not silent.is_forever
    assert silent.is_worth_waiting


@pytest.mark.parametrize(
    ("facts", "cause", "is_worth_waiting"),
    [
        ({"absence": "silent for 6 s"}, "is unreachable: silent for 6 s", False),
        ({"is_draining": True}, "is draining", False),
        ({"is_placing": True}, "is being given another model", True),
        ({"devices": (gpu(cause="4 crashes"),)}, "cuda:0: out of order: 4 crashes", False),
        ({"devices": (), "needs": {}}, "has told of no device", False),
        ({"residents": (resident("new"),)}, "has it already, ready", False),
        ({"residents": (resident("new", phase="unloading"),)}, "has it already, unloading", True),
    ],
)
def test_a_node_that_cannot_take_it_now_says_why(
    facts: dict[str, Any], cause: str, is_worth_waiting: bool
):
    found = refused(node("a", **facts))
    assert found.causes == {"a": cause}
    assert found.is_worth_waiting == is_worth_waiting
    assert not found.is_forever


def test_a_node_to_be_avoided_says_why():
    wanted = Want(entry=ModelEntry(id="new"), avoid={"a": "has failed this request"})
    assert refused(node("a"), wanted=wanted).causes == {"a": "has failed this request"}


def test_without_nodes_there_is_nothing_to_wait_for():
    found = refused()
    assert found.causes == {}
    assert not found.is_worth_waiting


def test_the_reasons_tell_of_every_node_and_of_the_choice():
    old = resident("old", last_used=NOW - 312)
    found = placed(node("a", absence="gone"), full("b", old), node("c", gpu(free=600)))
    assert found.why == (
        "a is unreachable: gone",
        "b cuda:0: needs 500 MiB, 0 MiB of 1,000 MiB are free: it fits after evicting old "
        "(500 MiB, unused for 312 s)",
        "c cuda:0: needs 500 MiB, 600 MiB of 1,000 MiB are free: it fits",
        "chosen: c cuda:0, since nothing has to leave there",
    )
    assert placed(node("a")).why[-1] == "chosen: a cuda:0, since it fits nowhere else"
