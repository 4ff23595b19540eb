"""The jinja2 environment that runs chat templates: Hugging Face's dialect, in a box.

Templates come with model files, so they are untrusted. They reach no attribute, file or module
(ImmutableSandboxedEnvironment), and a render that wants more time or memory than any honest one
ends with TemplateLimit (`neuron.chat.allowance`). What templates use all the time is checked
closely, so that conversations may be long; the rest of jinja2 works on small values.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, do_join, do_replace
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from neuron.chat.allowance import (
    MAX_RENDER_S,
    MAX_VALUE,
    NEW_ITEM_BYTES,
    TemplateLimit,
    allowed,
    charge,
    check_items,
    check_length,
    limited,
    made,
    tick,
    weigh,
)

__all__ = ["MAX_RENDER_S", "MAX_VALUE", "TemplateLimit", "compile_template", "parse", "render"]

_MAX_SOURCE = 64 * 1024  # characters; the longest known have under 32 Ki
_MAX_NODES = 8000  # of the syntax tree, which takes about a second to compile
_MAX_SMALL = 1000  # characters or items, or a width, where nothing big is worked on


def parse(text: str) -> nodes.Template:
    """The template's syntax tree. Raises jinja2.TemplateError; also RecursionError on absurd
    nesting."""
    if len(text) > _MAX_SOURCE:
        raise TemplateLimit(f"a template of {len(text)} characters")
    return _ENVIRONMENT.parse(text)


def compile_template(text: str | nodes.Template) -> jinja2.Template:
    """Of a text, or of its syntax tree. Raises as `parse`."""
    return _ENVIRONMENT.from_string(parse(text) if isinstance(text, str) else text)


def render(
    template: jinja2.Template, context: dict[str, Any], deadline: float | None = None
) -> str:
    """Raises jinja2.TemplateError, or whatever a filter raises on a value it cannot take.

    `deadline`, by the monotonic clock, is MAX_RENDER_S from now unless several renders share one.
    """
    with allowed(deadline or time.monotonic() + MAX_RENDER_S):
        pieces: list[str] = []
        size = 0
        for piece in template.generate(context):
            size += len(piece)
            check_length(size)
            pieces.append(piece)
        return _sendable("".join(pieces))


def _sendable(text: str) -> str:
    """Halves of surrogate pairs, which escapes in JSON arguments can make, are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text


# what the compiled template calls


def _finalize(value: Any) -> Any:
    """Called by jinja2 with each value that is printed."""
    if isinstance(value, str):
        return made(value)
    tick()
    weigh(value)
    return value


@jinja2.pass_context  # which also keeps the compiler from folding it away
def _tick(_: Context, constants: int) -> str:
    """One turn of a loop, or one call of a macro, that can print `constants` characters."""
    tick()
    charge(constants)
    return ""


@jinja2.pass_context
def _concat(_: Context, parts: tuple[Any, ...]) -> str:
    check_length(sum(map(weigh, parts)))
    return made("".join(map(str, parts)))


@jinja2.pass_context
def _weighed(_: Context, value: Any) -> Any:
    """An operand of a comparison, or a key."""
    tick()
    weigh(value)
    return value


@jinja2.pass_context
def _ticked(_: Context, value: Any) -> Any:
    """What is searched for a constant."""
    tick()
    return value


@jinja2.pass_context
def _made(_: Context, value: Any) -> Any:
    return made(value)


@jinja2.pass_context
def _iterated(_: Context, value: Any) -> Any:
    """What a loop walks. Sized values stay as they are, for `loop.length` and its kin."""
    tick()
    return value if isinstance(value, Sized | Undefined) else limited(value)


