"""Messages of the Anthropic API as chat messages.

What a user's message holds becomes several: a tool's result is a message of its own there, in the
order of the blocks. An assistant's blocks are one message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from cortex_core.errors import InvalidRequest, UnsupportedParameter
from cortex_core.translate.fields import string
from cortex_core.translate.seal import opened
from cortex_core.translate.unseen import is_unseen, told_of, unseen_kinds

__all__ = ["ATTRIBUTION", "chat_messages", "system_text", "unseen_results", "wants_citations"]

Block = dict[str, Any]

ATTRIBUTION = "x-anthropic-billing-header:"
"""What a coding agent's line of attribution begins with. It is the first of its system prompt and
differs with every request, so that nothing behind it could be reused; see
github.com/ggml-org/llama.cpp/pull/20623."""

_encode = msgspec.json.Encoder().encode


def system_text(system: str | list[Block] | None, *, keeps_attribution: bool = False) -> str:
    """Raises InvalidRequest or UnsupportedParameter that names the block."""
    texts = _texts(system, "system")
    if not keeps_attribution:
        texts = [_without_attribution(text) for text in texts]
    return "\n\n".join(text for text in texts if text)


def _without_attribution(text: str) -> str:
    if ATTRIBUTION not in text:
        return text
    lines = text.split("\n")
    return "\n".join(line for line in lines if not line.startswith(ATTRIBUTION))


def chat_messages(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raises InvalidRequest or UnsupportedParameter that names the place, e.g.
    `messages[2].content[0]`."""
    found: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role == "assistant":
            said = _said(_blocks(content, f"{at}.content"), f"{at}.content")
            if len(said) > 1:
                found.append(said)
        elif role == "user":
            found += _asked(_blocks(content, f"{at}.content"), f"{at}.content")
        elif role == "system":
            text = "\n\n".join(_texts(content, f"{at}.content"))
            is_head = all(before["role"] == "system" for before in found)
            found.append({"role": "system", "content": text} if is_head else _reminder(text))
        else:
            raise InvalidRequest(
                f"{at}.role: expected user, assistant or system, got {role!r}", param=f"{at}.role"
            )
    return found


def wants_citations(messages: Iterable[dict[str, Any]]) -> bool:
    """Whether an answer would have to say where in a document it is from."""
    return any(_wants_citations(message.get("content")) for message in messages)


def _wants_citations(content: Any) -> bool:
    for block in content if isinstance(content, list) else ():
        citations = block.get("citations")
        if block.get("type") == "tool_result":
            if _wants_citations(block.get("content")):
                return True
        elif isinstance(citations, dict) and citations.get("enabled"):
            return True
    return False


def _reminder(text: str) -> dict[str, Any]:
    """What the system says in the middle of a conversation. Templates know of no such turn: they
    reject it, leave it out, or move it to the front, where it costs the whole cached prompt. Claude
    Code, which says so every few turns, had marked it like this in the user's before."""
    return {"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"}


def unseen_results(messages: Iterable[dict[str, Any]]) -> list[str]:
    """Kinds of blocks that tools returned and a model is told of instead of shown."""
    contents = [each.get("content") for each in messages]
    turns = [blocks for blocks in contents if isinstance(blocks, list) and _is_result(blocks)]
    inner = [block.get("content") for blocks in turns for block in blocks]
    return unseen_kinds([*turns, *inner])


def _is_result(blocks: list[Block]) -> bool:
    """Whether a tool's result is in it; what is beside one is from the tool, too. (Claude Code has
    the pages of a PDF there.)"""
    return any(block.get("type") == "tool_result" for block in blocks)


