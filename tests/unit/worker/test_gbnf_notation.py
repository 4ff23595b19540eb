"""What llama.cpp could not deal with is told before it is tried; what it can, is let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker import llama
from neuron.worker.gbnf_notation import problem_of
from neuron.worker.vocabulary import Vocabulary
from tests.unit.worker.worker_process import TINY

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::= "{" ws ( # a comment
             string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

READ = [
    JSON,
    'root ::= "a" | # one\n  "b"\n',
    'root ::= ("a"? "b"?)* "c"',
    'root ::= item list\nlist ::= | item list\nitem ::= "a"?',
    'root ::= "a\n" [\n\\]-a]',
    'root ::= <|im_end|> !<[3]> .',
    'root ::= "a"{2} "b"{2,} "c"{0,0} "d"{ 0 , 3 }',
    "root ::= " + '"a"? ' * 500,
    'root ::= "" | [^a]\r\nb-2 ::= root',
    "root ::= " + "(" * 100 + '"a"' + ")" * 100,
    'root ::= sum\nsum ::= product (("+" | "-") product)*\nproduct ::= [0-9]+ ("*" [0-9]+)*',
]  # fmt: skip


def _forked(levels: int, before: str = "") -> str:
    rules = [f'r{n} ::= r{n + 1} | r{n + 1} "x"' for n in range(levels)]
    return "\n".join([f"root ::= {before}r0", *rules, f'r{levels} ::= "y"'])


REFUSED = {
    "more than 4096 ways": [
        _forked(16),
        _forked(60),
        _forked(60, '"q" '),
        'root ::= "q" ' + "r0? " * 3000 + '\nr0 ::= "a" | "b"',
        "root ::= " + '("a"? | "b"?){0,500} ' * 3,
    ],
    "left recursion": [
        'root ::= root "a" | "b"',
        'root ::= a root "x" | "y"\na ::= b\nb ::= | "z"',
        'root ::= a root* "x"\na ::= "z"?',
        'root ::= "q" a\na ::= b "x"\nb ::= c? a "y"\nc ::= "c"',
    ],
    "at least 2 and at most 1": ['root ::= "a"{2,1}'],
    "2001 repetitions": ['root ::= "a"{2001}'],
    "written out": ['root ::= "' + "a" * 30_000 + '"{1999}', "root ::= " + "[a-z]{0,1999} " * 60],
    "128 deep": ["root ::= " + "(" * 129 + '"a"' + ")" * 129, 'root ::= "a\n" ' + "(" * 30_000],
    "longer than": ["root ::= " + '"a" ' * 20_000],
    "zero character": ['root ::= "a\0"'],
}  # fmt: skip


@pytest.fixture(scope="module")
def is_taken() -> Iterator[Callable[[str], bool]]:
    """Whether llama.cpp does."""
    llama.start()
    vocabulary = Vocabulary(TINY)

    def is_taken(text: str) -> bool:
        handle = lib.llama_sampler_init_grammar(vocabulary.handle, text.encode(), b"root")
        if handle:
            lib.llama_sampler_free(handle)
        return bool(handle)

    yield is_taken
    vocabulary.free()


@pytest.mark.parametrize("text", READ)
def test_what_llama_cpp_takes_is_let_through(text: str, is_taken: Callable[[str], bool]) -> None:
    assert problem_of(text) is None
    assert is_taken(text)


@pytest.mark.parametrize(
    ("cause", "text"), [(cause, text) for cause, texts in REFUSED.items() for text in texts]
)
def test_what_would_keep_llama_cpp_busy_or_end_the_process_is_refused(
    cause: str, text: str
) -> None:
    assert cause in (problem_of(text) or "")


@pytest.mark.parametrize("text", ["root", 'root ::= "a', "root ::= *", 'root ::= "a" b ::= "c"'])
def test_what_cannot_be_read_is_not_tried(text: str) -> None:
    assert problem_of(text) == ""


_words = ["root", "a", "b-1", '"x"', '""', "[^y-z]", "(", ")", "|", "*", "+", "?", "{2}", "{0,3}"]
_words += ["{1,}", "{3,2}", "\n", "\nroot ::=", "\na ::=", "\nb-1 ::=", "#", ".", "<[5]>", '"\n"']


@given(st.lists(st.sampled_from(_words), max_size=24))
def test_what_is_let_through_ends_and_what_is_unreadable_llama_cpp_cannot_read(
    is_taken: Callable[[str], bool], words: list[str]
) -> None:
    text = "root ::= " + " ".join(words)
    problem = problem_of(text)
    if problem is None:
        is_taken(text)
    elif problem == "":
        assert not is_taken(text)
