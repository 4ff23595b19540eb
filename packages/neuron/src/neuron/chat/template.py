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
from msgspec.structs import replace

from cortex_core.errors import InvalidRequest, TemplateRenderFailed
from neuron import logs
from neuron.beside import read_beside
from neuron.chat import messages as shaping
from neuron.chat import sandbox
from neuron.chat.remedies import Remedies

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

_OWN_NAMES = ("messages", "tools", "documents")
_TOLD_FORMAT = "<tool_call>"  # of tools that are told in a system turn


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
        beside = _from_jinja_file(path) or _from_tokenizer_config(path)
        if beside:
            return beside
    if text := metadata.get("tokenizer.chat_template"):
        tool_use = metadata.get("tokenizer.chat_template.tool_use")
        return TemplateTexts(text, tool_use, "GGUF metadata")
    return TemplateTexts(CHATML)


def _from_jinja_file(model: Path) -> TemplateTexts | None:
    name = "chat_template.jinja"
    text = read_beside(model, name)
    if not text:
        return None
    named = read_beside(model, "additional_chat_templates/tool_use.jinja")
    return TemplateTexts(text, named or None, name)


def _from_tokenizer_config(model: Path) -> TemplateTexts | None:
    name = "tokenizer_config.json"
    text = read_beside(model, name)
    if text is None:
        return None
    try:
        given = json.loads(text)["chat_template"]
        if isinstance(given, str):
            return TemplateTexts(given, origin=name)
        named = {entry["name"]: str(entry["template"]) for entry in given}
    except KeyError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        _log.warning("no usable chat_template", path=model.with_name(name), cause=error)
        return None
    default = named.get("default")
    return TemplateTexts(default, named.get("tool_use"), name) if default else None


class Prompt(msgspec.Struct, frozen=True):
    """A rendered conversation, and the text by which its tool call format is known. `unread`: what
    the template was given beside the conversation and never looks at. `warnings`: what was done so
    that it could be rendered at all, for people."""

    text: str
    format_text: str
    unread: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


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
        *,
        continue_final_message: bool = False,
    ) -> Prompt:
        """The prompt up to where the assistant speaks; with `continue_final_message`, up to the end
        of the last message's content, or where it has none, of its reasoning, for the model to go
        on from there.

        A conversation that the template rejects is changed as little as makes it accept one. Where
        it fails all the same, ChatML is used with a warning; but with tools TemplateRenderFailed is
        raised, so that no prompt is silently without them; and also where the template does not
        show the end of the message to be continued. Raises InvalidRequest on kwargs that would
        replace the conversation, and where there is nothing to continue. Takes at most about
        MAX_RENDER_S of the sandbox.
        """
        for name in _OWN_NAMES:
            if kwargs and name in kwargs:
                at = f"chat_template_kwargs.{name}"
                raise InvalidRequest(f"{at}: cannot be replaced", param=at)
        context = {"add_generation_prompt": not continue_final_message, **(kwargs or {})}
        if continue_final_message:
            messages = _tagged(messages, context["add_generation_prompt"])
        started = time.perf_counter()
        text = self.texts.tool_use if tools and self.texts.tool_use else self.texts.default
        origin = self.texts.origin
        try:
            prompt = self._render(text, messages, tools, context)
        except Exception as error:  # untrusted code raises what it likes
            reason = _one_line(error)
        else:
            return _continued(prompt) if continue_final_message else prompt
        finally:
            self.last_s = time.perf_counter() - started
        if tools:
            raise TemplateRenderFailed(f"the chat template ({origin}) failed with tools: {reason}")
        _log.warning("chat template failed, using ChatML", template=origin, cause=reason)
        told = f"the chat template ({origin}) failed, and ChatML was used instead: {reason}"
        try:
            prompt = self._render(CHATML, messages, None, context)
        except Exception as error:
            problem = f"the messages cannot be rendered: {_one_line(error)}"
            raise TemplateRenderFailed(problem) from None
        prompt = replace(prompt, warnings=(told, *prompt.warnings))
        return _continued(prompt) if continue_final_message else prompt

    def _render(
        self,
        text: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        context: Mapping[str, Any],
    ) -> Prompt:
        compiled = _compile(text)
        if isinstance(compiled, Exception):
            raise compiled
        unread = frozenset(context) - compiled.reads
        context = {**self._special, **context, "tools": tools, "documents": None}
        shaped = shaping.for_template(messages, compiled.wants)
        if not compiled.takes_tools:
            shaped = shaping.through_text(shaped, tools)
            text = _TOLD_FORMAT
        deadline = time.monotonic() + sandbox.MAX_RENDER_S
        try:
            return Prompt(self._run(compiled, context, shaped, deadline), text, unread)
        except sandbox.TemplateLimit:
            raise
        except Exception as error:
            rejection = error
        complaint = _one_line(rejection)
        for remedies, changed in compiled.remedies.tried(shaped, complaint):
            try:
                prompt = self._run(compiled, context, changed, deadline)
            except sandbox.TemplateLimit:
                break
            except Exception:  # the first complaint is the one about what the client sent
                continue
            compiled.remedies.learn(complaint, remedies)
            _log.debug("conversation changed for its template", cause=complaint)
            told = "the conversation was changed, because the chat template refused it: "
            return Prompt(prompt, text, unread, (told + complaint,))
        raise rejection

    def _run(
        self,
        compiled: _Compiled,
        context: dict[str, Any],
        messages: list[dict[str, Any]],
        deadline: float,
    ) -> str:
        return sandbox.render(compiled.template, context | {"messages": messages}, deadline)


