"""Templates speak Hugging Face's dialect, reach nothing, and end when they want too much."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from markupsafe import Markup

from neuron.chat import sandbox
from tests.unit.chat.bombs import BOMBS


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


@pytest.mark.parametrize("name", dir(str))
def test_of_a_text_a_template_gets_what_the_library_gives(name: str):
    ours = sandbox.compile_template("").environment
    given = ImmutableSandboxedEnvironment().getattr("a", name)
    got = ours.getattr("a", name)
    assert type(got) is type(given)
    assert got == given or name in ("format", "format_map") or name.startswith("_")


def test_loops_and_blocks_do_not_change_what_a_call_is_given():
    text = "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}"
    text += "{% for x in 'ab' %}{{ m(x) }}{{ m(x, 3, 4) }}{{ x.upper() }}{{ x.join('12') }}"
    assert _render(text + "{% endfor %}") == "a2()a3(4,)A1a2b2()b3(4,)B1b2"


def test_concatenation_takes_what_jinja2_takes():
    assert _render("{{ 1 ~ none ~ nothing ~ ' ' ~ a }}", a=[1]) == "1None [1]"
    assert _render(
        "{% set x = 'a' ~ 'b' %}{% macro m(y) %}{{ x ~ y }}{% endmacro %}{{ m(1) }}"
    ) == ("ab1")


@pytest.mark.parametrize(
    "text",
    [
        "a + a + 'b'",
        "1 + 2 + 3.5",
        "n + 1 + n",
        "a + (a + a) + a",
        "[1] + [2] + [n]",
        "(a + a) ~ (n + n)",
        "safe + '<' + a",
        "a + n",
        "n + a + a",
        "a + a + missing",
        "missing + a",
        "n % 2 + n % -2",
        "n % 0",
        "n + true",
        "a % 2",
    ],
)
def test_sums_are_what_the_library_makes_of_them(text: str):
    values = {"a": "é", "n": 7, "safe": Markup("<b>")}
    assert _outcome(_render, text, values) == _outcome(_library, text, values)


@pytest.mark.parametrize(
    "text",
    [
        "d.x is defined",
        "d.x == e.x",
        "d.x == d.y",
        "d.x in [e.y]",
        "d.x | length",
        "d.x.y",
        "d.x()",
        "d.keys | string | length > 0",
        "namespace(a=1).b is defined",
        "namespace(a=none).a is none",
    ],
)
def test_what_a_dict_has_not_is_undefined_as_in_the_library(text: str):
    values = {"d": {"z": 1}, "e": {}}
    assert _outcome(_render, text, values) == _outcome(_library, text, values)


@pytest.mark.parametrize(
    "text",
    [
        "a == b",
        "(a == b) != (n < 3)",
        "n < 3 < 7",
        "a in ('x', 'y')",
        "a not in ['x']",
        "'x' in a",
        "a in d",
        "[a] in [[b]]",
        "d == d and a != b",
        "n in a",
        "[a] in d",
    ],
)
def test_comparisons_are_what_the_library_makes_of_them(text: str):
    values = {"a": "x", "b": "x" * 2000, "n": 5, "d": {"x": [1]}}
    assert _outcome(_render, text, values) == _outcome(_library, text, values)


def _library(text: str, **values: Any) -> str:
    return ImmutableSandboxedEnvironment().from_string(text).render(values)


def _outcome(render: Callable[..., str], text: str, values: dict[str, Any]) -> str:
    """What is printed, or what is complained about."""
    try:
        return render("{{ " + text + " }}", **values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


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


@pytest.fixture(scope="module")
def endings() -> dict[str, tuple[str, float]]:
    """What each bomb ended in, and after how many CPU seconds, in a process that may have 200 MB
    more than it starts with."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.chat.bombs"],
        capture_output=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_template_ends_soon_and_small(bomb: str, endings: dict[str, tuple[str, float]]):
    ending, cpu_s = endings[bomb]
    assert ending == "refused"
    assert cpu_s < 2


def test_a_render_ends_by_its_deadline():
    text = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(sandbox.TemplateLimit, match="took longer"):
        sandbox.render(sandbox.compile_template(text), {}, time.monotonic() - 1)


def test_seldom_used_filters_work_on_small_values():
    assert _render("{{ x | wordwrap(3) | upper }}", x="a b c d") == "A B\nC D"
    for text in ("{{ x | wordwrap(3) }}", "{{ 'a' | center(1001) }}", "{{ x | urlize }}"):
        with pytest.raises(sandbox.TemplateLimit, match="seldom used"):
            _render(text, x="x" * 1001)


def test_a_namespace_is_none_of_the_templates_business_to_print():
    assert _render("{% set n = namespace(a=1) %}{% set n.b = n %}{{ n }}{{ n.a }}") == (
        "<Namespace>1"
    )


def test_a_loop_over_a_filter_knows_where_it_is():
    text = "{% for k, v in x | items %}{{ k }}{{ v }}{{ ',' if not loop.last }}{% endfor %}"
    assert _render(text, x={"a": 1, "b": 2}) == "a1,b2"
    text = "{% for v in x if v > 1 %}{{ loop.index }}/{{ loop.length }}:{{ v }} {% endfor %}"
    assert _render(text, x=[1, 2, 3]) == "1/2:2 2/2:3 "


def test_a_long_conversation_stays_within_the_limits():
    text = "{% for m in messages %}{{ '<' + m.role + '>' ~ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 4000}] * 2000
    assert len(_render(text, messages=messages)) == 2000 * 4006


def _function() -> None: ...


KINDS: list[list[Any]] = [
    ["a", "b"],
    [{"a": 1}, {}],
    [[1], []],
    [(1,), ()],
    [_function, sandbox.parse],
    [{}.get, {}.pop],
    [(x for x in "a"), (x for x in "b")],
    [str, dict],
    [_function.__code__],
    [{1}, set()],
    [1, 2],
    [None],
]


def test_an_attribute_is_judged_as_the_library_judges_it_each_time():
    library = ImmutableSandboxedEnvironment()
    environment = sandbox.compile_template("").environment
    assert isinstance(environment, SandboxedEnvironment)
    for objects in KINDS:
        for name in [*dir(objects[0]), "mro", "gi_frame", "cr_frame", "__class__", "made_up"]:
            for value in (*objects, *objects):
                judged = environment.is_safe_attribute(value, name, None)
                assert judged == library.is_safe_attribute(value, name, None), (value, name)


def test_made_up_attributes_fill_no_memory():
    environment = sandbox.compile_template("").environment
    assert isinstance(environment, SandboxedEnvironment)
    for n in range(3000):
        assert environment.is_safe_attribute("", f"x{n}", None)
        assert not environment.is_safe_attribute("", f"_x{n}", None)
    assert len(vars(environment)["_judged"]) <= 1024


MESSAGE = {"role": "user", "items": "mine", "_hidden": 1, "clear": 2, "__class__": 3, "x y": 4}


@pytest.mark.parametrize("name", [*MESSAGE, *dir({}), "missing"])
def test_an_attribute_of_a_message_is_what_the_library_finds(name: str):
    library = ImmutableSandboxedEnvironment()
    theirs = library.getattr(MESSAGE, name)
    ours = sandbox.compile_template("").environment.getattr(MESSAGE, name)
    assert type(ours) is type(theirs)
    if isinstance(theirs, str | int):
        assert ours == theirs
