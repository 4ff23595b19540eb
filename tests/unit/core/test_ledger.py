"""What a model takes is estimated, then measured, then remembered, for as long as it holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.config.models import ModelEntry
from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelPhase, ModelState, NodeState
from cortex_core.fleet.ledger import Ledger, LedgerRow, Need

GIB = 2**30


def model(
    id: str = "m", size: int = 3 * GIB, load_s: float | None = 4.0, **more: Any
) -> ModelState:
    phase: ModelPhase = more.pop("phase", "ready")
    facts = {"device": "cuda:0", "memory_bytes": size, "load_s": load_s} | more
    return ModelState(id=id, phase=phase, path="/m.gguf", **facts)


def state(*models: ModelState, boot: str = "b1") -> NodeState:
    return NodeState("a", boot, 1, False, [], list(models))


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.configured([])
    ledger.observed("a", state())
    return ledger


# memory


def test_nothing_is_known_before_anybody_has_said_anything(ledger: Ledger):
    assert ledger.need("m", "a", "cuda:0") is None
    assert ledger.needs("m", "a", ["cuda:0"]) == {}
    assert not ledger.is_estimated("m", "a")


def test_what_was_measured_replaces_an_estimate_that_was_too_low(ledger: Ledger):
    ledger.estimated("m", "a", {"cuda:0": 2 * GIB})
    assert ledger.need("m", "a", "cuda:0") == Need(2 * GIB, "estimated")
    ledger.observed("a", state(model(size=3 * GIB)))
    assert ledger.need("m", "a", "cuda:0") == Need(3 * GIB, "measured")


def test_less_than_the_node_itself_thinks_necessary_is_not_counted_on(ledger: Ledger):
    ledger.estimated("m", "a", {"cuda:0": 5 * GIB})
    ledger.observed("a", state(model(size=3 * GIB)))
    assert ledger.need("m", "a", "cuda:0") == Need(5 * GIB, "estimated")


def test_what_was_measured_is_remembered_after_the_model_has_left(ledger: Ledger):
    ledger.observed("a", state(model()))
    ledger.observed("a", state())
    assert ledger.need("m", "a", "cuda:0") == Need(3 * GIB, "measured")


def test_a_model_that_is_not_ready_or_not_measured_teaches_nothing(ledger: Ledger):
    ledger.observed("a", state(model(phase="loading"), model("n", size=0)))
    assert ledger.export() == []


def test_a_device_of_which_nothing_is_known_is_taken_to_be_as_dear_as_the_dearest(ledger: Ledger):
    ledger.estimated("m", "a", {"cuda:0": 5 * GIB})
    ledger.observed("a", state(model(device="cuda:1")))
    assert ledger.need("m", "a", "cuda:2") == Need(5 * GIB, "elsewhere")
    assert ledger.needs("m", "a", ["cuda:0", "cuda:1", "cuda:2"]) == {
        "cuda:0": 5 * GIB,
        "cuda:1": 3 * GIB,
        "cuda:2": 5 * GIB,
    }


def test_one_node_says_nothing_of_another(ledger: Ledger):
    ledger.estimated("m", "a", {"cuda:0": 5 * GIB})
    assert ledger.need("m", "b", "cuda:0") is None


def test_why_a_node_cannot_load_a_model_is_an_answer_too(ledger: Ledger):
    fault = Fault("model_not_found", "no such file")
    ledger.estimated("m", "a", {}, fault)
    assert ledger.is_estimated("m", "a")
    assert ledger.fault("m", "a") == fault
    ledger.estimated("m", "a", {"cuda:0": 1})
    assert ledger.fault("m", "a") is None


def test_a_restarted_node_is_asked_again_but_what_was_measured_there_stays(ledger: Ledger):
    ledger.observed("a", state(model()))
    ledger.estimated("n", "a", {"cuda:0": 1})
    ledger.observed("a", state(boot="b1"))
    assert ledger.is_estimated("n", "a")
    ledger.observed("a", state(boot="b2"))
    assert not ledger.is_estimated("n", "a")
    assert ledger.need("m", "a", "cuda:0") == Need(3 * GIB, "measured")


def test_names_that_clients_make_up_do_not_fill_the_memory(ledger: Ledger):
    for index in range(5000):
        ledger.estimated(f"m{index}", "a", {}, Fault("model_not_found", "no"))
        ledger.asked(f"m{index}", float(index))
    assert not ledger.is_estimated("m0", "a")
    assert ledger.is_estimated("m4999", "a")
    assert ledger.demand("m0", 5000) == 0
    assert ledger.demand("m4999", 5000) > 0


# configuration


def test_what_was_learned_of_a_model_with_other_options_is_forgotten(ledger: Ledger):
    ledger.configured([ModelEntry(id="m", context=4096), ModelEntry(id="n")])
    ledger.observed("a", state(model(context=4096), model("n")))
    ledger.estimated("m", "b", {"cuda:0": 1})
    ledger.estimated("n", "b", {"cuda:0": 1})
    ledger.configured([ModelEntry(id="m", context=8192), ModelEntry(id="n", pinned=True)])
    assert ledger.need("m", "a", "cuda:0") is None
    assert not ledger.is_estimated("m", "b")
    assert ledger.need("n", "a", "cuda:0") is not None
    assert ledger.is_estimated("n", "b")


def test_a_model_that_somebody_loaded_with_another_context_teaches_nothing(ledger: Ledger):
    ledger.configured([ModelEntry(id="m", context=4096, kv_type="q8_0")])
    ledger.observed("a", state(model(context=512, kv_type="q8_0")))
    assert ledger.export() == []
    ledger.observed("a", state(model(context=4096, kv_type="q8_0")))
    assert len(ledger.export()) == 1


def test_a_loaded_model_that_is_configured_now_as_it_was_loaded_teaches_again(ledger: Ledger):
    ledger.observed("a", state(model(context=4096)))
    ledger.configured([ModelEntry(id="m", context=4096)])
    assert ledger.export() == []
    ledger.observed("a", state(model(context=4096)))
    assert ledger.need("m", "a", "cuda:0") == Need(3 * GIB, "measured")


def test_a_node_that_is_no_longer_configured_is_forgotten(ledger: Ledger):
    ledger.observed("a", state(model()))
    ledger.estimated("m", "a", {"cuda:0": 1})
    ledger.forget("a")
    assert ledger.export() == []
    assert not ledger.is_estimated("m", "a")


# seconds


def test_the_seconds_of_a_load_are_learned_once_for_each_load(ledger: Ledger):
    for _ in range(5):
        ledger.observed("a", state(model(load_s=4.0)))
    ledger.observed("a", state())
    for _ in range(5):
        ledger.observed("a", state(model(load_s=8.0)))
    assert ledger.reload_s("m", "a") == 6.0


def test_seconds_come_from_another_node_before_they_are_guessed(ledger: Ledger):
    ledger.observed("a", state(model(load_s=4.0)))
    assert ledger.reload_s("m", "b") == 4.0


def test_before_any_load_the_seconds_grow_with_the_memory(ledger: Ledger):
    ledger.estimated("small", "a", {"cuda:0": GIB})
    ledger.estimated("large", "a", {"cuda:0": 40 * GIB})
    assert 0 < ledger.reload_s("unknown", "a") < ledger.reload_s("small", "a")
    assert ledger.reload_s("small", "a") < ledger.reload_s("large", "a")


def test_a_load_that_was_not_timed_changes_no_seconds(ledger: Ledger):
    ledger.observed("a", state(model(load_s=4.0)))
    ledger.observed("a", state())
    ledger.observed("a", state(model(load_s=None)))
    assert ledger.reload_s("m", "a") == 4.0


# demand


def test_demand_counts_requests_and_fades(ledger: Ledger):
    for at in range(10):
        ledger.asked("m", float(at))
    at_once = ledger.demand("m", 9.0)
    assert at_once == pytest.approx(10 / 5, rel=0.02)  # ten, as five minutes' worth
    assert ledger.demand("m", 9.0 + 300) == pytest.approx(at_once / 2.718, rel=0.01)
    assert ledger.demand("never", 9.0) == 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 1e6))
def test_demand_never_grows_without_requests_and_never_exceeds_them(
    gaps: list[float], later_s: float
):
    ledger, now = Ledger(), 0.0
    for gap in gaps:
        now += gap
        ledger.asked("m", now)
    assert 0 <= ledger.demand("m", now + later_s) <= ledger.demand("m", now) <= len(gaps) / 5


# beyond the process


def test_another_process_knows_what_this_one_measured(ledger: Ledger):
    ledger.observed("a", state(model(), model("n", load_s=None)))
    second = Ledger()
    second.configured([])
    second.restore(ledger.export())
    assert second.export() == ledger.export()
    assert second.need("m", "a", "cuda:0") == Need(3 * GIB, "measured")
    assert second.reload_s("m", "a") == 4.0


def test_rows_of_other_options_are_not_restored(ledger: Ledger):
    ledger.observed("a", state(model()))
    second = Ledger()
    second.configured([ModelEntry(id="m", context=4096)])
    second.restore(ledger.export())
    assert second.export() == []


def test_what_is_seen_now_is_not_replaced_by_what_is_restored(ledger: Ledger):
    ledger.observed("a", state(model(size=GIB)))
    ledger.restore([LedgerRow("m", "a", "cuda:0", "", 9 * GIB, 1.0)])
    assert ledger.need("m", "a", "cuda:0") == Need(GIB, "measured")


def test_a_model_that_is_there_is_not_said_to_be_missing_any_more(ledger: Ledger):
    ledger.observed("a", state())
    ledger.estimated("m", "a", {}, Fault("model_not_found", "no such file"))
    assert ledger.fault("m", "a") is not None
    ledger.observed("a", state(model()))
    assert ledger.fault("m", "a") is None
