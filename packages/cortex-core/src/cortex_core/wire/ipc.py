"""Frames between a neuron's parent process and a worker, over a socketpair.

A frame is a 4-byte big-endian length, then one msgpack value: a tagged array, first item the tag.
`request` ids are chosen by the parent, unique for a worker's life. `op` ids name a load or unload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

import msgspec

from cortex_core.errors import Fault
from cortex_core.outcome import Usage
from cortex_core.wire.sampling import CallForm, CallPart, Calls, Constraint, Grammar, Sampling

__all__ = [
    "MAX_FRAME_BYTES",
    "Ask",
    "CacheSource",
    "CallForm",
    "CallPart",
    "Calls",
    "Cancel",
    "Channel",
    "Command",
    "Computed",
    "Constraint",
    "Delta",
    "Detokenize",
    "Embed",
    "EngineParams",
    "Failed",
    "Finished",
    "Generate",
    "Grammar",
    "Hello",
    "KvLayout",
    "KvType",
    "Load",
    "LoadFailed",
    "LoadProgress",
    "Loaded",
    "ModelInfo",
    "ModelKind",
    "ModelLoad",
    "Pause",
    "Priority",
    "Progress",
    "Rank",
    "Reader",
    "Report",
    "Result",
    "Resume",
    "Sampling",
    "Scores",
    "Shutdown",
    "SplitMode",
    "Started",
    "Step",
    "Text",
    "TokenScore",
    "Tokenize",
    "Tokens",
    "Unload",
    "Unloaded",
    "Vectors",
    "encode",
    "pack_ids",
]

MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any prompt; a length beyond it is a broken stream


KvLayout = Literal["unified", "partitioned"]
KvType = Literal["f16", "q8_0", "q4_0"]
SplitMode = Literal["none", "layer", "row"]
Priority = Literal["interactive", "batch"]
ModelKind = Literal["generate", "embed", "rank"]
"""What a model's answers are: text, a vector for each text, or a score for each pair of texts."""


class EngineParams(msgspec.Struct, frozen=True):
    """How to load one model. `context` is tokens per sequence; 0 = the model's own, at most what
    fits. `parallel` is how many sequences decode at once; `cells` is the whole KV cache in tokens,
    0 = parallel * context (fewer only in the unified layout). 0 threads = every core. Unless
    `repack` is False, weights may be laid out anew for kernels of this CPU.
    `max_step_ms` bounds a prompt chunk while others decode. `host_cache_mb` is the worker's, over
    all its models. `max_waiting` requests wait at most, each for `max_wait_s` at most."""

    context: int = 0
    parallel: int = 4
    batch: int = 2048
    threads: int = 0
    gpu_layers: int = -1
    kv: Literal["auto", "unified", "partitioned"] = "auto"
    cells: int = 0
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    mmap: bool | None = None
    mlock: bool = False
    repack: bool | None = None
    max_step_ms: float = 600.0
    host_cache_mb: int = 1024
    max_waiting: int = 256
    max_wait_s: float = 600.0


class ModelInfo(msgspec.Struct, frozen=True):
    """What a worker learned by loading a model. `context` is tokens per sequence. `metadata` holds
    the GGUF's string-valued keys the parent needs (general.*, tokenizer.chat_template*).
    `memory_bytes` is measured: what the process or device holds more than before the load (on a
    CPU its own memory and the mapped weights it computes with). `weights_bytes`, `kv_bytes` and
    `compute_bytes` are the sizes of llama.cpp's buffers, over all devices.
    `path` is the Load's: a chat template may lie beside the file. `files` tells what was read from
    any other: of each part device, inode, bytes and when it was last written (ns)."""

    architecture: str
    context: int
    context_train: int
    parallel: int
    vocab_size: int
    parameters: int
    file_bytes: int
    memory_bytes: int
    load_s: float
    bos: str = ""
    eos: str = ""
    reasoning: tuple[str, str] | None = None
    metadata: dict[str, str] = {}
    path: str = ""
    kv: KvLayout = "partitioned"
    kv_type: KvType = "f16"
    cells: int = 0
    kind: ModelKind = "generate"
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    files: tuple[tuple[int, int, int, int], ...] = ()