# What marks the place where a message goes on; the space behind it tells whether the template
# trimmed the message, and what it put behind goes with the tag.
_TAG = "-continued-here-50a7- "


def _tagged(messages: list[dict[str, Any]], add_generation_prompt: bool) -> list[dict[str, Any]]:
    """The messages with the tag at the end of the last one's text."""
    at = "continue_final_message"
    if add_generation_prompt:
        raise InvalidRequest(f"{at}: excludes add_generation_prompt", param=at)
    content = messages[-1].get("content")
    if isinstance(content, list):
        for index in range(len(content) - 1, -1, -1):
            text = content[index].get("text")
            if isinstance(text, str):
                part = content[index] | {"text": text + _TAG}
                tagged = [*content[:index], part, *content[index + 1 :]]
                return [*messages[:-1], messages[-1] | {"content": tagged}]
    else:
        for key in ("content", *shaping.REASONING_KEYS):
            text = messages[-1].get(key)
            if isinstance(text, str):
                return [*messages[:-1], messages[-1] | {key: text + _TAG}]
    raise InvalidRequest(f"{at}: the last message has no text to continue", param=at)


def _continued(prompt: Prompt) -> Prompt:
    """The prompt up to the tag. Raises TemplateRenderFailed if the template did not show where the
    message ends; what is before may have been put elsewhere, as reasoning is."""
    tag = _TAG.strip()
    place = prompt.text.rfind(tag)
    if place < 0:
        at = "continue_final_message"
        raise TemplateRenderFailed(
            f"{at}: the chat template does not show where the last message ends", param=at
        )
    text = prompt.text[:place]
    if not prompt.text.startswith(_TAG, place):
        text = text.rstrip()
    return replace(prompt, text=text)


class _Compiled(msgspec.Struct, frozen=True):
    """A template, what its syntax tree tells of the messages it wants, and what helps where it
    refuses them."""

    template: jinja2.Template
    takes_tools: bool
    reads: frozenset[str]
    wants: shaping.Wants
    remedies: Remedies = msgspec.field(default_factory=Remedies)


@lru_cache(maxsize=64)
def _compile(text: str) -> _Compiled | Exception:
    """A template that cannot be compiled is not compiled again for every request."""
    try:
        tree = sandbox.parse(text)
        template = sandbox.compile_template(tree)
        reads = frozenset(meta.find_undeclared_variables(tree))
        takes_tools = "tools" in reads
        return _Compiled(template, takes_tools, reads, _wants(tree, text, takes_tools))
    except Exception as error:  # untrusted code
        return error


def _wants(tree: nodes.Template, text: str, takes_tools: bool) -> shaping.Wants:
    developer = "developer" in text
    if not takes_tools:
        return shaping.Wants(developer=developer, objects=False)
    tests = {test.name for test in tree.find_all(nodes.Test) if _is_content(test.node)}
    parts = any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))
    return shaping.Wants(
        parts=parts,
        only_parts=parts and not tests & {"string", "iterable", "sequence", "mapping"},
        developer=developer,
        empty_content="none" in tests,
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
