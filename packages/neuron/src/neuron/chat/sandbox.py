"""The jinja2 environment that runs chat templates: Hugging Face's dialect, in a box.

Templates come with model files, so they are untrusted. They reach no attribute, file or module
(ImmutableSandboxedEnvironment), and a render that wants more time or memory than any honest one
ends with TemplateLimit (`neuron.chat.allowance`). What templates use all the time is checked
closely, so that conversations may be long; the rest of jinja2 works on small values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sized
from datetime import datetime
from functools import partial, reduce
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from neuron.chat.allowance import (
    MAX_RENDER_S,
    MAX_VALUE,
    NEW_ITEM_BYTES,
    TemplateLimit,
    allowed,
    check_items,
    check_length,
    limited,
    made,
    tick,
    turned,
    weigh,
)
from neuron.chat.filters import (
    GROWING,
    check_format,
    check_method,
    check_number,
    watched_filters,
    watched_tests,
)

__all__ = ["MAX_RENDER_S", "MAX_VALUE", "TemplateLimit", "compile_template", "parse", "render"]

_MAX_SOURCE = 64 * 1024  # characters; the longest known have under 32 Ki
_MAX_NODES = 8000  # of the syntax tree, which takes about a second to compile
_MAX_REASON = 1000  # characters
_OF_DICT = frozenset(dir(dict))
_OF_TEXT = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}
_OF_LOOP = frozenset(name for name in dir(LoopContext) if name[0] != "_")
_MISSING = object()
_SMALL = 1000  # characters that are compared or searched in no time
_MOST_JUDGED = 1024  # attributes of which something is remembered


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
        # What `generate` calls, without its rewriting of tracebacks, which nobody sees.
        for piece in template.root_render_func(template.new_context(context)):
            size += len(piece)
            if size > MAX_VALUE:
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
def _added(context: Context, parts: tuple[Any, ...]) -> Any:
    """The sum of two or more, from the left. Texts are put together at once."""
    size = 0
    for part in parts:
        if type(part) is not str:
            return reduce(partial(_ENVIRONMENT.call_binop, context, "+"), parts)
        size += len(part)
    check_length(size)
    return made("".join(parts))


@jinja2.pass_context
def _concat(_: Context, parts: tuple[Any, ...]) -> str:
    check_length(sum(map(weigh, parts)))
    return made("".join(map(str, parts)))


@jinja2.pass_context
def _weighed(_: Context, value: Any) -> Any:
    """An operand of a comparison, or a key."""
    if type(value) is str and len(value) < _SMALL:
        return value
    tick()
    weigh(value)
    return value


@jinja2.pass_context
def _ticked(_: Context, value: Any) -> Any:
    """What is searched for a constant."""
    if type(value) is str and len(value) < _SMALL:
        return value
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
        ticked = _through("_turned", nodes.Const(constants))
        node.body.insert(0, nodes.ExprStmt(ticked).set_lineno(node.lineno, override=True))
        if isinstance(node, nodes.For):
            node.iter = _through("_iterated", node.iter)
            if node.test is not None:
                node.test = _through("_weighed", node.test)
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_repeated  # noqa: N815

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        left = node.left
        if isinstance(node.right, nodes.Const) and not isinstance(node.right.value, str):
            return node
        if isinstance(left, nodes.Filter) and left.name == "_added":
            assert isinstance(left.node, nodes.Tuple)
            left.node.items.append(node.right)
            return left
        return _through("_added", nodes.Tuple([left, node.right], "load"))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_concat", nodes.Tuple(node.nodes, "load"))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """To compare two values takes no longer than the smaller one is big, so only the second is
        weighed; what is looked up in a mapping is hashed, however small that is."""
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        is_open = sum(not _is_small(operand) for operand in operands) > 1
        if is_open and node.ops[0].op in ("in", "notin"):
            node.expr = _through("_weighed", node.expr)
        for operand in node.ops:
            if is_open or (operand.op in ("in", "notin") and not _is_small(operand.expr)):
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


def _is_small(node: nodes.Node) -> bool:
    """Whatever its value, it is compared in no time: a constant, a list of them, or a truth."""
    if isinstance(node, nodes.Tuple | nodes.List):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const | nodes.Compare | nodes.Not | nodes.Test)


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    filtered = nodes.Filter(node, name, [], [], None, None)
    filtered.set_lineno(node.lineno)
    return filtered


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "+", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._judged: dict[tuple[type, str], bool] = {}
        self._undefined: dict[str, Undefined] = {}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        if sum(1 for _ in template.find_all(nodes.Node)) > _MAX_NODES:
            raise TemplateLimit(f"a template of more than {_MAX_NODES} nodes")
        return _Watched().visit(template).set_environment(self)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # As the library does it, without an exception for each key that a message has or has not,
        # and without another look at what all texts, loops and namespaces have.
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            value = obj.get(attribute, _MISSING)
            return self._absent(attribute) if value is _MISSING else value
        if kind is str and attribute in _OF_TEXT:
            return getattr(obj, attribute)
        if kind is LoopContext and attribute in _OF_LOOP:
            return getattr(obj, attribute)
        if kind is _Namespace and attribute[0] != "_":
            value = getattr(obj, attribute, _MISSING)
            return self.undefined(obj=obj, name=attribute) if value is _MISSING else value
        return super().getattr(obj, attribute)

    def _absent(self, key: str) -> Undefined:
        """Of any dict; it remembers no more of it than that it is one."""
        known = self._undefined.get(key)
        if known is None:
            known = self.undefined(obj={}, name=key)
            if len(self._undefined) < _MOST_JUDGED:
                self._undefined[key] = known
        return known

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the library says; it asks for nothing but the object's type and the name."""
        key = (type(obj), attr)
        known = self._judged.get(key)
        if known is None:
            known = super().is_safe_attribute(obj, attr, value)
            if len(self._judged) < _MOST_JUDGED:  # a template can make up any name
                self._judged[key] = known
        return known

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and type(argument) is str and argument in obj:
            return obj[argument]
        if isinstance(argument, tuple):
            weigh(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if type(left) is int and type(right) is int and operator in "+%":
            return left + right if operator == "+" else left % right
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
                    check_number(value)
        elif operator == "**":
            check_number(left)
            if not isinstance(right, int | float) or abs(right) > 64:
                raise TemplateLimit(f"an exponent of {right!r}")
        elif isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,))
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __callee: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        tick()
        if type(__callee) is Macro:
            return _direct(__callee, arguments, named)
        is_built_in = type(__callee) is BuiltinMethodType
        # The sandbox wraps str.format.
        method = __callee if is_built_in else getattr(__callee, "__wrapped__", __callee)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ in GROWING:
                check_method(owner, method.__name__, arguments, named)
        elif owner is not None and isinstance(owner, list | tuple | Mapping):
            weigh((owner if method.__name__ in ("index", "count") else "", arguments))
        if is_built_in:
            return _direct(__callee, arguments, named)
        return made(super().call(__context, __callee, *arguments, **named), NEW_ITEM_BYTES)


def _direct(callee: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a macro or a built-in method returns: once got at they are safe to call, and they want
    no context."""
    named.pop("_block_vars", None)
    named.pop("_loop_vars", None)
    return made(callee(*arguments, **named), NEW_ITEM_BYTES)


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


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:_MAX_REASON])


def _strftime_now(pattern: str) -> str:
    check_format(pattern, ())
    return datetime.now().strftime(pattern)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        extensions=[loopcontrols, _Generation],
    )
    filters = environment.filters
    filters |= watched_filters(filters)
    filters |= {"_added": _added, "_concat": _concat, "_iterated": _iterated, "_made": _made}
    filters |= {"_ticked": _ticked, "_weighed": _weighed}
    filters["_turned"] = jinja2.pass_context(turned)
    environment.tests |= watched_tests(environment.tests)
    environment.globals |= {
        "dict": _dict,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    del environment.globals["lipsum"]  # makes text without end
    return environment


_ENVIRONMENT = _environment()
