"""Who a request is counted for, and how urgent it is."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from cortex_core.errors import InvalidRequest
from neuron.precedence import Precedence, precedence_of


def test_who_says_nothing_is_its_address_and_does_not_want_to_wait():
    assert precedence_of(Headers({}), "10.0.0.7") == Precedence("10.0.0.7", "interactive")


@pytest.mark.parametrize("given", ["batch", "Batch", " batch "])
def test_a_batch_request_says_so(given: str):
    assert precedence_of(Headers({"x-cortex-priority": given}), "").priority == "batch"


@pytest.mark.parametrize("given", ["", "high", "batch,interactive", "0"])
def test_any_other_priority_is_refused_by_name(given: str):
    with pytest.raises(InvalidRequest, match="x-cortex-priority: expected") as caught:
        precedence_of(Headers({"x-cortex-priority": given}), "")
    assert caught.value.param == "x-cortex-priority"


def test_a_gateway_names_its_client():
    headers = Headers({"X-Cortex-Caller": "key-00ff"})
    assert precedence_of(headers, "10.0.0.7").caller == "key-00ff"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quo"te'])
def test_a_name_that_is_none_is_refused(given: str):
    with pytest.raises(InvalidRequest, match="x-cortex-caller: expected"):
        precedence_of(Headers({"x-cortex-caller": given}), "10.0.0.7")
