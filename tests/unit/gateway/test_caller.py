"""One client is one caller, whatever it says of itself."""

from __future__ import annotations

from cortex_gateway.caller import caller_of

KEY = (b"authorization", b"Bearer sk-secret")


def test_one_credential_from_one_address_is_one_caller():
    assert caller_of([KEY], "10.0.0.1") == caller_of([(b"host", b"x"), KEY], "10.0.0.1")


def test_two_keys_behind_one_proxy_are_two_callers():
    assert caller_of([(b"x-api-key", b"sk-1")], "a") != caller_of([(b"x-api-key", b"sk-2")], "a")


def test_two_clients_with_the_same_placeholder_for_a_key_are_two_callers():
    assert caller_of([KEY], "10.0.0.1") != caller_of([KEY], "10.0.0.2")


def test_the_credential_cannot_be_read_off_the_caller():
    caller = caller_of([KEY], "10.0.0.1")
    assert caller.startswith("key-")
    assert len(caller) == 20
    assert "secret" not in caller


def test_without_a_credential_it_is_the_address():
    assert caller_of([(b"authorization", b"")], "10.0.0.1") == "10.0.0.1"
    assert caller_of([], "") == "unknown"


def test_what_a_client_calls_itself_counts_for_nothing():
    assert caller_of([(b"x-cortex-caller", b"boss")], "10.0.0.1") == "10.0.0.1"


def test_a_key_is_one_caller_in_either_vendors_header():
    bearer = caller_of([KEY], "10.0.0.1")
    assert caller_of([(b"x-api-key", b"sk-secret")], "10.0.0.1") == bearer
    assert caller_of([(b"authorization", b"bearer  sk-secret")], "10.0.0.1") == bearer


def test_with_two_credentials_their_order_does_not_matter():
    two = [KEY, (b"x-api-key", b"sk-other")]
    assert caller_of(two, "10.0.0.1") == caller_of(two[::-1], "10.0.0.1")


def test_a_credential_of_another_scheme_counts_in_full():
    one, other = ([(b"authorization", scheme + b" abc")] for scheme in (b"Basic", b"Digest"))
    assert caller_of(one, "10.0.0.1") != caller_of(other, "10.0.0.1")
