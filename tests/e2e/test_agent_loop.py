"""An agent at work: thirty turns with tools through the official SDK, in one conversation.

The tools are real: they list, read and write in a folder of their own, add, and look the weather
up. What the model asks for is run and sent back until it answers, as agents do.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.client import TINY
from tests.e2e.conftest import Stack

MOST_STEPS = 6  # requests per turn; an agent that needs more runs in circles
FILES = {
    "notes.txt": "meet the doctor at nine",
    "docs/plan.md": "fix the old bridge first",
    "docs/rules.md": "never push on a friday",
    "src/main.py": "count the red birds",
    "src/worker.py": "start the small engine",
}
WEATHER = {
    "Oslo": {"temp_c": -7, "sky": "snow"},
    "Lisbon": {"temp_c": 24, "sky": "sunny"},
    "Nairobi": {"temp_c": 19, "sky": "cloudy"},
    "Bergen": {"temp_c": 6, "sky": "rain"},
}


@dataclass(frozen=True)
class Call:
    """What the model is to call, and in which step of its turn."""

    step: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the user asks, the calls that takes, and what the answer has to say."""

    ask: str
    says: tuple[str, ...]
    calls: tuple[Call, ...] = ()


def _turn(ask: str, *says: str, **called: Any) -> Turn:
    return Turn(ask, says, tuple(Call(0, name, arguments) for name, arguments in called.items()))


TURNS = (
    _turn("Hello!", "Hello"),
    _turn("List the files in docs", "plan.md", "rules.md", list_dir={"path": "docs"}),
    _turn("Read the file docs/plan.md", FILES["docs/plan.md"], read_file={"path": "docs/plan.md"}),
    _turn("Add 412 and 77.", "489", add={"a": 412, "b": 77}),
    _turn("What is the weather in Oslo?", "-7", "snow", "Oslo", get_weather={"city": "Oslo"}),
    _turn("What is the capital of Norway?", "Oslo"),
    Turn(
        "What is the weather in Lisbon and in Nairobi?",
        ("24", "sunny", "19", "cloudy"),
        (
            Call(0, "get_weather", {"city": "Lisbon"}),
            Call(0, "get_weather", {"city": "Nairobi"}),
        ),
    ),
    _turn("Read the file src/main.py", FILES["src/main.py"], read_file={"path": "src/main.py"}),
    _turn("Read the file src/lost.py", "failed", read_file={"path": "src/lost.py"}),
    _turn("Add 1289 and 3064.", "4353", add={"a": 1289, "b": 3064}),
    Turn(
        "Read docs/rules.md and write it to backup/friday.txt",
        ("backup/friday.txt",),
        (
            Call(0, "read_file", {"path": "docs/rules.md"}),
            Call(1, "write_file", {"path": "backup/friday.txt", "content": FILES["docs/rules.md"]}),
        ),
    ),
    _turn("List the files in backup", "friday.txt", list_dir={"path": "backup"}),
    _turn("Read the file backup/friday.txt", "never push", read_file={"path": "backup/friday.txt"}),
    _turn("What is the capital of Japan?", "Tokyo"),
    _turn("How is the weather in Bergen?", "6", "rain", get_weather={"city": "Bergen"}),
    _turn("Add 90 and 5031.", "5121", add={"a": 90, "b": 5031}),
    _turn(
        'Write "the cake is ready" to notes.txt',
        "notes.txt",
        write_file={"path": "notes.txt", "content": "the cake is ready"},
    ),
    _turn("Read the file notes.txt", "the cake is ready", read_file={"path": "notes.txt"}),
    _turn("Who are you?", "cortex/tiny"),
    _turn("List the files in docs", "plan.md", "rules.md", list_dir={"path": "docs"}),
    _turn("Read the file src/worker.py", "small engine", read_file={"path": "src/worker.py"}),
    Turn(
        "Compute 58 + 233 and write it to sums/total.txt",
        ("sums/total.txt",),
        (
            Call(0, "add", {"a": 58, "b": 233}),
            Call(1, "write_file", {"path": "sums/total.txt", "content": "291"}),
        ),
    ),
    _turn("Read the file sums/total.txt", "291", read_file={"path": "sums/total.txt"}),
    _turn("What is the weather in Oslo?", "-7", "snow", "Oslo", get_weather={"city": "Oslo"}),
    _turn("Read the file docs/plan.md", "old bridge", read_file={"path": "docs/plan.md"}),
    _turn("What is the capital of Egypt?", "Cairo"),
    _turn("What is the weather in Atlantis?", "failed", get_weather={"city": "Atlantis"}),
    _turn("Thanks!", "welcome"),
    _turn("Read the file notes.txt", "the cake is ready", read_file={"path": "notes.txt"}),
    _turn("Add 4846 and 608.", "5454", add={"a": 4846, "b": 608}),
)