# parent → worker


class _Command(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Load(_Command, frozen=True):
    op: int
    model: str
    path: str
    params: EngineParams


class Unload(_Command, frozen=True):
    op: int
    model: str


class Generate(_Command, frozen=True):
    """`prompt` is text, whose special tokens are parsed, or token ids, taken as they are.
    `max_tokens` None = to the context's end. `stop` strings never reach the client, not even in
    part. `suffix`: fill in between the prompt and it, by the model's fill-in-the-middle tokens.
    `caller`: requests of one caller wait for each other before they wait for another's.
    `is_raw`: no token is a reasoning marker; all text is content, and stops are looked for in it
    all. A `constraint` holds for the content, from where reasoning has ended. `top_logprobs`: tell
    each token's log-probability, and those of so many likeliest; None = neither.
    `max_thinking_tokens`: so many tokens of reasoning at most, over the whole answer, then it is
    closed; None = no limit."""

    request: int
    model: str
    prompt: str | list[int]
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    suffix: str | None = None
    caller: str = ""
    priority: Priority = "interactive"
    is_raw: bool = False
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    max_thinking_tokens: int | None = None


class Embed(_Command, frozen=True):
    """A vector for each input: text, or token ids, taken as they are. `dimensions`: the first so
    many numbers of each, at length 1 again."""

    request: int
    model: str
    inputs: list[str | list[int]]
    dimensions: int | None = None


class Rank(_Command, frozen=True):
    """How well each document answers the query."""

    request: int
    model: str
    query: str
    documents: list[str]


class Tokenize(_Command, frozen=True):
    """`ends`: with the special tokens that the model wants at a text's ends (all), or as Generate
    does it with a prompt: one BOS where the model wants it, unless it is there. `parse_special`:
    special tokens written in the text are read as such."""

    request: int
    model: str
    text: str
    ends: Literal["none", "all", "prompt"] = "none"
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(_Command, frozen=True):
    """`ids` is packed as in Tokens."""

    request: int
    model: str
    ids: bytes


Ask = Generate | Embed | Rank | Tokenize | Detokenize
"""What a client's request becomes. Each is answered by Steps, to the last of which belongs its
Finished or Failed."""


class Cancel(_Command, frozen=True):
    request: int


class Pause(_Command, frozen=True):
    """Nobody takes what this generation says: compute no more of it until its Resume. What was on
    its way is still sent."""

    request: int


class Resume(_Command, frozen=True):
    request: int


class Shutdown(_Command, frozen=True):
    """Stop at once; the parent has already ended or drained what was running. `save_to`: a folder
    that takes the cached sequences first, for the next worker to start with."""

    save_to: str = ""


Command = Load | Unload | Ask | Cancel | Pause | Resume | Shutdown

# worker → parent


class _Report(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Hello(_Report, frozen=True):
    pid: int
    llama_cpp: str
    system: str


class LoadProgress(_Report, frozen=True):
    op: int
    fraction: float


class Loaded(_Report, frozen=True):
    op: int
    model: str
    info: ModelInfo


class LoadFailed(_Report, frozen=True):
    op: int
    model: str
    fault: Fault


class Unloaded(_Report, frozen=True):
    """Answers an Unload, whether or not the model was there."""

    op: int
    model: str


Channel = Literal["content", "reasoning", "marker"]
FinishReason = Literal["stop", "length", "cancelled"]


CacheSource = Literal["none", "live", "cache", "host"]


class Started(msgspec.Struct, frozen=True, array_like=True):
    """The request has a sequence and its prompt is being computed; `cached` tokens need not be.
    They came from a sequence that runs (live), from one that has ended (cache) or from host memory
    (host). `miss`: why none did."""

    request: int
    prompt: int
    cached: int
    source: CacheSource = "none"
    miss: str = ""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token's bytes and the natural logarithm of its probability, as the model alone saw it;
    `top`: the same for the likeliest tokens there, best first."""

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]] = []


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """Text that became complete in a step. A `marker` is the text of a reasoning marker itself, or
    the whole header of a message. `scores`, where they were asked for, are of the tokens that begin
    in this text, and at the end also of those that made no text."""

    request: int
    text: str
    channel: Channel = "content"
    scores: list[TokenScore] = []


class _Result(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Numbers are packed little-endian: a million of them cost a reader one copy, not a million
    objects while its event loop waits."""


class Vectors(_Result, frozen=True):
    """Answers Embed: rows of `width` float32 each, in the inputs' order, each of length 1."""

    data: bytes
    width: int


class Scores(_Result, frozen=True):
    """Answers Rank: from 0 to 1, in the documents' order."""

    values: list[float]


class Tokens(_Result, frozen=True):
    """Answers Tokenize: `ids` are int32; `pieces` the bytes of each different id, if asked for."""

    ids: bytes
    pieces: dict[int, bytes] | None = None


class Text(_Result, frozen=True):
    """Answers Detokenize: bytes that may begin or end inside a character."""

    data: bytes


Result = Vectors | Scores | Tokens | Text


class Computed(msgspec.Struct, frozen=True, array_like=True):
    """The whole answer of a request that is not a generation."""

    request: int
    result: Result


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """`stop`: the stop string that ended the answer, if one did."""

    request: int
    reason: FinishReason
    usage: Usage
    stop: str | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """The request ends here with a fault; its sequence is already free."""

    request: int
    fault: Fault


StepEvent = Started | Delta | Computed | Finished | Failed


class Step(_Report, frozen=True):
    """What one engine step produced for all requests: per request, in this order, its Started,
    its Deltas in text order or its Computed, then its Finished or Failed (each in at most one of
    the two)."""

    model: str
    started: list[Started] = []
    deltas: list[Delta] = []
    finished: list[Finished] = []
    failed: list[Failed] = []
    computed: list[Computed] = []


class ModelLoad(msgspec.Struct, frozen=True, array_like=True):
    """One model's load at a moment. `step_s`: how long the step in progress has been running.
    Of `cells` KV cells `cells_running` hold running sequences, `cells_cached` ended ones.
    `host_bytes`: parked in host memory. Of the `running`, `paused` compute nothing.
    `generated`: tokens, since the load."""

    model: str
    steps: int
    generated: int
    running: int
    waiting: int
    step_s: float
    cells: int = 0
    cells_running: int = 0
    cells_cached: int = 0
    host_bytes: int = 0
    paused: int = 0


class Progress(_Report, frozen=True):
    """Sent once a second by the control thread, which never waits for an engine. `shares_cores`:
    a thread that computes had to wait for a core, lately, for a third of the time it wanted one."""

    rss_bytes: int
    models: list[ModelLoad]
    shares_cores: bool = False


Report = Hello | LoadProgress | Loaded | LoadFailed | Unloaded | Step | Progress

M = TypeVar("M", bound=Command | Report)


def pack_ids(ids: list[int]) -> bytes:
    """Token ids as Tokens and Detokenize carry them. Raises struct.error beyond 32 bits."""
    return struct.pack(f"<{len(ids)}i", *ids)


_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


def encode(message: Command | Report) -> bytes:
    """One frame. Raises ValueError beyond MAX_FRAME_BYTES."""
    buffer = bytearray(4)
    _encoder.encode_into(message, buffer, 4)
    size = len(buffer) - 4
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
    _LENGTH.pack_into(buffer, 0, size)
    return bytes(buffer)


class Reader(Generic[M]):
    """Bytes in, messages out, from chunks cut anywhere.

    `Reader(Report)` in the parent, `Reader(Command)` in the worker.
    Raises ValueError on an impossible length and msgspec.DecodeError on a frame that is no
    message; the stream cannot be read on after either.
    """

    def __init__(self, messages: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(messages)
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[M]:
        """Yield every message that `chunk` completes."""
        buffer = self._buffer
        buffer += chunk
        start = 0
        try:
            while len(buffer) - start >= 4:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > MAX_FRAME_BYTES:
                    raise ValueError(f"frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
                end = start + 4 + size
                if len(buffer) < end:
                    return
                message = self._decoder.decode(bytes(buffer[start + 4 : end]))
                start = end
                yield message
        finally:
            del buffer[:start]
