"""Who is blamed for a crash, who is refused, and who is cleared."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cortex_core.errors import PoisonPrompt
from cortex_core.wire import ipc
from neuron.models.identity import Identity
from neuron.poison import Suspects, fingerprint

BAD, GOOD, OTHER = b"bad", b"good", b"other"


def is_refused(suspects: Suspects, prompt: bytes, at: float = 2) -> bool:
    try:
        suspects.check(prompt, at)
    except PoisonPrompt:
        return True
    return False


def test_a_prompt_is_refused_after_its_second_crash_and_not_before():
    suspects = Suspects()
    suspects.blame(1, [BAD], "killed by SIGSEGV")
    assert not is_refused(suspects, BAD)
    suspects.blame(2, [BAD], "killed by SIGABRT")
    with pytest.raises(PoisonPrompt, match=r"2 crashes .* another 60 min; the last: .*SIGABRT"):
        suspects.check(BAD, 2)


def test_where_a_suspect_is_found_again_those_beside_it_are_not_blamed():
    suspects = Suspects()
    suspects.blame(1, [BAD], "")
    suspects.blame(2, [BAD, GOOD], "")
    assert is_refused(suspects, BAD)
    assert not suspects.is_suspect(GOOD, 2)


def test_all_that_ran_at_a_first_crash_are_suspects():
    suspects = Suspects()
    suspects.blame(1, [BAD, GOOD], "")
    assert suspects.is_suspect(BAD, 1)
    assert suspects.is_suspect(GOOD, 1)


def test_a_suspect_that_is_answered_is_cleared():
    suspects = Suspects()
    suspects.blame(1, [GOOD], "")
    suspects.clear(GOOD)
    suspects.clear(GOOD)
    assert not suspects
    suspects.blame(2, [GOOD], "")
    assert not is_refused(suspects, GOOD)


def test_suspicion_fades():
    suspects = Suspects(fade_s=10)
    suspects.blame(0, [BAD], "")
    suspects.blame(9, [BAD], "")
    assert is_refused(suspects, BAD, at=18.9)
    assert not is_refused(suspects, BAD, at=19)
    assert not suspects.is_suspect(BAD, 19)


def test_the_oldest_marks_make_way():
    suspects = Suspects(most=2)
    suspects.blame(1, [BAD], "")
    suspects.blame(2, [GOOD], "")
    suspects.blame(3, [BAD], "")
    suspects.blame(4, [OTHER], "")
    assert is_refused(suspects, BAD, 4)
    assert not suspects.is_suspect(GOOD, 4)


ASK = ipc.Generate(0, "m", "hello", ipc.Sampling())
FILES = ((1, 2, 10, 1_000),)


@pytest.mark.parametrize(
    "same",
    [
        replace(ASK, request=7),
        replace(ASK, sampling=ipc.Sampling(temperature=0)),
        replace(ASK, max_tokens=1, stop=("x",)),
        replace(ASK, caller="key-1", priority="batch"),
    ],
)
def test_a_prompt_is_the_same_whoever_asks_and_however_it_is_sampled(same: ipc.Generate):
    assert fingerprint(same, FILES) == fingerprint(ASK, FILES)


@pytest.mark.parametrize(
    ("ask", "files"),
    [
        (replace(ASK, prompt="hello!"), FILES),
        (replace(ASK, prompt=[1, 2]), FILES),
        (replace(ASK, suffix=""), FILES),
        (replace(ASK, model="n"), FILES),
        (ipc.Tokenize(0, "m", "hello"), FILES),
        (ASK, ((1, 3, 10, 1_000),)),
        (ASK, ((1, 2, 11, 1_000),)),
        (ASK, ((1, 2, 10, 1_001),)),
        (ASK, FILES * 2),
    ],
)
def test_another_prompt_or_other_files_are_others(ask: ipc.Ask, files: Identity):
    assert fingerprint(ask, files) != fingerprint(ASK, FILES)


def test_other_kinds_of_request_are_known_again_too():
    first = fingerprint(ipc.Embed(1, "m", ["a"]), FILES)
    assert first == fingerprint(ipc.Embed(2, "m", ["a"]), FILES)
