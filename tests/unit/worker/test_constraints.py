"""What an answer must be, held to by the real engine with real models: JSON, expressions, grammars,
calls, and how they go together with reasoning, stops and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_core.wire.ipc import (
    CallForm,
    CallPart,
    Calls,
    Generate,
    Grammar,
    Sampling,
)
from neuron.worker.grammar import Grammars
from tests.unit.worker.driven import Driven, Told, driven
from tests.unit.worker.worker_process import ENDLESS, GREEDY, TINY, chat

WARM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
NAME = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "ok": {"type": "boolean"}},
    "required": ["city", "ok"],
    "additionalProperties": False,
}
SUM = 'root ::= term (op term)+ "."\nterm ::= [0-9]{1,3} | "(" root2 ")"\n' + (
    'root2 ::= [a-z]{2,4}\nop ::= " + " | " - "\n'
)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Driven]:
    with driven(TINY, parallel=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def senseless(other_gguf: str) -> Iterator[Driven]:
    """Random weights; its marks are control tokens."""
    with driven(other_gguf, parallel=8) as engine:
        yield engine


@pytest.fixture(params=["greedy", "drawn", "mirostat", "typical", "dry"])
def sampling(request: pytest.FixtureRequest) -> Sampling:
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "drawn": WARM | {"seed": 1},
        "mirostat": WARM | {"seed": 1, "mirostat": 1},
        "typical": WARM | {"seed": 1, "typical_p": 0.9},
        "dry": WARM | {"seed": 1, "dry_multiplier": 5.0},
    }
    return Sampling(**kinds[request.param])


# kinds


def test_a_schema_holds_however_tokens_are_chosen(senseless: Driven, sampling: Sampling) -> None:
    told = senseless.constrained("json_schema", json.dumps(NAME), sampling=sampling, is_raw=True)
    answer = json.loads(told.text)
    assert told.reason == "stop"
    assert set(answer) == {"city", "ok"}
    assert answer["city"] in ("Paris", "Rome")


def test_an_expression_holds_however_tokens_are_chosen(
    senseless: Driven, sampling: Sampling
) -> None:
    text = r"(ab|cd){2,3}-[0-9]{4}!"
    told = senseless.constrained("regex", text, sampling=sampling, is_raw=True)
    assert (told.reason, told.fault) == ("stop", None)
    assert re.fullmatch(text, told.text)


def test_a_grammar_holds_however_tokens_are_chosen(senseless: Driven, sampling: Sampling) -> None:
    told = senseless.constrained("gbnf", SUM, sampling=sampling, is_raw=True, max_tokens=60)
    term = r"([0-9]{1,3}|\([a-z]{2,4}\))"
    whole = rf"{term}(( \+ | - ){term})+\."
    assert told.fault is None
    if told.reason == "stop":
        assert re.fullmatch(whole, told.text)
    else:
        assert re.match(rf"{term} [+-]", told.text)


def test_what_fits_the_model_costs_it_nothing(tiny: Driven) -> None:
    free = tiny.answer(chat("What is the capital of France?"))
    for kind, text in (("regex", r"[\s\S]*"), ("gbnf", "root ::= [^\\x00]*")):
        held = tiny.constrained(kind, text, chat("What is the capital of France?"))
        assert (held.text, held.reason) == (free.text, free.reason)


def test_the_likeliest_words_that_fit_are_chosen(tiny: Driven) -> None:
    told = tiny.constrained("regex", "(Rome|Paris|Berlin)", chat("What is the capital of France?"))
    assert told.text == "Paris"


def test_a_grammar_reads_words_as_llama_cpp_does(senseless: Driven) -> None:
    """A lexer would give all letters to the first word."""
    told = senseless.constrained(
        "gbnf", "root ::= word word\nword ::= [a-z]+", is_raw=True, max_tokens=8
    )
    assert told.fault is None
    assert re.fullmatch("[a-z]+", told.text)


# ends


def test_an_answer_may_end_only_where_it_is_whole(senseless: Driven) -> None:
    ends = dict.fromkeys(senseless.vocabulary.end_ids, 100.0)
    for kind, text in (("regex", "123(456)*"), ("gbnf", 'root ::= "123" "456"*')):
        told = senseless.constrained(
            kind, text, sampling=Sampling(temperature=0.0, logit_bias=ends), is_raw=True
        )
        assert (told.text, told.reason) == ("123", "stop")


@pytest.mark.parametrize("kind", ["regex", "gbnf"])
@pytest.mark.parametrize("sampling", [ENDLESS, Sampling(temperature=1.0, min_tokens=50, seed=1)])
def test_an_answer_that_is_whole_ends_whatever_else_was_asked(
    senseless: Driven, kind: str, sampling: Sampling
) -> None:
    text = "abc" if kind == "regex" else 'root ::= "abc"'
    told = senseless.constrained(kind, text, sampling=sampling, is_raw=True)
    assert (told.text, told.reason) == ("abc", "stop")


def test_an_answer_that_could_go_on_does_where_it_may_not_end(senseless: Driven) -> None:
    told = senseless.constrained("regex", "a+", sampling=ENDLESS, is_raw=True, max_tokens=9)
    assert told.reason == "length"
    assert set(told.text) == {"a"}


def test_a_stop_string_ends_a_constrained_answer_too(senseless: Driven) -> None:
    told = senseless.constrained("regex", "abc, def", is_raw=True, stop=(",",))
    assert (told.text, told.reason, told.stop) == ("abc", "stop", ",")


# not text


def test_tokens_that_are_not_text_never_stand_for_their_letters(senseless: Driven) -> None:
    tokens = [
        int(senseless.vocabulary.tokenize_bare(mark)[0]) for mark in ("[INST]", "</s>", "[THINK]")
    ]
    wish = Sampling(temperature=0.0, logit_bias=dict.fromkeys(tokens, 100.0))
    for kind, text in (("regex", r".{6,9}!"), ("gbnf", 'root ::= .{6,9} "!"')):
        told = senseless.constrained(kind, text, sampling=wish, is_raw=True)
        assert told.fault is None
        assert not any(mark in told.text for mark in ("[INST]", "</s>", "[THINK]"))


# reasoning


def test_a_constraint_begins_where_reasoning_has_ended(tiny: Driven) -> None:
    question = "What is the capital of France?"
    free = tiny.answer(chat(question, thinking=True))
    held = tiny.constrained("regex", "It is (Rome|Paris)!", chat(question, thinking=True))
    assert held.thought == free.thought != ""
    assert held.text == "It is Paris!"


def test_reasoning_may_not_end_the_answer(senseless: Driven) -> None:
    ends = dict.fromkeys(senseless.vocabulary.end_ids, 100.0)
    told = senseless.constrained(
        "regex", "abc", "hi [THINK]", Sampling(temperature=0.0, logit_bias=ends), max_tokens=30
    )
    assert (told.text, told.reason) == ("", "length")
    assert told.usage.reasoning > 20


def test_no_reasoning_begins_after_content_or_where_it_was_closed(senseless: Driven) -> None:
    opening = int(senseless.vocabulary.tokenize_bare("[THINK]")[0])
    closing = int(senseless.vocabulary.tokenize_bare("[/THINK]")[0])
    wish = Sampling(temperature=0.0, logit_bias={opening: 100.0, closing: 99.0})
    told = senseless.constrained("regex", "abc", "hi", wish)
    assert (told.text, told.reason, told.usage.completion > 4) == ("abc", "stop", False)
    closed = senseless.constrained("regex", "abc", "hi [THINK][/THINK]", wish)
    assert (closed.text, closed.thought, closed.reason) == ("abc", "", "stop")


# calls


def likely(model: Driven, *letters: str) -> dict[int, float]:
    return {int(model.vocabulary.tokenize_bare(each)[0]): 5.0 for each in letters}


def forms(*names: str) -> tuple[CallForm, ...]:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/digit"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"digit": {"enum": [1, 2]}},
    }
    return tuple(
        CallForm(f'\n{{"name": "{name}", "arguments": ', json.dumps(schema), "}", f"tools[{index}]")
        for index, name in enumerate(names)
    )


HERMES = ("<tool_call>", "\n</tool_call>", "\n")
CALL = re.compile(
    r'<tool_call>\n\{"name": "(add|sub)", "arguments": (\{\s*"a"\s*:\s*[12]\s*\})\}\n</tool_call>'
)


def test_required_calls_are_calls_and_nothing_else(tiny: Driven, senseless: Driven) -> None:
    for engine in (tiny, senseless):
        told = engine.answer(
            "hi",
            Sampling(**WARM, seed=3),
            constraint=Calls(forms("add", "sub"), *HERMES, is_required=True, is_single=True),
            is_raw=True,
        )
        assert told.reason == "stop"
        assert CALL.fullmatch(told.text), told.text


def test_several_calls_follow_each_other(tiny: Driven) -> None:
    told = tiny.answer(
        "hi",
        Sampling(temperature=0.0, ignore_eos=True),
        constraint=Calls(forms("add"), *HERMES, is_required=True),
        is_raw=True,
        max_tokens=150,
    )
    calls = CALL.findall(told.text)
    assert len(calls) > 1
    assert told.text.startswith("\n".join(met[0] for met in CALL.finditer(told.text)))


def test_text_is_free_and_a_call_in_it_is_not(tiny: Driven) -> None:
    opening = int(tiny.vocabulary.tokenize_bare("<tool_call>")[0])
    prompt = chat("What is the capital of France?")
    free = tiny.answer(prompt)
    constraint = Calls(forms("add", "sub"), *HERMES)
    assert tiny.answer(prompt, constraint=constraint).text == free.text
    wish = Sampling(temperature=0.0, logit_bias={opening: 100.0})
    told = tiny.answer(prompt, wish, constraint=constraint, max_tokens=120)
    assert CALL.match(told.text), told.text


def test_one_call_at_most_ends_the_answer(tiny: Driven) -> None:
    opening = int(tiny.vocabulary.tokenize_bare("<tool_call>")[0])
    wish = Sampling(temperature=0.0, logit_bias={opening: 100.0})
    told = tiny.answer("hi", wish, constraint=Calls(forms("add"), *HERMES, is_single=True))
    assert CALL.fullmatch(told.text), told.text
    assert told.reason == "stop"


def test_marks_that_are_control_tokens_are_meant_as_such(senseless: Driven) -> None:
    constraint = Calls(forms("add"), "[TOOL_CALLS]", "", "", is_required=True, is_single=True)
    told = senseless.answer("hi", Sampling(**WARM, seed=1), constraint=constraint, is_raw=True)
    assert told.reason == "stop"
    assert told.text.startswith('[TOOL_CALLS]\n{"name": "add"')
    assert told.usage.completion < len(told.text)
    auto = Calls(forms("add"), "[TOOL_CALLS]", "", "")
    mark = int(senseless.vocabulary.tokenize_bare("[TOOL_CALLS]")[0])
    wish = Sampling(temperature=0.0, logit_bias={mark: 100.0})
    told = senseless.answer("hi", wish, constraint=auto, is_raw=True, max_tokens=60)
    assert told.text.startswith('[TOOL_CALLS]\n{"name": "add"')


@pytest.mark.parametrize("after", ["\n</value>", "\n[INST]", "[INST]", "!", "<[", "\n[INST]\nso"])
def test_a_part_in_plain_text_ends_where_what_is_behind_it_begins(
    senseless: Driven, after: str
) -> None:
    """Be that letters or a token that is none."""
    text = CallPart("<value>\n", after, "(?s:.{2,5})", "(?s:.*)[b-z](?s:.*)")
    number = CallPart("<n>", after, schema='{"enum": [1, 2]}')
    either = CallPart("<e>", after, "a+", schema='{"enum": [1, 2]}')
    absent = CallPart("<absent>", after, "a+", is_required=False)
    form = CallForm("f ", "", "", "tools[0]", (text, number, either, absent))
    constraint = Calls((form,), "<call>", "</call>", "", is_required=True, is_single=True)
    end = re.escape(after)
    whole = rf"<call>f <value>\n([^b-z]{{2,5}}){end}<n>[12]{end}"
    whole += rf"<e>(a+|[12]){end}(<absent>a+{end})?</call>"
    sampling = Sampling(**WARM, seed=5, logit_bias=likely(senseless, "<", "[", "\n", "!"))
    told = senseless.answer("hi", sampling, constraint=constraint, is_raw=True, max_tokens=200)
    assert (told.fault, told.reason) == (None, "stop")
    met = re.fullmatch(whole, told.text)
    assert met, told.text
    assert after not in met[1]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("regex", r"a\/b", "a/b"),
        ("json_schema", '{"const": 7}', "7"),
        ("regex", "a/b[\n]c", "a/b\nc"),
    ],
)
def test_an_answer_is_a_call_or_the_content_it_is_to_be(
    tiny: Driven, kind: Any, text: str, said: str
) -> None:
    constraint = Calls(forms("add"), *HERMES, content=Grammar(kind, text, "it"))
    for start, is_call in (("<tool_call>", True), (said[0], False)):
        first = int(tiny.vocabulary.tokenize_bare(start)[0])
        wish = Sampling(temperature=0.0, logit_bias={first: 100.0})
        told = tiny.answer("hi", wish, constraint=constraint, is_raw=True, max_tokens=40)
        assert told.fault is None
        assert bool(CALL.match(told.text)) == is_call
        assert is_call or told.text == said


def test_content_that_cannot_be_beside_calls_is_refused_by_its_name(tiny: Driven) -> None:
    content = Grammar("json_schema", '{"type": "objekt"}', "response_format")
    fault = tiny.answer("hi", constraint=Calls(forms("add"), *HERMES, content=content)).fault
    assert fault is not None
    assert fault.param == "response_format"


# refusals


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json_schema", '{"type": "objekt"}', "objekt"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"type": "string", "format": "smell"}', "smell"),
        ("json_schema", '{"$ref": "#/$defs/nobody"}', "nobody"),
        ("json_schema", '{"$ref": "http://example.com/x"}', "http://example.com/x"),
        ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "greater than"),
        ("json_schema", "[1]", "object"),
        ("json_schema", '{"allOf": [' * 500 + "true" + "]}" * 500, "recursion"),
        ("regex", "(a|b", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("gbnf", 'root ::= "a', "end of input"),
        ("gbnf", "word ::= [a-z]", "root"),
        ("gbnf", 'root ::= ("a"{1,200}){1,200}', "repetition"),
        ("gbnf", "root ::= nobody", "nobody"),
        ("gbnf", 'root ::= root "a"', "left recursion"),
        ("gbnf", "root ::= " + "(" * 200 + '"a"' + ")" * 200, "nested"),
        ("gbnf", "root ::= [a-z] # " + "x" * 70_000, "longer"),
        ("gbnf", 'root ::= "\0"', "zero character"),
        ("gbnf", 'root ::= ("a"?){1000} "b"', "too ambiguous"),
    ],
)
def test_a_constraint_that_cannot_be_held_to_is_refused_and_says_why(
    tiny: Driven, kind: str, text: str, said: str
) -> None:
    fault = tiny.constrained(kind, text).fault
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_request", "it")
    assert said in fault.message
    assert len(fault.message) < 600


def test_brackets_in_quotes_are_not_nested(tiny: Driven) -> None:
    text = 'root ::= "' + "(" * 200 + '" [(]{3} # ' + "(" * 200
    assert tiny.constrained("gbnf", text).text == "(" * 203


def test_the_tool_with_the_wrong_schema_is_named(tiny: Driven) -> None:
    wrong = CallForm("x", '{"type": "objekt"}', "y", "tools[1].function.parameters")
    fault = tiny.answer("hi", constraint=Calls((*forms("add"), wrong), *HERMES)).fault
    assert fault is not None
    assert fault.param == "tools[1].function.parameters"


def test_what_a_lenient_schema_cannot_be_held_to_is_passed_over(tiny: Driven) -> None:
    """As those of tools that are not strict."""
    schema = {"type": "object", "properties": {"a": {"const": 1, "not": {}}}, "required": ["a"]}
    schema |= {"additionalProperties": False, "x-guidance": {"lenient": True}}
    form = CallForm("(", json.dumps(schema), ")", "tools[0]")
    constraint = Calls((form,), "<tool_call>", "!", "", is_required=True, is_single=True)
    told = tiny.answer("hi", constraint=constraint, is_raw=True)
    assert re.fullmatch(r'<tool_call>\(\{\s*"a"\s*:\s*1\s*\}\)!', told.text)


def test_a_bias_that_is_wrong_is_refused_with_a_constraint_too(tiny: Driven) -> None:
    told = tiny.constrained("gbnf", 'root ::= "a"', sampling=Sampling(logit_bias={9999: 1.0}))
    assert told.fault is not None
    assert told.fault.param == "logit_bias"


# the engine around it


def test_a_constraint_that_breaks_fails_its_own_request_alone(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = Grammars.compile

    class Broken:
        is_complete = False

        def __init__(self, at: int) -> None:
            self.left = at

        def restrict(self, logits: Any, wanted: int) -> None:
            if self.left == 0:
                logits[:] = float("-inf")

        def accept(self, token: int) -> None:
            self.left -= 1

        def free(self) -> None: ...

    monkeypatch.setattr(Grammars, "compile", lambda self, constraint: Broken(3))
    context = tiny.engine._context
    beside = tiny.submit(chat("What is the capital of France?"))
    for sampling in (ENDLESS, Sampling(**WARM, seed=1, ignore_eos=True)):
        told = tiny.submit("hi", sampling, constraint=Grammar("regex", "x", "it"), is_raw=True)
        tiny.run()
        assert told.fault is not None
        assert told.fault.code == "invalid_request"
        assert "no token" in told.fault.message
    assert beside.reason == "stop"
    assert tiny.engine._context is context
    monkeypatch.setattr(Grammars, "compile", compile_)


def test_a_constrained_answer_goes_on_where_it_was_suspended() -> None:
    """Fewer cells than the sequences want: the youngest waits in host memory."""
    sampling = Sampling(**WARM, seed=4)
    text = "([a-z]{3} ){40}"
    prompts = [f"prompt {n} " * 8 for n in range(4)]
    with driven(TINY, kv="unified", cells=320, context=320, host_cache_mb=64) as narrow:
        told: list[Told] = [
            narrow.submit(prompt, sampling, constraint=Grammar("regex", text, "it"), is_raw=True)
            for prompt in prompts
        ]
        parked = 0
        while not all(one.is_over for one in told):
            narrow.engine._turn()
            parked += any(s.resumes for s in narrow.engine._scheduler.waiting)
    assert parked
    assert [bool(re.fullmatch(text, one.text)) for one in told] == [True] * 4


def test_a_request_without_a_constraint_takes_no_detour(tiny: Driven) -> None:
    tiny.engine.submit(Generate(len(tiny.told) + 1, "m", "hi", GREEDY, max_tokens=1))
    tiny.told[len(tiny.told) + 1] = Told()
    assert not tiny.engine._preparing
    tiny.run()