class Workshop:
    """The tools, and the folder they work in."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name, text in FILES.items():
            self.write_file(name, text)

    def list_dir(self, path: str) -> str:
        return "\n".join(sorted(entry.name for entry in self._inside(path).iterdir()))

    def read_file(self, path: str) -> str:
        return self._inside(path).read_text(encoding="utf-8")

    def write_file(self, path: str, content: str) -> str:
        target = self._inside(path)
        target.parent.mkdir(exist_ok=True)
        target.write_text(content, encoding="utf-8")
        return "ok"

    def add(self, a: float, b: float) -> str:
        return str(a + b)

    def get_weather(self, city: str) -> str:
        return json.dumps(WEATHER[city])

    def run(self, name: str, arguments: str) -> str:
        """What the tool returns, or the error as agents report it."""
        try:
            return getattr(self, name)(**json.loads(arguments))
        except OSError as error:
            return f"Error: {error.strerror}"
        except KeyError:
            return "Error: not found"
        except (AttributeError, TypeError, ValueError) as error:
            # No such tool, other arguments, or none that are JSON: the test says which turn it was.
            return f"Error: {error}"

    def _inside(self, path: str) -> Path:
        """The path in the folder, which a wrong call must not leave."""
        target = (self.root / path).resolve()
        if not target.is_relative_to(self.root):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return target


def _tool(name: str, about: str, **arguments: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": kind} for argument, kind in arguments.items()},
        "required": list(arguments),
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS: list[Any] = [
    _tool("get_weather", "Get the current weather for a city.", city="string"),
    _tool("read_file", "Read a file and return its content.", path="string"),
    _tool("write_file", "Write text to a file.", path="string", content="string"),
    _tool("add", "Add two numbers.", a="number", b="number"),
    _tool("list_dir", "List the files in a directory.", path="string"),
]


@dataclass
class Step:
    """One request of the agent: what came back."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def count(self, usage: Any) -> None:
        self.prompt_tokens = usage.prompt_tokens
        self.cached_tokens = usage.prompt_tokens_details.cached_tokens


def _whole(answer: Any) -> Step:
    (choice,) = answer.choices
    step = Step(
        choice.message.content or "",
        getattr(choice.message, "reasoning_content", None) or "",
        choice.finish_reason,
        [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or ()
        ],
    )
    step.count(answer.usage)
    return step


def _streamed(chunks: Iterable[Any]) -> Step:
    step = Step()
    for chunk in chunks:
        for choice in chunk.choices:
            step.content += choice.delta.content or ""
            step.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            step.finish_reason = choice.finish_reason or step.finish_reason
            for part in choice.delta.tool_calls or ():
                if part.index == len(step.calls):
                    step.calls.append({"id": "", "name": "", "arguments": ""})
                call = step.calls[part.index]
                call["id"] += part.id or ""
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
        if chunk.usage:
            step.count(chunk.usage)
    return step


class Agent:
    """Asks, runs what is called, and goes on until the model answers."""

    def __init__(self, client: openai.OpenAI, workshop: Workshop, thinks: bool) -> None:
        self.client = client
        self.workshop = workshop
        self.thinks = thinks
        self.messages: list[Any] = [
            {"role": "system", "content": "You are a careful agent with access to tools."}
        ]

    def ask(self, text: str, streams: bool) -> list[Step]:
        """The steps of one turn; the last one is the answer."""
        self.messages.append({"role": "user", "content": text})
        steps: list[Step] = []
        while not steps or steps[-1].calls:
            assert len(steps) < MOST_STEPS, steps
            steps.append(self._step(streams))
        return steps

    def _step(self, streams: bool) -> Step:
        parameters: dict[str, Any] = {
            "model": TINY,
            "messages": self.messages,
            "tools": TOOLS,
            "temperature": 0,
            "max_tokens": 400,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": self.thinks}},
        }
        complete = self.client.chat.completions.create
        if streams:
            parameters |= {"stream": True, "stream_options": {"include_usage": True}}
            step = _streamed(complete(**parameters))
            calls = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in step.calls
            ]
            message = {"role": "assistant", "content": step.content}
            self.messages.append(message | ({"tool_calls": calls} if calls else {}))
        else:
            answer = complete(**parameters)
            step = _whole(answer)
            # The SDK's own object goes back as it came, thoughts included.
            self.messages.append(answer.choices[0].message)
        for call in step.calls:
            result = self.workshop.run(call["name"], call["arguments"])
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return step


