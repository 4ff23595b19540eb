"""What the gateway uses of a translation: one request of another dialect and the way back."""

from __future__ import annotations

from typing import Protocol

from cortex_core.errors import CortexError
from cortex_core.translate.names import Names

__all__ = ["Translation"]


class Translation(Protocol):
    """One request, translated to a chat completion; then the answer's machine. Made from a body by
    the dialect's own function, which raises RequestError.

    A chat stream goes through `feed` in pieces of whole events and ends with its `[DONE]`. `feed`
    gives events of this dialect, complete ones only. A chat stream that breaks off ends with
    `error_event`. Only one of stream and whole answer is used.
    """

    model: str
    is_stream: bool
    chat: bytes
    """The body for /v1/chat/completions; its stream includes usage."""
    ignored: tuple[str, ...]
    """Names of parameters that have no effect, for `x-cortex-ignored`."""

    @property
    def names(self) -> Names:
        """For what a node says of the chat's parameters, in that header and in its errors."""
        ...

    is_ended: bool
    """Whether a stream has told of its end, which is at the `[DONE]` of a chat that had one."""

    def started(self, prompt: int, cached: int) -> None:
        """Prompt tokens, and those of them that were reused; known before the first event of an
        answer, from its `x-cortex-cache`."""
        ...

    def keep_alive(self) -> bytes:
        """A sign of life. The first bytes of a stream may be one; then it opens the stream as this
        dialect does."""
        ...

    def feed(self, events: bytes) -> bytes:
        """Events of the chat stream in, events of this dialect out. Raises UpstreamFailed over
        what is no chat stream."""
        ...

    def error_event(self, error: CortexError) -> bytes:
        """The last event of a stream that failed, after which nothing follows."""
        ...

    def whole(self, body: bytes) -> bytes:
        """A whole chat completion in, this dialect's answer out. Raises UpstreamFailed over what
        is none."""
        ...

    def error_body(self, error: CortexError) -> bytes:
        """The body of an answer that is an error."""
        ...
