"""Templates speak Hugging Face's dialect, reach nothing, and end when they want too much."""

from __future__ import annotations

import time
import tracemalloc

import jinja2
import pytest

from neuron.chat import sandbox


def _render(text: str, **context) -> str:
    return sandbox.render(sandbox.compile_template(text), context)


def test_blocks_are_trimmed():
    assert _render("{% if true %}\n  {% set a = 1 %}\nx\n{% endif %}\n") == "x\n"


def test_tojson_writes_plain_json():
    value = {"b": "é<&'", "a": [1, None, True]}
    assert _render("{{ v | tojson }}", v=value) == '{"b": "é<&\'", "a": [1, null, true]}'
    assert _render("{{ v | tojson(indent=2) }}", v=[1]) == "[\n  1\n]"


def test_loop_controls_and_generation_blocks():
    text = "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert _render(text) == "012"
    assert _render("{% generation %}{{ a }}{% endgeneration %}!", a="x") == "x!"


def test_strftime_now_formats_the_present():
    assert _render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_raise_exception_says_why():
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        _render("{{ raise_exception('roles must alternate') }}")


def test_concatenation_takes_what_jinja2_takes():
    assert _render("{{ 1 ~ none ~ nothing ~ ' ' ~ a }}", a=[1]) == "1None [1]"
    assert _render(
        "{% set x = 'a' ~ 'b' %}{% macro m(y) %}{{ x ~ y }}{% endmacro %}{{ m(1) }}"
    ) == ("ab1")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("'%02d' % 7", "07"),
        ("'%s-%s' | format(1, 2)", "1-2"),
        ("'{:>3}'.format(5)", "  5"),
        ("'a' | center(5)", "  a  "),
        ("'x' * 3", "xxx"),
        ("2 ** 5", "32"),
        ("'aXa'.replace('X', '-')", "a-a"),
        ("[1, 2] | join(', ')", "1, 2"),
        ("'ab' | replace('a', 'c')", "cb"),
        ("', '.join(['a', 'b'])", "a, b"),
        ("'a\nb' | indent(2)", "a\n  b"),
    ],
)
def test_ordinary_formatting_is_allowed(text: str, printed: str):
    assert _render("{{ " + text + " }}") == printed


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ (messages | attr('__class__')).__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    ],
)
def test_nothing_outside_is_reached(text: str):
    with pytest.raises(Exception, match=r".") as raised:
        print(_render(text, messages=[{"role": "user"}]))
    assert isinstance(raised.value, jinja2.TemplateError | TypeError)


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "a loop over a filter": "{% for a in range(99999) %}{% set x = range(99999) | list | length %}"
    "{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "wide recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "repetition": "{{ 'a' * 10 ** 10 }}",
    "list repetition": "{% set x = [0] * 10 ** 10 %}",
    "doubling by +": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by a block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set t %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = t %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "much constant text": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "much text in a block": "{% set t %}{% for i in range(99999) %}"
    + "x" * 10_000
    + "{% endfor %}{% endset %}",
    "powers": "{{ 9 ** 60 ** 60 ** 60 }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(width=10 ** 10) }}",
    "a format width": "{{ '%9999999999d' % 1 }}",
    "a format filter": "{{ '%9999999999d' | format(1) }}",
    "a format method": "{{ '{:>9999999999}'.format(1) }}",
    "an indirect width": "{{ '{:>{}}'.format(1, 10 ** 10) }}",
    "replacing": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "a replace filter": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "joining": "{% set x = 'a' * 99999 %}{{ x.join(range(99999) | list) }}",
    "a join filter": "{% set x = 'a' * 99999 %}{{ range(99999) | join(x) }}",
    "an indent": "{{ ('a\n' * 9999) | indent(10 ** 9) }}",
    "tojson's indent": "{{ [1] | tojson(indent=10 ** 9) }}",
    "batches": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "a huge range": "{{ range(10 ** 9) | list }}",
    "made-up text": "{{ lipsum(n=10 ** 9) }}",
    "a date": "{{ strftime_now('%99999999Y') }}",
    "a huge template": "x" * 3_000_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_template_ends_soon_and_small(bomb: str):
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises((jinja2.TemplateError, OverflowError, RecursionError)):
            _render(BOMBS[bomb])
        assert time.monotonic() - started < 10  # tracing makes it several times slower
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_a_long_conversation_stays_within_the_limits():
    text = "{% for m in messages %}{{ '<' + m.role + '>' ~ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 4000}] * 2000
    assert len(_render(text, messages=messages)) == 2000 * 4006
