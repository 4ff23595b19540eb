"""Which chat template a model has, and what it makes of a conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from jinja2 import meta, nodes

from cortex_core.errors import InvalidRequest, TemplateRenderFailed
from neuron import logs
from neuron.chat import messages as shaping
from neuron.chat import sandbox

__all__ = ["CHATML", "ChatTemplate", "Prompt", "TemplateTexts", "find_texts"]

_log = logs.get(__name__)

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""What most models have seen at least some of; used where a model brings no template."""

_MAX_FILE_BYTES = 32 * 1024 * 1024  # a tokenizer_config.json of a large vocabulary has a few
_OWN_NAMES = ("messages", "tools", "documents")


class TemplateTexts(msgspec.Struct, frozen=True):
    """A model's template, the one it prefers when tools are given, and where they were found."""

    default: str
    tool_use: str | None = None
    origin: str = "built-in ChatML"


def find_texts(
    path: Path | None,
    metadata: Mapping[str, str],
    *,
    override: str | None = None,
    use_chat_template: bool = True,
) -> TemplateTexts:
    """The first there is: `override`, `chat_template.jinja` or `tokenizer_config.json` beside the
    GGUF at `path`, the GGUF's metadata, ChatML. A file that cannot be read is passed over with a
    warning."""
    if not use_chat_template:
        return TemplateTexts(CHATML)
    if override:
        return TemplateTexts(override, origin="override")
    if path is not None:
        beside = _from_jinja_file(path.with_name("chat_template.jinja"))
        beside = beside or _from_tokenizer_config(path.with_name("tokenizer_config.json"))
        if beside:
            return beside
    if text := metadata.get("tokenizer.chat_template"):
        tool_use = metadata.get("tokenizer.chat_template.tool_use")
        return TemplateTexts(text, tool_use, "GGUF metadata")
    return TemplateTexts(CHATML)


def _from_jinja_file(path: Path) -> TemplateTexts | None:
    text = _read(path)
    return TemplateTexts(text, origin=path.name) if text else None


def _from_tokenizer_config(path: Path) -> TemplateTexts | None:
    text = _read(path)
    if text is None:
        return None
    try:
        given = json.loads(text)["chat_template"]
        if isinstance(given, str):
            return TemplateTexts(given, origin=path.name)
        named = {entry["name"]: str(entry["template"]) for entry in given}
    except KeyError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        _log.warning("no usable chat_template", path=path, cause=error)
        return None
    default = named.get("default")
    return TemplateTexts(default, named.get("tool_use"), path.name) if default else None


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            _log.warning("template file passed over: too large", path=path, limit=_MAX_FILE_BYTES)
            return None
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("template file passed over", path=path, cause=error)
        return None


class Prompt(msgspec.Struct, frozen=True):
    """A rendered conversation, and the text by which its tool call format is known."""

    text: str
    format_text: str


class ChatTemplate:
    """A model's templates, compiled when first needed, for the model's whole life."""

    def __init__(self, texts: TemplateTexts, *, bos: str = "", eos: str = "") -> None:
        self.texts = texts
        self.last_s = float("inf")  # what the last render took; unknown before the first
        self._special = {"bos_token": bos, "eos_token": eos}

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt up to where the assistant speaks.

        Where the template fails, ChatML is used with a warning; but with tools TemplateRenderFailed
        is raised, so that no prompt is silently without them. Raises InvalidRequest on kwargs that
        would replace the conversation. Takes at most about MAX_RENDER_S of the sandbox.
        """
        for name in _OWN_NAMES:
            if kwargs and name in kwargs:
                at = f"chat_template_kwargs.{name}"
                raise InvalidRequest(f"{at}: cannot be replaced", param=at)
        started = time.perf_counter()
        text = self.texts.tool_use if tools and self.texts.tool_use else self.texts.default
        origin = self.texts.origin
        try:
            return self._render(text, messages, tools, kwargs or {})
        except Exception as error:  # untrusted code raises what it likes
            reason = _one_line(error)
        finally:
            self.last_s = time.perf_counter() - started
        if tools:
            raise TemplateRenderFailed(f"the chat template ({origin}) failed with tools: {reason}")
        _log.warning("chat template failed, using ChatML", template=origin, cause=reason)
        try:
            return self._render(CHATML, messages, None, {})
        except Exception as error:
            reason = _one_line(error)
        raise TemplateRenderFailed(f"the messages cannot be rendered: {reason}")

    def _render(
        self,
        text: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> Prompt:
        compiled = _compile(text)
        context = {
            "add_generation_prompt": True,
            **self._special,
            **kwargs,
            "tools": tools,
            "documents": None,
        }
        if not compiled.takes_tools:
            shaped = shaping.for_template(
                messages,
                keeps_parts=False,
                knows_developer=compiled.knows_developer,
                parses_arguments=False,
            )
            context["messages"] = shaping.through_text(shaped, tools)
            return Prompt(sandbox.render(compiled.template, context), "<tool_call>")
        shaped = shaping.for_template(
            messages,
            keeps_parts=compiled.keeps_parts,
            knows_developer=compiled.knows_developer,
            parses_arguments=True,
        )
        return Prompt(sandbox.render(compiled.template, context | {"messages": shaped}), text)


class _Compiled(msgspec.Struct, frozen=True):
    """A template and what its syntax tree tells of the messages it wants."""

    template: jinja2.Template
    takes_tools: bool
    keeps_parts: bool
    knows_developer: bool


@lru_cache(maxsize=64)
def _compile(text: str) -> _Compiled:
    tree = sandbox.parse(text)
    return _Compiled(
        template=sandbox.compile_template(text),
        takes_tools="tools" in meta.find_undeclared_variables(tree),
        keeps_parts=any(_is_content(loop.iter) for loop in tree.find_all(nodes.For)),
        knows_developer="developer" in text,
    )


def _is_content(iterated: nodes.Node) -> bool:
    """`message.content`, `message['content']` or a variable called content, filtered or not."""
    while isinstance(iterated, nodes.Filter) and iterated.node is not None:
        iterated = iterated.node
    if isinstance(iterated, nodes.Name):
        return iterated.name == "content"
    if isinstance(iterated, nodes.Getattr):
        return iterated.attr == "content"
    if isinstance(iterated, nodes.Getitem):
        return isinstance(iterated.arg, nodes.Const) and iterated.arg.value == "content"
    return False


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
