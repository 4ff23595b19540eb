"""The one error tree, the wire form of an error, and its three renderings.

An error is raised where it is known, typed, with the offending value in its message, and is
translated once, at the edge. The tree (HTTP status, code)::

    CortexError
    ├── RequestError                     the client's to mend
    │   ├── InvalidJson                  400 invalid_json
    │   ├── InvalidRequest               400 invalid_request
    │   ├── ContextLengthExceeded        400 context_length_exceeded
    │   ├── UnsupportedParameter         400 unsupported_parameter
    │   │   └── ThreadUnsupported        400 thread_unsupported_request
    │   ├── InvalidApiKey                401 invalid_api_key
    │   ├── Forbidden                    403 forbidden
    │   ├── NotFound                     404 not_found
    │   │   └── ModelNotFound            404 model_not_found
    │   ├── MethodNotAllowed             405 method_not_allowed
    │   ├── RequestTimeout               408 request_timeout
    │   ├── Conflict                     409 conflict
    │   ├── RequestTooLarge              413 request_too_large
    │   ├── UnsupportedEncoding          415 unsupported_encoding
    │   ├── PreflightFailed              422 a preflight kind, e.g. gguf_corrupt
    │   ├── TemplateRenderFailed         422 template_render_failed
    │   ├── PoisonPrompt                 422 poison_prompt
    │   ├── InvalidConfiguration         422 invalid_configuration
    │   ├── RateLimitExceeded            429 rate_limit_exceeded
    │   └── InsufficientQuota            429 insufficient_quota
    ├── UpstreamFailed                   502 upstream_failed
    ├── Unavailable                      the fleet's to mend; try again
    │   ├── ModelLoading                 503 model_loading
    │   ├── NoCapacity                   503 no_capacity
    │   ├── NodeUnavailable              503 node_unavailable
    │   └── ShuttingDown                 503 shutting_down
    ├── Stalled                          504 stalled
    └── InternalError                    500 internal_error (a bug of ours, never the client's)
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import msgspec

__all__ = [
    "Conflict",
    "ContextLengthExceeded",
    "CortexError",
    "Fault",
    "Forbidden",
    "InsufficientQuota",
    "InternalError",
    "InvalidApiKey",
    "InvalidConfiguration",
    "InvalidJson",
    "InvalidRequest",
    "MethodNotAllowed",
    "ModelLoading",
    "ModelNotFound",
    "NoCapacity",
    "NodeUnavailable",
    "NotFound",
    "Overrun",
    "PoisonPrompt",
    "PreflightFailed",
    "RateLimitExceeded",
    "RequestError",
    "RequestTimeout",
    "RequestTooLarge",
    "ShuttingDown",
    "Stalled",
    "TemplateRenderFailed",
    "ThreadUnsupported",
    "Unavailable",
    "UnsupportedEncoding",
    "UnsupportedParameter",
    "UpstreamFailed",
    "parse_openai",
    "render_anthropic",
    "render_openai",
    "render_responses",
]


class Overrun(msgspec.Struct, frozen=True):
    """By how much a prompt is too long: the tokens that it has, and the most that it may have."""

    tokens: int
    most: int


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as a value: what crosses a process boundary and is kept in state. `overrun`: of a
    prompt that is too long."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    overrun: Overrun | None = None


class CortexError(Exception):
    """The root. `message` is for people and names the offending value; `code` is for programs."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    default_retry_after_s: ClassVar[int | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = (
            retry_after_s if retry_after_s is not None else self.default_retry_after_s
        )

    @property
    def fault(self) -> Fault:
        return Fault(self.code, self.message, self.param, self.retry_after_s)

    @staticmethod
    def from_fault(fault: Fault) -> CortexError:
        """Raise-able error for a fault from the wire; an unknown code becomes an UpstreamFailed."""
        kind = _BY_CODE.get(fault.code)
        if kind is ContextLengthExceeded:
            return kind(fault.message, param=fault.param, overrun=fault.overrun)
        if kind is None:
            if fault.code in PREFLIGHT_KINDS:
                return PreflightFailed(fault.message, kind=fault.code, param=fault.param)
            return UpstreamFailed(f"{fault.code}: {fault.message}", param=fault.param)
        return kind(fault.message, param=fault.param, retry_after_s=fault.retry_after_s)


class RequestError(CortexError):
    """The request itself is at fault; sending it again unchanged will fail again."""

    status = 400
    code = "invalid_request"


class InvalidJson(RequestError):
    code = "invalid_json"


class InvalidRequest(RequestError):
    code = "invalid_request"


class ContextLengthExceeded(RequestError):
    """The message has OpenAI's words; what other dialects say is made from the `overrun`."""

    code = "context_length_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, overrun: Overrun | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.overrun = overrun

    @property
    def fault(self) -> Fault:
        return Fault(self.code, self.message, self.param, overrun=self.overrun)


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class ThreadUnsupported(UnsupportedParameter):
    """An Anthropic client asks that its conversation be kept here. The code is the vendor's own
    word, upon which the SDK's tool runner sends the whole conversation instead."""

    code = "thread_unsupported_request"