class _Watched(NodeTransformer):
    """Put a tick at the head of whatever can be repeated, and whatever makes or compares values
    without calling anything through a filter that watches.

    They are filters because the compiler turns those into plain calls, at a tenth of a sandboxed
    call's cost.
    """

    def visit_repeated(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        constants = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        ticked = _through("_tick", nodes.Const(constants))
        node.body.insert(0, nodes.ExprStmt(ticked).set_lineno(node.lineno, override=True))
        if isinstance(node, nodes.For):
            node.iter = _through("_iterated", node.iter)
            if node.test is not None:
                node.test = _through("_weighed", node.test)
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_repeated  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_concat", nodes.Tuple(node.nodes, "load"))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        is_open = sum(not isinstance(operand, nodes.Const) for operand in operands) > 1
        if is_open:
            node.expr = _through("_weighed", node.expr)
        for operand in node.ops:
            if is_open or operand.op in ("in", "notin"):
                operand.expr = _through("_weighed" if is_open else "_ticked", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _through("_weighed", node.key)
        return node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    filtered = nodes.Filter(node, name, [], [], None, None)
    filtered.set_lineno(node.lineno)
    return filtered


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "+", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        if sum(1 for _ in template.find_all(nodes.Node)) > _MAX_NODES:
            raise TemplateLimit(f"a template of more than {_MAX_NODES} nodes")
        return _Watched().visit(template).set_environment(self)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            weigh(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, list | tuple) and isinstance(right, list | tuple):
                check_items(len(left) + len(right))
            return made(super().call_binop(context, operator, left, right))
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str) and isinstance(times, int):
                    check_length(len(value) * times)
                elif isinstance(value, list | tuple) and isinstance(times, int):
                    check_items(len(value) * times)
                else:
                    _check_number(value)
        elif operator == "**":
            _check_number(left)
            if not isinstance(right, int | float) or abs(right) > 64:
                raise TemplateLimit(f"an exponent of {right!r}")
        elif isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __callee: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        tick()
        method = getattr(__callee, "__wrapped__", __callee)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, method.__name__, arguments, named)
        elif isinstance(owner, list | tuple | Mapping):
            weigh((owner if method.__name__ in ("index", "count") else "", arguments))
        return made(super().call(__context, __callee, *arguments, **named), NEW_ITEM_BYTES)


# checks


def _check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) >> 64:
        raise TemplateLimit("an integer of more than 64 bits")


# A width of four digits, or one given as an argument, is no formatting.
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")


def _check_format(pattern: str, values: Iterable[Any]) -> None:
    """Before `%`, `format` and their filters: each field may repeat each value."""
    if _WIDE.search(pattern):
        raise TemplateLimit(f"a format with a huge width: {pattern[:40]!r}")
    fields = pattern.count("%") + pattern.count("{")
    check_length(len(pattern) + fields * (1000 + sum(map(weigh, values))))


