"""What a chat costs beside the model: its prompt, the reading of its answer, and its constraints.

    python -m tests.bench.chat

Times are of the CPU, on one thread. A request is decoded, checked, rendered and made ready for the
worker, as the neuron does it; a token's text is read for reasoning and calls and written as an
event. No model is run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.wire import ipc
from neuron.chat.answer import Answer
from neuron.chat.chunks import ChunkEncoder
from neuron.chat.reasoning import SplitReasoning
from neuron.chat.tool_calls import reader_for
from neuron.choices import WorkerStream
from neuron.generation import ChatService
from tests.bench import constraints

TURNS = 50
ROUNDS = 100
TEMPLATES = Path(__file__).parents[1] / "unit" / "chat" / "templates"
SHOWN = ("qwen3", "qwen_coder", "llama3", "mistral", "deepseek", "glm", "harmony")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{n}",
            "description": "Does something with a path and a number, and says what came of it.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["path"],
            },
        },
    }
    for n in range(8)
]
WORDS = "The folder has four files, and the second of them is the one that was asked about."
ARGUMENTS = json.dumps({"path": "/srv/data/reports/2024", "count": 12})


def conversation() -> list[dict[str, Any]]:
    """Of 50 turns; every fifth answer looks something up first."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": WORDS * 10}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{turn}: {WORDS * 2}"})
        if turn % 5 == 0:
            called = {"name": f"tool_{turn % 8}", "arguments": ARGUMENTS}
            id_ = f"call{turn:05}"  # nine letters and digits, which every template takes
            call = {"id": id_, "type": "function", "function": called}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": id_, "content": WORDS * 3})
        messages.append({"role": "assistant", "content": WORDS * 4})
    return [*messages, {"role": "user", "content": "And now?"}]


class OneModel:
    """A registry of one model, with a chat template beside it."""

    def __init__(self, template: str) -> None:
        self._info = ipc.ModelInfo(
            architecture="any",
            context=131_072,
            context_train=131_072,
            parallel=1,
            vocab_size=1,
            parameters=1,
            file_bytes=1,
            memory_bytes=1,
            load_s=0.0,
            bos="<s>",
            eos="</s>",
            metadata={"tokenizer.chat_template": template},
        )

    def info(self, model: str) -> ipc.ModelInfo:
        return self._info

    def sampling_defaults(self, model: str) -> Mapping[str, Any]:
        return {}

    def open(self, ask: ipc.Ask) -> WorkerStream:
        raise NotImplementedError("no model is run")


def quartiles(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"{min(times):9.2f}{cuts[49]:9.2f}{cuts[89]:9.2f}"


def timed(work: Callable[[], Any]) -> list[float]:
    """Seconds of each round."""
    work()
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times


def requests() -> None:
    messages = conversation()
    body = json.dumps({"model": "m", "messages": messages, "tools": TOOLS}).encode()
    loop = asyncio.new_event_loop()
    print(f"a request of {TURNS} turns, {len(messages)} messages, {len(body) // 1024} KiB (ms)\n")
    print(f"{'template':16}{'least':>9}{'median':>9}{'p90':>9}{'prompt':>12}")
    for name in SHOWN:
        template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
        service = ChatService(OneModel(template), NeuronConfig())

        def render(service: ChatService = service) -> Any:
            request, _ = decode_chat_request(body)
            return loop.run_until_complete(service.render(request))

        size = len(render().prompt.text)
        times = [1000 * each for each in timed(render)]
        print(f"{name:16}{quartiles(times)}{size // 1024:8} KiB")
    loop.close()


ANSWERS: dict[str, tuple[str, list[tuple[ipc.Channel, str]]]] = {
    "plain text": ("", [("content", WORDS * 20)]),
    "text, tools offered": ("<tool_call>", [("content", WORDS * 20)]),
    "reasoning": ("", [("marker", "<think>"), ("reasoning", WORDS * 20), ("marker", "</think>")]),
    "a call, JSON": (
        "<tool_call>",
        [
            ("content", '<tool_call>\n{"name": "tool_1", "arguments": {"path": "'),
            ("content", WORDS * 20),
            ("content", '"}}\n</tool_call>'),
        ],
    ),
    "a call, keyed": (
        "<tool_call><function=f><parameter=p>",
        [
            ("content", "<tool_call>\n<function=tool_1>\n<parameter=path>\n"),
            ("content", WORDS * 20),
            ("content", "\n</parameter>\n</function>\n</tool_call>"),
        ],
    ),
    "a call, addressed": (
        "<|channel|><|message|>",
        [
            ("marker", "<|channel|>commentary to=functions.tool_1<|message|>"),
            ("content", '{"path": "'),
            ("content", WORDS * 20),
            ("content", '"}'),
        ],
    ),
}


def tokens(parts: list[tuple[ipc.Channel, str]]) -> Iterator[ipc.Delta]:
    """A delta for every four characters or so, as a vocabulary of 150,000 writes English."""
    for channel, text in parts:
        size = len(text) if channel == "marker" else 4
        for at in range(0, len(text), size):
            yield ipc.Delta(1, text[at : at + size], channel)


def answers() -> None:
    print("\nreading a token's text, and writing its event (µs)\n")
    print(f"{'answer':24}{'least':>9}{'median':>9}{'p90':>9}{'tokens':>9}")
    for title, (template, parts) in ANSWERS.items():
        deltas = list(tokens(parts))

        def read(template: str = template, deltas: list[ipc.Delta] = deltas) -> None:
            answer = Answer(SplitReasoning(), reader_for(template, TOOLS if template else ()))
            encoder = ChunkEncoder("chatcmpl-1", 1, "m")
            for delta in deltas:
                encoder.pieces(answer.feed([delta]))

        times = [1e6 * each / len(deltas) for each in timed(read)]
        print(f"{title:24}{quartiles(times)}{len(deltas):9}")


def main() -> None:
    requests()
    answers()
    print("\na constrained token\n")
    constraints.main()


if __name__ == "__main__":
    main()