@dataclass(frozen=True)
class Run:
    """One conversation: the steps of each turn, and the messages at its end."""

    agent: Agent
    turns: list[list[Step]]

    @property
    def steps(self) -> list[Step]:
        return [step for turn in self.turns for step in turn]


@dataclass(frozen=True)
class Way:
    """Which server is asked, and how."""

    streams: bool
    thinks: bool
    through_gateway: bool = False

    def __str__(self) -> str:
        return "-".join(
            (
                "gateway" if self.through_gateway else "neuron",
                "stream" if self.streams else "whole",
                "thinking" if self.thinks else "not-thinking",
            )
        )


WAYS = (
    Way(streams=False, thinks=False),
    Way(streams=False, thinks=True),
    Way(streams=True, thinks=False),
    Way(streams=True, thinks=True),
    Way(streams=True, thinks=True, through_gateway=True),
)


@pytest.fixture(scope="module", params=WAYS, ids=str)
def run(
    request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    way: Way = request.param
    url = stack.url if way.through_gateway else stack.neuron.url
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        agent = Agent(client, workshop, way.thinks)
        yield Run(agent, [agent.ask(turn.ask, way.streams) for turn in TURNS])


def _arguments(text: str) -> Any:
    """The arguments of a call, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_it_is_thirty_turns():
    assert len(TURNS) == 30


def test_every_turn_makes_the_right_calls_and_no_other(run: Run):
    wrong = []
    for turn, steps in zip(TURNS, run.turns, strict=True):
        made = tuple(
            Call(index, call["name"], _arguments(call["arguments"]))
            for index, step in enumerate(steps)
            for call in step.calls
        )
        if made != turn.calls:
            wrong.append((turn.ask, made))
    assert wrong == []


def test_every_turn_ends_with_an_answer_from_the_results(run: Run):
    wrong = [
        (turn.ask, steps[-1].content)
        for turn, steps in zip(TURNS, run.turns, strict=True)
        if not all(part in steps[-1].content for part in turn.says)
    ]
    assert wrong == []
    assert run.turns[-1][-1].content == "The sum is 5454."


def test_what_the_model_had_written_is_on_the_disk(run: Run):
    workshop = run.agent.workshop
    assert workshop.read_file("backup/friday.txt") == FILES["docs/rules.md"]
    assert workshop.read_file("notes.txt") == "the cake is ready"
    assert workshop.read_file("sums/total.txt") == "291"


def test_a_step_that_calls_says_so_and_says_nothing_else(run: Run):
    for step in run.steps:
        assert step.finish_reason == ("tool_calls" if step.calls else "stop")
        assert bool(step.content) is not bool(step.calls)


def test_thoughts_are_there_exactly_where_they_were_asked_for(run: Run):
    assert {bool(step.reasoning) for step in run.steps} == {run.agent.thinks}
    assert not any("think>" in step.content + step.reasoning for step in run.steps)


def test_no_two_calls_of_the_conversation_share_an_id(run: Run):
    ids = [call["id"] for step in run.steps for call in step.calls]
    assert len(ids) == len(set(ids)) == sum(len(turn.calls) for turn in TURNS)
    assert all(ids)


def test_a_step_computes_only_what_is_new_to_the_conversation(run: Run):
    # The next prompt goes on from this one, less the thoughts that the template leaves out; the
    # part before the last question is always the same.
    starts = [turn[0].prompt_tokens for turn in run.turns]
    for before, turn in zip(starts, run.turns[1:], strict=False):
        assert all(step.cached_tokens >= before - 64 for step in turn)