def _check_method(
    owner: str, method: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    if method in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        width = next((n for n in (*arguments, *named.values()) if isinstance(n, int)), 0)
        check_length(width * (owner.count("\t") if method == "expandtabs" else 1))
    elif method == "replace" and len(arguments) > 1:
        _check_replace(owner, *arguments[:2])
    elif method == "join" and arguments:
        _check_joined(owner, arguments[0])
    elif method == "format":
        _check_format(owner, (*arguments, *named.values()))
    elif method in ("split", "rsplit", "splitlines"):
        separator = next((s for s in (*arguments, *named.values()) if isinstance(s, str)), None)
        check_items(owner.count(separator) if separator else _breaks(owner))
    elif method in ("encode", "format_map", "maketrans", "translate"):
        raise TemplateLimit(f"str.{method}")


def _breaks(text: str) -> int:
    """At most how many words or lines a text has."""
    return sum(map(text.count, " \n\t\r")) if len(text) > 1000 else 0


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        check_length(len(text) + text.count(old) * len(new))


def _check_joined(separator: str, items: Any) -> None:
    if isinstance(items, Sized):
        check_length(len(separator) * len(items))
        weigh(items)
    elif not isinstance(items, Undefined):
        raise TemplateLimit("joining what has no length")


# the dialect


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model wrote, for training; to a prompt
    it adds nothing."""

    tags = {"generation"}  # noqa: RUF012 (the library's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that does not print what it holds, which may hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    """Instead of the type itself, which has more to reach for."""
    weigh((arguments, named))
    return dict(*arguments, **named)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter it escapes nothing for HTML: a prompt is no web page."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > 64 or any(len(separator) > 64 for separator in separators or ()):
        raise TemplateLimit("JSON that is spread too wide")
    # A character takes up to twelve as an escape, an item a line of its own.
    check_length(weigh(value) * (2 + width // 4 if indent else 2))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:_MAX_SMALL])


def _strftime_now(pattern: str) -> str:
    _check_format(pattern, ())
    return datetime.now().strftime(pattern)


def _format(pattern: str, *arguments: Any, **named: Any) -> str:
    _check_format(pattern, (*arguments, *named.values()))
    return pattern % (named or arguments)


@jinja2.pass_eval_context
def _replace(eval_context: nodes.EvalContext, text: Any, old: Any, new: Any, *count: Any) -> str:
    weigh(text)
    _check_replace(str(text), str(old), str(new))
    return do_replace(eval_context, text, old, new, *count)


@jinja2.pass_eval_context
def _join(
    eval_context: nodes.EvalContext, value: Any, d: str = "", attribute: str | None = None
) -> Any:
    items = list(value)
    _check_joined(str(d), items)
    return do_join(eval_context, items, d, attribute)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    s = s if isinstance(s, str) else str(s)
    check_length(len(s) + size * (s.count("\n") + 1))
    return do_indent(s, width, first, blank)


_CHECKED: dict[str, Callable[..., Any]] = {
    "format": _format, "indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson,
}  # fmt: skip
# What they make is about as big as what they are given.
_EVEN = frozenset(
    {
        "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "sum", "title",
        "trim", "unique", "upper",
    }
)  # fmt: skip


# Those that print what they are given, or compare its items.
_PRINTING = frozenset(
    {
        "capitalize", "dictsort", "e", "escape", "lower", "max", "min", "safe", "sort", "string",
        "title", "trim", "unique", "upper",
    }
)  # fmt: skip
# Those that take a text apart into its characters, each of which is a value then.
_WALKING = frozenset(
    {
        "join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr",
        "sort", "sum", "unique",
    }
)  # fmt: skip


def _watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes its time and memory from the allowance. Those that are seldom used take
    small values only."""
    context_first = hasattr(method, "jinja_pass_arg")
    is_small = name not in _EVEN and name not in _CHECKED
    is_walking = name in _WALKING
    is_printing = name in _PRINTING

    def watched(*arguments: Any, **named: Any) -> Any:
        tick()
        given = arguments[1:] if context_first else arguments
        value = given[0] if given else None
        if is_small:
            if weigh(value) > _MAX_SMALL or not _are_small((*given[1:], *named.values())):
                raise TemplateLimit(f"{name}: a value too big for a filter that is seldom used")
        elif isinstance(value, str):
            if is_walking:
                check_items(len(value))
        elif is_printing:
            weigh(value)
        elif isinstance(value, Iterator):
            # A pipeline of generators is walked here, where it is counted.
            given = (limited(value), *given[1:])
            arguments = (arguments[0], *given) if context_first else given
        return made(method(*arguments, **named), NEW_ITEM_BYTES)

    if context_first:
        watched.jinja_pass_arg = method.jinja_pass_arg  # pyright: ignore
    return watched


def _are_small(values: Iterable[Any]) -> bool:
    return all(
        value <= _MAX_SMALL if isinstance(value, int) else weigh(value) <= _MAX_SMALL
        for value in values
    )


_COMPARING = (
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan",
    "<=", "le", "in",
)  # fmt: skip


def _weighing(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that compares."""

    def weighing(value: Any, *arguments: Any) -> Any:
        tick()
        if not isinstance(value, str | int | float | None):
            weigh((value, arguments))
        return test(value, *arguments)

    return weighing


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        extensions=[loopcontrols, _Generation],
    )
    filters = environment.filters
    for name, method in {**filters, **_CHECKED}.items():
        filters[name] = _watched(name, method)
    filters |= {"_concat": _concat, "_iterated": _iterated, "_made": _made}
    filters |= {"_tick": _tick, "_ticked": _ticked, "_weighed": _weighed}
    for name in _COMPARING:
        environment.tests[name] = _weighing(environment.tests[name])
    environment.globals |= {
        "dict": _dict,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    del environment.globals["lipsum"]  # makes text without end
    return environment


_ENVIRONMENT = _environment()
