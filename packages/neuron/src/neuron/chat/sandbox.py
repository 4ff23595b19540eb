"""The jinja2 environment that runs chat templates: Hugging Face's dialect, in a box.

Templates come with model files, so they are untrusted. They reach no attribute, file or module
(ImmutableSandboxedEnvironment), and a render that wants more time or memory than any honest one
ends with TemplateLimit: the clock is read on every turn of a loop and every macro call, what is
printed and joined is counted, and whatever makes a big value out of a small one is checked first.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join, do_replace
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_RENDER_S", "MAX_VALUE", "TemplateLimit", "compile_template", "parse", "render"]

MAX_RENDER_S = 1.0
MAX_VALUE = 16 * 1024 * 1024  # characters of the prompt, or of any one value on the way
_MAX_HANDLED = 16 * MAX_VALUE  # characters printed and joined in one render, buffers included
_MAX_ITEMS = 1_000_000
_MAX_SOURCE = 1024 * 1024


class TemplateLimit(jinja2.TemplateError):
    """The template wants more time or memory than any honest one needs."""


def compile_template(text: str) -> jinja2.Template:
    """Raises jinja2.TemplateError; also RecursionError on absurd nesting."""
    if len(text) > _MAX_SOURCE:
        raise TemplateLimit(f"a template of {len(text)} characters")
    return _ENVIRONMENT.from_string(text)


def parse(text: str) -> nodes.Template:
    """The template's syntax tree. Raises as `compile_template`."""
    return _ENVIRONMENT.parse(text)


def render(
    template: jinja2.Template, context: dict[str, Any], deadline: float | None = None
) -> str:
    """Raises jinja2.TemplateError, or whatever a filter raises on a value it cannot take.

    `deadline`, by the monotonic clock, is MAX_RENDER_S from now unless several renders share one.
    """
    token = _budget.set(_Budget(deadline or time.monotonic() + MAX_RENDER_S))
    try:
        pieces: list[str] = []
        size = 0
        for piece in template.generate(context):
            size += len(piece)
            _check(size)
            pieces.append(piece)
        return _sendable("".join(pieces))
    finally:
        _budget.reset(token)


