"""Whatever the fleet looks like, a placement keeps these promises."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex_core.config.gateway import EvictionSection
from cortex_core.config.models import ModelEntry
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

ARRIVING = ("loading", "recovering")
"""These have not taken their memory yet."""

SIZES = st.integers(1, 12)
RESIDENTS = st.builds(
    Resident,
    model=st.just("?"),
    memory_bytes=SIZES.map(lambda size: size * MIB),
    device=st.sampled_from(["cuda:0", "cuda:1"]),
    phase=st.sampled_from(["ready"] * 6 + ["loading", "draining", "unloading", "recovering"]),
    is_pinned=st.sampled_from([False, False, True]),
    priority=st.integers(-1, 1),
    busy=st.sampled_from([0, 0, 1]),
    loaded_at=st.sampled_from([0.0, NOW - 10]),
    last_used=st.integers(0, 5).map(float),
    reload_s=st.integers(0, 3).map(float),
    demand=st.sampled_from([0.0, 0.5, 2.0]),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeView]:
    nodes: list[NodeView] = []
    for name in draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3)):
        total = draw(st.integers(1, 30))
        residents: list[Resident] = []
        for index, one in enumerate(draw(st.lists(RESIDENTS, max_size=6))):
            residents.append(replace(one, model=f"m{index}"))
        devices: list[DeviceView] = []
        for device in ("cuda:0", "cuda:1"):
            there = [r for r in residents if r.device == device and r.phase not in ARRIVING]
            free = total - sum(r.memory_bytes for r in there) // MIB
            assume(free >= 0)
            is_telling = draw(st.sampled_from([True, True, True, False]))
            free_bytes = free * MIB if is_telling else None
            devices.append(DeviceView(id=device, total_bytes=total * MIB, free_bytes=free_bytes))
        need = draw(SIZES)
        needs = {device.id: need * MIB for device in devices}
        nodes.append(
            NodeView(name=name, devices=tuple(devices), residents=tuple(residents), needs=needs)
        )
    return nodes


WANTS = st.builds(
    Want,
    entry=st.builds(ModelEntry, id=st.just("new"), residency_priority=st.integers(-1, 1)),
    waiting=st.integers(1, 20),
)
RULES = st.sampled_from([LRU, PRIORITY])


def _there(found: Placement, nodes: list[NodeView]) -> tuple[NodeView, DeviceView, list[Resident]]:
    chosen = next(one for one in nodes if one.name == found.node)
    device = next(one for one in chosen.devices if one.id == found.device)
    return chosen, device, [one for one in chosen.residents if one.device == device.id]


@given(fleets(), WANTS, RULES)
def test_nobody_who_must_stay_is_ever_evicted(
    nodes: list[NodeView], wanted: Want, by: EvictionSection
):
    found = place(wanted, nodes, by, NOW)
    plan = found if isinstance(found, Placement) else found.after_drain
    if plan is None:
        return
    _, _, there = _there(plan, nodes)
    leaving = [one for one in there if one.model in plan.evict]
    assert len(leaving) == len(plan.evict)
    for one in leaving:
        assert not one.is_pinned
        assert one.priority <= wanted.entry.residency_priority
        assert one.phase == "ready"
        assert one.busy == 0 or isinstance(found, NoPlacement)
        is_young = one.loaded_at > NOW - by.min_residency_s
        assert not is_young or wanted.waiting > 5 * one.demand


@given(fleets(), WANTS, RULES)
def test_no_plan_goes_beyond_a_devices_memory(
    nodes: list[NodeView], wanted: Want, by: EvictionSection
):
    found = place(wanted, nodes, by, NOW)
    if isinstance(found, Placement):
        _, device, there = _there(found, nodes)
        assert device.total_bytes is not None
        staying = sum(one.memory_bytes for one in there if one.model not in found.evict)
        assert staying + found.need_bytes <= device.total_bytes


@given(fleets(), WANTS, RULES)
def test_with_any_one_victim_fewer_it_would_not_fit(
    nodes: list[NodeView], wanted: Want, by: EvictionSection
):
    found = place(wanted, nodes, by, NOW)
    if isinstance(found, Placement) and found.evict:
        _, device, there = _there(found, nodes)
        assert device.total_bytes is not None
        room = device.total_bytes - sum(one.memory_bytes for one in there)
        sizes = {one.model: one.memory_bytes for one in there}
        for fewer in combinations(found.evict, len(found.evict) - 1):
            assert room + sum(sizes[model] for model in fewer) < found.need_bytes


@given(fleets(), WANTS)
def test_the_longest_unused_leave_whatever_else_would_have_done(
    nodes: list[NodeView], wanted: Want
):
    found = place(wanted, nodes, LRU, NOW)
    if isinstance(found, Placement) and found.evict:
        _, device, there = _there(found, nodes)
        assert device.total_bytes is not None
        room = device.total_bytes - sum(one.memory_bytes for one in there)
        newest = max(one.last_used for one in there if one.model in found.evict)
        older = [
            one.memory_bytes
            for one in there
            if one.last_used < newest
            and not (one.is_pinned or one.busy or one.phase != "ready")
            and one.priority <= wanted.entry.residency_priority
            and (one.loaded_at == 0 or wanted.waiting > max(1, 5 * one.demand))
        ]
        assert room + sum(older) < found.need_bytes


@given(fleets(), WANTS, RULES)
def test_no_set_of_victims_is_needed_where_there_is_free_room(
    nodes: list[NodeView], wanted: Want, by: EvictionSection
):
    found = place(wanted, nodes, by, NOW)
    has_room = any(
        one.needs[device.id]
        <= device.total_bytes - sum(r.memory_bytes for r in one.residents if r.device == device.id)
        for one in nodes
        for device in one.devices
        if device.total_bytes is not None
    )
    assert (isinstance(found, Placement) and not found.evict) == has_room


@given(fleets(), WANTS, RULES, st.randoms())
def test_the_order_of_what_is_given_does_not_matter(
    nodes: list[NodeView], wanted: Want, by: EvictionSection, random: Any
):
    shuffled = [
        replace(one, residents=tuple(random.sample(one.residents, len(one.residents))))
        for one in random.sample(nodes, len(nodes))
    ]
    assert place(wanted, shuffled, by, NOW) == place(wanted, nodes, by, NOW)


@given(fleets(), WANTS, RULES)
def test_what_is_forever_is_not_worth_waiting_for(
    nodes: list[NodeView], wanted: Want, by: EvictionSection
):
    found = place(wanted, nodes, by, NOW)
    if isinstance(found, NoPlacement):
        assert not (found.is_forever and found.is_worth_waiting)
        assert found.retry_at is None or found.is_worth_waiting
        assert found.after_drain is None or found.is_worth_waiting
