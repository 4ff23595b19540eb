"""What a model's operator may set where a request says nothing."""

from __future__ import annotations

import pytest

from cortex_core.config.loader import ConfigError
from cortex_core.config.loading import SamplingDefaults
from cortex_core.config.neuron import load_neuron_config
from cortex_core.envelopes.sampling import SamplingParameters
from cortex_core.errors import InvalidRequest
from cortex_core.wire import ipc


def test_every_default_is_something_that_a_request_and_a_worker_know():
    names = set(SamplingDefaults.__struct_fields__)
    assert names <= set(SamplingParameters.__struct_fields__)
    assert names <= set(ipc.Sampling.__struct_fields__)


def test_only_what_is_given_counts():
    assert SamplingDefaults(temperature=0.0, top_k=20).given == {"temperature": 0.0, "top_k": 20}


def test_what_a_request_may_not_ask_for_is_no_default():
    with pytest.raises(InvalidRequest, match=r"^sampling\.top_p: must be from 0 to 1") as caught:
        SamplingDefaults(top_p=1.5).check()
    assert caught.value.param == "sampling.top_p"


@pytest.mark.parametrize(
    ("sampling", "key"),
    [
        ({"top_p": 1.5}, "default_models[0].sampling.top_p"),
        ({"temprature": 1.5}, "default_models[0].sampling.temprature"),
    ],
)
def test_a_default_models_sampling_is_checked_before_anything_starts(
    sampling: dict[str, float], key: str
):
    flags = {"default_models": [{"id": "cortex/tiny", "sampling": sampling}]}
    with pytest.raises(ConfigError) as caught:
        load_neuron_config(None, {}, flags)
    assert key in f"{caught.value.key}"