class InvalidApiKey(RequestError):
    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    status = 403
    code = "forbidden"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    """The client began a request and did not finish it."""

    status = 408
    code = "request_timeout"


class Conflict(RequestError):
    status = 409
    code = "conflict"


class RequestTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestError):
    """The body is compressed in a way that is not undone here."""

    status = 415
    code = "unsupported_encoding"


PreflightKind = Literal[
    "gguf_missing",
    "gguf_corrupt",
    "gguf_unsupported",
    "gguf_unreadable",
    "insufficient_memory",
    "insufficient_disk",
]
PREFLIGHT_KINDS: frozenset[str] = frozenset(get_args(PreflightKind))


class PreflightFailed(RequestError):
    """A model file was refused before or while it was loaded; `kind` is the code."""

    status = 422

    def __init__(self, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = kind


class TemplateRenderFailed(RequestError):
    status = 422
    code = "template_render_failed"


class PoisonPrompt(RequestError):
    """The prompt was in flight each time its worker crashed; it gets no third try."""

    status = 422
    code = "poison_prompt"


class InvalidConfiguration(RequestError):
    """A configuration that was to be put in force; the one in force stays."""

    status = 422
    code = "invalid_configuration"


class RateLimitExceeded(RequestError):
    status = 429
    code = "rate_limit_exceeded"
    default_retry_after_s = 1


class InsufficientQuota(RequestError):
    status = 429
    code = "insufficient_quota"


class UpstreamFailed(CortexError):
    """A worker or a neuron failed while it served; what had been sent stands, the rest is lost."""

    status = 502
    code = "upstream_failed"


class Unavailable(CortexError):
    """Nobody can serve this now; `retry_after_s` says when to look again."""

    status = 503
    code = "no_capacity"
    default_retry_after_s = 5


class ModelLoading(Unavailable):
    code = "model_loading"


class NoCapacity(Unavailable):
    code = "no_capacity"


class NodeUnavailable(Unavailable):
    code = "node_unavailable"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class Stalled(CortexError):
    status = 504
    code = "stalled"


class InternalError(CortexError):
    """A bug of ours. No client fault may ever end here."""


_BY_CODE: dict[str, type[CortexError]] = {
    kind.code: kind
    for kind in (
        InvalidJson,
        InvalidRequest,
        ContextLengthExceeded,
        UnsupportedParameter,
        ThreadUnsupported,
        InvalidApiKey,
        Forbidden,
        NotFound,
        ModelNotFound,
        MethodNotAllowed,
        RequestTimeout,
        Conflict,
        RequestTooLarge,
        UnsupportedEncoding,
        TemplateRenderFailed,
        PoisonPrompt,
        InvalidConfiguration,
        RateLimitExceeded,
        InsufficientQuota,
        UpstreamFailed,
        ModelLoading,
        NoCapacity,
        NodeUnavailable,
        ShuttingDown,
        Stalled,
        InternalError,
    )
}

# The `type` words are the vendors' own; SDKs and agents branch on them.
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def render_openai(error: CortexError) -> dict[str, Any]:
    """`{"error": {message, type, code, param}}`, and the `overrun` where there is one."""
    told: dict[str, Any] = {
        "message": error.message,
        "type": _OPENAI_TYPES.get(error.status, "invalid_request_error"),
        "code": error.code,
        "param": error.param,
    }
    if isinstance(error, ContextLengthExceeded) and error.overrun is not None:
        told["overrun"] = msgspec.structs.asdict(error.overrun)
    return {"error": told}


def render_anthropic(error: CortexError) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message, details: {error_code}}}`."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    message = error.message
    if isinstance(error, ContextLengthExceeded):
        # What this vendor's clients look for, and agents compact a conversation upon.
        if error.overrun is not None:
            message = f"{error.overrun.tokens} tokens > {error.overrun.most} maximum"
        message = f"prompt is too long: {message}"
    details = {"error_code": error.code}
    return {"type": "error", "error": {"type": kind, "message": message, "details": details}}


def render_responses(error: CortexError) -> dict[str, Any]:
    """The body of a Responses `error` event; `sequence_number` is the stream's to add."""
    return {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
    }


class _OpenAIError(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None
    overrun: Overrun | None = None


class _OpenAIErrorBody(msgspec.Struct):
    error: _OpenAIError


def parse_openai(body: bytes, *, status: int, retry_after_s: int | None = None) -> CortexError:
    """The error behind an OpenAI-shaped body; anything else is an UpstreamFailed quoting it."""
    try:
        parsed = msgspec.json.decode(body, type=_OpenAIErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        excerpt = body[:200].decode("utf-8", "replace")
        return UpstreamFailed(f"HTTP {status} with a body that is no error envelope: {excerpt!r}")
    code = parsed.code or f"http_{status}"
    return CortexError.from_fault(
        Fault(code, parsed.message, parsed.param, retry_after_s, parsed.overrun)
    )
