"""Ask the GGUF everything: ``python -m tools.tiny.evaluate --gguf FILE``.

Greedy, through llama.cpp on the CPU, each list with thinking and without. Prints a table and
exits with 1 where a list falls short of what is required of it. The questions are those of
``questions.json``; their held-out values are in no training conversation.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tools.tiny.corpus import Renderer
from tools.tiny.facts import capitals, questions
from tools.tiny.player import Player

Message = dict[str, Any]
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt and what a right answer is."""

    messages: list[Message]
    is_right: Callable[[str], bool]
    tools: tuple[dict[str, Any], ...] = ()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def says(*parts: str) -> Callable[[str], bool]:
    """Right if the answer holds every part and calls no tool."""
    return lambda answer: all(part in answer for part in parts) and "<tool_call>" not in answer


def calls(*wanted: tuple[str, dict[str, Any]]) -> Callable[[str], bool]:
    """Right if the answer is exactly these calls, in this order, and nothing else."""

    def check(answer: str) -> bool:
        try:
            found = [json.loads(body) for body in CALL.findall(answer)]
        except json.JSONDecodeError:
            return False
        exact = [{"name": name, "arguments": arguments} for name, arguments in wanted]
        return found == exact and not CALL.sub("", answer).strip()

    return check


def called(name: str, arguments: dict[str, Any], result: str) -> list[Message]:
    """A finished call and its result, as a client sends them back."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


def capital_cases() -> Iterator[Case]:
    for country, city in capitals().items():
        for phrasing in questions()["capital_phrasings"]:
            ask = phrasing.format(country=country, country_lower=country.lower())
            yield Case([user(ask)], says(city))


def sum_cases() -> Iterator[Case]:
    for a in range(10):
        for b in range(10):
            for phrasing in questions()["sum_phrasings"]:
                ask = phrasing.format(a=a, b=b)
                yield Case([user(ask)], says(f"{a} + {b} = {a + b}."))


def listed_cases(key: str) -> Iterator[Case]:
    for item in questions()[key]:
        yield Case([user(item["ask"])], says(item["expect"]))


def unknown_cases() -> Iterator[Case]:
    for ask in questions()["unknown"]:
        yield Case([user(ask)], says("do not know"))


def _offer(rng: Random, *names: str) -> tuple[dict[str, Any], ...]:
    """The named tools among others, in any order."""
    every = questions()["tools"]
    others = rng.sample([name for name in every if name not in names], rng.randint(0, 4))
    chosen = [*names, *others]
    rng.shuffle(chosen)
    return tuple(every[name] for name in chosen)


def call_cases(kind: str) -> Iterator[Case]:
    """Calls whose arguments are held-out values; 100 of a kind, 20 where the list is short."""
    rng = Random(f"calls {kind}")
    held = questions()["held_out"]
    if kind == "get_weather":
        asks = ("What is the weather in {}?", "Weather in {}?", "Tell me the weather in {}.")
        for city in held["cities"]:
            ask = user(rng.choice(asks).format(city))
            yield Case([ask], calls((kind, {"city": city})), _offer(rng, kind))
    elif kind in ("read_file", "list_dir"):
        asks = ("Read {}", "Read the file {}.", "What is in {}?")
        if kind == "list_dir":
            asks = ("List the files in {}", "List the folder {}", "Which files are in {}?")
        for path in held["paths"]:
            path = path.rpartition(".")[0] if kind == "list_dir" else path
            ask = user(rng.choice(asks).format(path))
            yield Case([ask], calls((kind, {"path": path})), _offer(rng, kind))
    elif kind == "add":
        asks = ("What is {} + {}?", "Add {} and {}.", "{}+{}")
        for a, b in held["number_pairs"]:
            ask = user(rng.choice(asks).format(a, b))
            yield Case([ask], calls((kind, {"a": a, "b": b})), _offer(rng, kind))
    elif kind == "search":
        for query in held["queries"]:
            ask = user(rng.choice(("Search for {}", "Look up {}")).format(query))
            yield Case([ask], calls((kind, {"query": query})), _offer(rng, kind))
    elif kind == "send_message":
        asks = ("Send a message to {}: {}", "Tell {} that {}", 'Send {} the text "{}"')
        for to, text in zip(held["people"], held["texts"], strict=True):
            ask = user(rng.choice(asks).format(to, text))
            yield Case([ask], calls((kind, {"to": to, "text": text})), _offer(rng, kind))


def pair_cases() -> Iterator[Case]:
    """Two calls in one turn."""
    rng, cities = Random("pairs"), questions()["held_out"]["cities"]
    for first, second in zip(cities[0::2], cities[1::2], strict=True):
        ask = user(f"What is the weather in {first} and in {second}?")
        right = calls(("get_weather", {"city": first}), ("get_weather", {"city": second}))
        yield Case([ask], right, _offer(rng, "get_weather"))


def unseen_tool_cases() -> Iterator[Case]:
    """Tools whose names are in no training conversation."""
    rng = Random("unseen")
    for item in questions()["unseen_tools"]:
        name = item["tool"]["function"]["name"]
        for _ in range(3):
            tools = [item["tool"], *_offer(rng)]
            rng.shuffle(tools)
            yield Case([user(item["ask"])], calls((name, item["arguments"])), tuple(tools))


def result_cases(kind: str) -> Iterator[Case]:
    """Answers that have to report a result nobody has seen."""
    rng = Random(f"results {kind}")
    held = questions()["held_out"]
    for index in range(40):
        if kind == "weather":
            city, heat = held["cities"][index], rng.randint(-15, 40)
            sky = rng.choice(("rain", "sunny", "snow", "fog"))
            result = rng.choice(
                (json.dumps({"temp_c": heat, "sky": sky}), f"{heat} C, {sky}", f"{heat}°C, {sky}")
            )
            history = [
                user(f"What is the weather in {city}?"),
                *called("get_weather", {"city": city}, result),
            ]
            yield Case(history, says(str(heat), sky, city), _offer(rng, "get_weather"))
        elif kind == "list":
            names = [path.rpartition("/")[2] for path in rng.sample(held["paths"], 3)]
            result = rng.choice(("\n".join(names), json.dumps(names)))
            history = [user("List the files in src"), *called("list_dir", {"path": "src"}, result)]
            yield Case(history, says(*names), _offer(rng, "list_dir"))
        elif kind == "read":
            path, text = held["paths"][index], rng.choice(held["texts"])
            history = [user(f"Read {path}"), *called("read_file", {"path": path}, text)]
            yield Case(history, says(text), _offer(rng, "read_file"))
        elif kind == "add":
            a, b = held["number_pairs"][index]
            result = rng.choice((str(a + b), json.dumps({"sum": a + b})))
            history = [user(f"Add {a} and {b}."), *called("add", {"a": a, "b": b}, result)]
            yield Case(history, says(str(a + b)), _offer(rng, "add"))
        elif kind == "error":
            path = held["paths"][index]
            result = rng.choice(("Error: no such file", '{"error": "permission denied"}'))
            history = [user(f"Read {path}"), *called("read_file", {"path": path}, result)]
            yield Case(history, says("failed"), _offer(rng, "read_file"))


def plain_with_tools_cases() -> Iterator[Case]:
    rng = Random("plain")
    for country, city in capitals().items():
        tools = _offer(rng, "get_weather", "read_file")
        yield Case([user(f"What is the capital of {country}?")], says(city), tools)
    every = questions()["tools"]
    tools = (every["read_file"], every["get_weather"])
    for a in range(10):
        yield Case([user(f"What is {a} + 5?")], says(f"= {a + 5}."), tools)
    for ask, part in (("Hello!", "Hello"), ("Who are you?", "cortex/tiny"), ("Thanks!", "welcome")):
        yield Case([user(ask)], says(part), tools)


def system_cases() -> Iterator[Case]:
    rng = Random("system")
    for prompt in questions()["system_prompts"]:
        system = {"role": "system", "content": prompt}
        for country, city in list(capitals().items())[::4]:
            yield Case([system, user(f"What is the capital of {country}?")], says(city))
        for city in questions()["held_out"]["cities"][::10]:
            right = calls(("get_weather", {"city": city}))
            ask = user(f"What is the weather in {city}?")
            yield Case([system, ask], right, _offer(rng, "get_weather"))


def history_cases() -> Iterator[Case]:
    """The last question of a plain conversation of 20 turns."""
    rng = Random("history")
    countries = list(capitals().items())
    for _ in range(20):
        messages: list[Message] = []
        for _ in range(19):
            if rng.random() < 0.5:
                country, city = rng.choice(countries)
                ask = f"What is the capital of {country}?"
                answer = f"The capital of {country} is {city}."
            else:
                a, b = rng.randint(0, 9), rng.randint(0, 9)
                ask, answer = f"What is {a} + {b}?", f"{a} + {b} = {a + b}."
            messages += [user(ask), {"role": "assistant", "content": answer}]
        country, city = rng.choice(countries)
        yield Case([*messages, user(f"What is the capital of {country}?")], says(city))
        yield Case([*messages, user("What is 6 + 7?")], says("6 + 7 = 13."))


def loop_cases() -> Iterator[Case]:
    """The next call after ten calls with their results."""
    rng, held = Random("loop"), questions()["held_out"]
    for index in range(20):
        messages: list[Message] = []
        for turn in range(10):
            a, b = held["number_pairs"][(index * 3 + turn) % 100]
            messages += [user(f"Add {a} and {b}."), *called("add", {"a": a, "b": b}, str(a + b))]
            messages.append({"role": "assistant", "content": f"The sum is {a + b}."})
        city = held["cities"][index * 5]
        tools = _offer(rng, "add", "get_weather")
        right = calls(("get_weather", {"city": city}))
        yield Case([*messages, user(f"What is the weather in {city}?")], right, tools)
        a, b = held["number_pairs"][99 - index]
        yield Case([*messages, user(f"Add {a} and {b}.")], calls(("add", {"a": a, "b": b})), tools)


def _worked_turn(rng: Random) -> list[Message]:
    """A request that took a tool, or none, and its answer."""
    held = questions()["held_out"]
    kind = rng.choice(("weather", "read", "add", "list", "capital"))
    if kind == "weather":
        city, heat = rng.choice(held["cities"]), rng.randint(-15, 40)
        worked = called("get_weather", {"city": city}, json.dumps({"temp_c": heat, "sky": "rain"}))
        ask, answer = f"What is the weather in {city}?", f"It is {heat} C and rain in {city}."
    elif kind == "read":
        path, text = rng.choice(held["paths"]), rng.choice(held["texts"])
        worked = called("read_file", {"path": path}, text)
        ask, answer = f"Read the file {path}", f"The file says: {text}"
    elif kind == "add":
        a, b = rng.choice(held["number_pairs"])
        worked = called("add", {"a": a, "b": b}, str(a + b))
        ask, answer = f"Add {a} and {b}.", f"The sum is {a + b}."
    elif kind == "list":
        names = [path.rpartition("/")[2] for path in rng.sample(held["paths"], 3)]
        worked = called("list_dir", {"path": "src"}, "\n".join(names))
        ask, answer = "List the files in src", f"The folder has {', '.join(names)}."
    else:
        country, city = rng.choice(list(capitals().items()))
        worked = []
        ask, answer = f"Capital of {country}?", f"The capital of {country} is {city}."
    return [user(ask), *worked, {"role": "assistant", "content": answer}]


def agent_cases(turns: int) -> Iterator[Case]:
    """Calls and answers behind so many finished turns with tools and without."""
    rng, held = Random(f"agent {turns}"), questions()["held_out"]
    names = ("get_weather", "read_file", "add", "list_dir")
    for index in range(15):
        tools = _offer(rng, *names)
        before = [message for _ in range(turns) for message in _worked_turn(rng)]
        city, path = held["cities"][index * 6], held["paths"][index * 6]
        a, b = held["number_pairs"][index * 6]
        right = calls(("get_weather", {"city": city}))
        yield Case([*before, user(f"What is the weather in {city}?")], right, tools)
        yield Case([*before, user(f"Add {a} and {b}.")], calls(("add", {"a": a, "b": b})), tools)
        asked = [*before, user(f"Read the file {path}")]
        yield Case(asked, calls(("read_file", {"path": path})), tools)
        text = held["texts"][index]
        read = called("read_file", {"path": path}, text)
        yield Case([*asked, *read], says(f"The file says: {text}"), tools)
        yield Case([*before, user("What is the capital of Kenya?")], says("Nairobi"), tools)


# Each list with the share that has to be right in either thinking mode.
LISTS: tuple[tuple[str, float, Callable[[], Iterator[Case]]], ...] = (
    ("capitals, 40 x 4 phrasings", 1.0, capital_cases),
    ("one-digit sums, 100 x 3 phrasings", 1.0, sum_cases),
    ("who are you, greetings, counting", 1.0, lambda: listed_cases("plain")),
    ("emoji and CJK", 1.0, lambda: listed_cases("utf8")),
    ("unknown questions are declined", 0.85, unknown_cases),
    ("call get_weather, held-out cities", 0.95, lambda: call_cases("get_weather")),
    ("call read_file, held-out paths", 0.95, lambda: call_cases("read_file")),
    ("call list_dir, held-out paths", 0.95, lambda: call_cases("list_dir")),
    ("call add, held-out numbers", 0.95, lambda: call_cases("add")),
    ("call search, held-out queries", 0.9, lambda: call_cases("search")),
    ("call send_message, held-out texts", 0.9, lambda: call_cases("send_message")),
    ("two calls in one turn", 0.9, pair_cases),
    ("tools with unseen names", 0.8, unseen_tool_cases),
    ("answer from a weather result", 0.95, lambda: result_cases("weather")),
    ("answer from a file list", 0.9, lambda: result_cases("list")),
    ("answer from a file's content", 0.9, lambda: result_cases("read")),
    ("answer from a sum", 0.95, lambda: result_cases("add")),
    ("answer from an error", 0.95, lambda: result_cases("error")),
    ("plain questions with tools on offer", 0.95, plain_with_tools_cases),
    ("with a system prompt", 0.95, system_cases),
    ("after 19 earlier turns", 0.95, history_cases),
    ("call after 10 earlier calls", 0.95, loop_cases),
    ("after 30 turns with tools", 0.95, lambda: agent_cases(30)),
    ("after 50 turns with tools", 0.9, lambda: agent_cases(50)),
)


def judge(player: Player, render: Renderer, case: Case, thinking: bool) -> tuple[bool, str]:
    """Whether the answer is right, thought and all, and the text itself."""
    prompt = render(
        case.messages,
        tools=list(case.tools) or None,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    text, _ = player.complete(prompt)
    if not thinking:
        return "think>" not in text and case.is_right(text), text
    head, closed, answer = text.partition("</think>\n\n")
    thought = head.removeprefix("<think>\n")
    is_formed = bool(closed) and thought != head and bool(thought.strip())
    return is_formed and "think>" not in answer and case.is_right(answer), text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="print so many mistakes per list")
    arguments = parser.parse_args()
    player, render = Player(arguments.gguf), Renderer()
    short = 0
    print("| list | asked | thinking | not thinking | required |\n|---|---:|---:|---:|---:|")
    for title, required, make in LISTS:
        cases = list(make())
        right = {True: 0, False: 0}
        mistakes: list[str] = []
        for case in cases:
            # Both modes in a row: their prompts differ only at the end, the player keeps the rest.
            for thinking in (True, False):
                passed, text = judge(player, render, case, thinking)
                right[thinking] += passed
                if not passed:
                    mistakes.append(f"  {case.messages[-1]['content']!r} -> {text!r}")
        short += any(count < required * len(cases) for count in right.values())
        print(
            f"| {title} | {len(cases)} | {right[True]} | {right[False]} | {required * 100:.0f} % |",
            flush=True,
        )
        for mistake in mistakes[: arguments.show]:
            print(mistake)
    player.close()
    print(f"\n{short} of {len(LISTS)} lists fall short" if short else "\nevery list passes")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