def _said(blocks: list[Block], at: str) -> dict[str, Any]:
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        here = f"{at}[{index}]"
        kind = block.get("type")
        if kind == "text":
            texts.append(string(block, "text", here))
        elif kind == "thinking":
            thoughts.append(_thought(block, here))
        elif kind == "tool_use":
            calls.append(_call(block, here))
        elif kind != "redacted_thinking":  # which nobody but its maker could read
            raise _unsupported(kind, here)
    said: dict[str, Any] = {"role": "assistant"}
    if thought := "".join(thoughts):
        said["reasoning_content"] = thought
    if text := "".join(texts):
        said["content"] = text
    if calls:
        said["tool_calls"] = calls
    return said


def _thought(block: Block, at: str) -> str:
    """Its text, or what its seal says where the client was not shown any."""
    return string(block, "thinking", at, "") or opened(string(block, "signature", at, ""))


def _call(block: Block, at: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict | None):
        raise InvalidRequest(f"{at}.input: expected an object", param=f"{at}.input")
    function = {
        "name": string(block, "name", at),
        "arguments": _encode(arguments or {}).decode(),
    }
    return {"id": string(block, "id", at), "type": "function", "function": function}


def _asked(blocks: list[Block], at: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            parts = [{"type": "text", "text": text} for text in texts]
            found.append({"role": "user", "content": texts[0] if len(texts) == 1 else parts})
            texts.clear()

    is_result = _is_result(blocks)
    for index, block in enumerate(blocks):
        here = f"{at}[{index}]"
        if block.get("type") == "tool_result":
            flush()
            found.append(_result(block, here))
        elif is_result and is_unseen(block):
            texts.append(told_of(block))
        else:
            texts.append(_text(block, here))
    flush()
    return found or [{"role": "user", "content": ""}]


def _result(block: Block, at: str) -> dict[str, Any]:
    """A chat has no mark for a tool that failed, so its words say it."""
    here = f"{at}.content"
    parts = enumerate(_blocks(block.get("content"), here))
    text = "\n".join(_returned(part, f"{here}[{index}]") for index, part in parts)
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": string(block, "tool_use_id", at), "content": text}


def _returned(block: Block, at: str) -> str:
    """What a tool returned; that may be other tools, which are all offered from the start here."""
    if is_unseen(block):
        return told_of(block)
    if block.get("type") == "tool_reference":
        return f"Found the tool {string(block, 'tool_name', at)}"
    return _text(block, at)


def _texts(content: Any, at: str) -> list[str]:
    return [_text(block, f"{at}[{index}]") for index, block in enumerate(_blocks(content, at))]


def _blocks(content: Any, at: str) -> list[Block]:
    """A bare string, or none at all, is what a block of text would be."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"{at}: expected a string or an array of blocks", param=at)
    for index, block in enumerate(content):
        if not isinstance(block, dict):
            raise InvalidRequest(f"{at}[{index}]: expected an object", param=f"{at}[{index}]")
    return content


def _text(block: Block, at: str) -> str:
    """Of whatever is text, or holds nothing but text."""
    kind = block.get("type")
    if kind == "text":
        return string(block, "text", at)
    if kind == "document":
        return _document(block, at)
    if kind == "search_result":
        heads = [string(block, "title", at), string(block, "source", at)]
        return "\n".join([*heads, *_texts(block.get("content"), f"{at}.content")])
    raise _unsupported(kind, at)


def _document(block: Block, at: str) -> str:
    source, here = block.get("source"), f"{at}.source"
    if not isinstance(source, dict):
        raise InvalidRequest(f"{here}: expected an object", param=here)
    if source.get("type") == "text":
        texts = [string(source, "data", here)]
    elif source.get("type") == "content":
        texts = _texts(source.get("content"), f"{here}.content")
    else:
        kind = source.get("type")
        raise UnsupportedParameter(f"{here}: a source of type {kind!r} is unsupported", param=here)
    heads = [string(block, name, at, "") for name in ("title", "context")]
    return "\n\n".join([*filter(None, heads), "\n".join(texts)])


def _unsupported(kind: object, at: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{at}: a block of type {kind!r} is unsupported here", param=at)