def _sendable(text: str) -> str:
    """Halves of surrogate pairs, which escapes in JSON arguments can make, are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text


class _Budget:
    __slots__ = ("deadline", "room")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.room = _MAX_HANDLED


_budget: ContextVar[_Budget] = ContextVar("budget")


def _check(characters: int) -> None:
    if characters > MAX_VALUE:
        raise TemplateLimit(f"a value of more than {MAX_VALUE} characters")


def _check_items(items: int) -> None:
    if items > _MAX_ITEMS:
        raise TemplateLimit(f"a list of more than {_MAX_ITEMS} items")


def _charge(characters: int) -> None:
    budget = _budget.get(None)
    if budget is None:
        return  # the compiler folds constants
    budget.room -= characters
    if budget.room < 0:
        raise TemplateLimit(f"more than {_MAX_HANDLED} characters handled")


def _finalize(value: Any) -> Any:
    """Called by jinja2 with each value that is printed."""
    if isinstance(value, str):
        _check(len(value))
        _charge(len(value))
    return value


@jinja2.pass_context  # which also keeps the compiler from folding it away
def _tick(_: Context, constants: int) -> str:
    """One turn of a loop, or one call of a macro, that can print `constants` characters."""
    if time.monotonic() > _budget.get().deadline:
        raise TemplateLimit(f"rendering took longer than {MAX_RENDER_S} s")
    _charge(constants)
    return ""


@jinja2.pass_context
def _concat(_: Context, parts: tuple[Any, ...]) -> str:
    text = "".join(map(str, parts))
    _check(len(text))
    _charge(len(text))
    return text


class _Watched(NodeTransformer):
    """Put a tick at the head of whatever can be repeated, and `a ~ b` through `_concat`.

    Both are filters because the compiler turns those into plain calls, at a tenth of a sandboxed
    call's cost.
    """

    def visit_repeated(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        constants = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        filtered = nodes.Filter(nodes.Const(constants), "_tick", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(filtered).set_lineno(node.lineno, override=True))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_repeated  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.Tuple(node.nodes, "load")
        return nodes.Filter(parts, "_concat", [], [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "+", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        return _Watched().visit(template).set_environment(self)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                size = len(left) + len(right)
                _check(size)
                _charge(size)
            elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
                _check_items(len(left) + len(right))
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str) and isinstance(times, int):
                    _check(len(value) * times)
                elif isinstance(value, list | tuple) and isinstance(times, int):
                    _check_items(len(value) * times)
                else:
                    _check_number(value)
        elif operator == "**":
            _check_number(left)
            if not isinstance(right, int | float) or abs(right) > 64:
                raise TemplateLimit(f"an exponent of {right!r}")
        elif isinstance(left, str):
            _check_pattern(left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __callee: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        method = getattr(__callee, "__wrapped__", __callee)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, method.__name__, arguments, named)
        return super().call(__context, __callee, *arguments, **named)


def _check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) >> 64:
        raise TemplateLimit("an integer of more than 64 bits")


def _check_pattern(pattern: str) -> None:
    """A width of five digits, or one given as an argument, is no formatting."""
    if re.search(r"\d{5}|\*|\{[^{}]*\{", pattern):
        raise TemplateLimit(f"a format with a huge width: {pattern[:40]!r}")


def _check_method(owner: str, method: str, arguments: tuple[Any, ...], named: Any) -> None:
    if method in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        width = next((n for n in (*arguments, *named.values()) if isinstance(n, int)), 0)
        _check(width * (owner.count("\t") if method == "expandtabs" else 1))
    elif method == "replace" and len(arguments) > 1:
        _check_replace(owner, *arguments[:2])
    elif method == "join" and arguments and isinstance(arguments[0], Sized):
        _check(len(owner) * len(arguments[0]))
    elif method in ("format", "format_map"):
        _check_pattern(owner)
    elif method == "translate":
        raise TemplateLimit("str.translate")


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        _check(len(text) + text.count(old) * len(new))


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model wrote, for training; to a prompt
    it adds nothing."""

    tags = {"generation"}  # noqa: RUF012 (the library's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter it escapes nothing for HTML: a prompt is no web page."""
    if isinstance(indent, int) and indent > 64:
        raise TemplateLimit(f"an indent of {indent}")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _check_pattern(pattern)
    return datetime.now().strftime(pattern)


def _narrow(method: Callable[..., Any], limit: int) -> Callable[..., Any]:
    """A filter that is given a width, or a count, by the template."""

    def narrow(value: Any, *arguments: Any, **named: Any) -> Any:
        for number in (*arguments, *named.values()):
            if isinstance(number, int) and number > limit:
                raise TemplateLimit(f"a width of {number}")
        return method(value, *arguments, **named)

    return narrow


def _format(pattern: str, *arguments: Any, **named: Any) -> str:
    _check_pattern(pattern)
    return pattern % (named or arguments)


@jinja2.pass_eval_context
def _replace(eval_context: nodes.EvalContext, text: Any, old: Any, new: Any, *count: Any) -> str:
    _check_replace(text, old, new)
    return do_replace(eval_context, text, old, new, *count)


@jinja2.pass_eval_context
def _join(
    eval_context: nodes.EvalContext, value: Any, d: str = "", attribute: str | None = None
) -> Any:
    items = list(value)
    _check(len(str(d)) * len(items))
    return do_join(eval_context, items, d, attribute)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        extensions=[loopcontrols, _Generation],
    )
    filters = environment.filters
    filters |= {"_tick": _tick, "_concat": _concat, "tojson": _tojson, "format": _format}
    filters |= {"replace": _replace, "join": _join}
    for name in ("batch", "center", "indent", "slice"):
        filters[name] = _narrow(filters[name], 1000)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    del environment.globals["lipsum"]  # makes text without end
    return environment


_ENVIRONMENT = _environment()
