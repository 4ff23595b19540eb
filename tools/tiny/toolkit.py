"""The kinds of tools that the corpus offers: schema variants, requests, results, answers.

A kind knows how people name such a tool, how they ask for it, what it returns, and what to
say about the result. It does not know about conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny import lexicon

Value = str | int | float | bool
Draw = Callable[[Random], Value]


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument: the names people give it, its JSON type, how to draw a value."""

    names: tuple[str, ...]
    type: str
    about: tuple[str, ...]
    draw: Draw
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of tool.

    ``asks`` and ``pairs`` are requests for one and for two calls, with ``{0}``, ``{1}`` for the
    slots (``{2}`` the second call's first slot); ``result`` draws what the tool returns and the
    answer that reports it.
    """

    key: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    slots: tuple[Slot, ...]
    asks: tuple[str, ...]
    result: Callable[[Random, list[Value]], tuple[str, str]]
    pairs: tuple[str, ...] = ()
    extras: tuple[tuple[str, dict[str, Any]], ...] = ()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wrap(rng: Random, value: Value, *keys: str) -> str:
    """A scalar result, bare or as the single member of a JSON object."""
    return str(value) if rng.random() < 0.5 else _dump({rng.choice(keys): value})


def _weather(rng: Random, values: list[Value]) -> tuple[str, str]:
    sky = rng.choice(lexicon.SKIES) if rng.random() < 0.75 else lexicon.word(rng)
    degrees = rng.randint(-20, 45)
    answer = f"It is {degrees} C and {sky} in {values[0]}."
    form = rng.randrange(8)
    if form <= 2:
        heat = rng.choice(("temp_c", "temperature", "temp", "temperature_c", "degrees"))
        state = rng.choice(("sky", "condition", "conditions", "weather", "description"))
        members = [(heat, degrees), (state, sky)]
        if rng.random() < 0.3:
            members.insert(0, ("city", values[0]))
        if rng.random() < 0.15:
            members.append(("unit", "C"))
        elif rng.random() < 0.15:
            rng.shuffle(members)
        return _dump(dict(members)), answer
    if form == 3:
        return f"{degrees} C, {sky}", answer
    if form == 4:
        return f"{degrees}°C, {sky}", answer
    if form == 5:
        return f"{sky}, {degrees} C", answer
    if form == 6:
        return f"{sky.capitalize()}, {degrees}°C", answer
    said = sky if rng.random() < 0.5 else lexicon.text(rng, 1, 5).rstrip(".!")
    return said, f"The weather in {values[0]}: {said}"


def _time(rng: Random, values: list[Value]) -> tuple[str, str]:
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    return _wrap(rng, clock, "time", "now", "result"), f"It is {clock} in {values[0]}."


def _read(rng: Random, values: list[Value]) -> tuple[str, str]:
    content = lexicon.text(rng, 1, 9) if rng.random() < 0.95 else lexicon.text(rng, 10, 40)
    if rng.random() < 0.2:
        content += "\n" + lexicon.text(rng, 1, 6)
    shown = content if rng.random() < 0.75 else _dump({"content": content})
    return shown, f"The file says: {content}"


def _list(rng: Random, values: list[Value]) -> tuple[str, str]:
    if rng.random() < 0.05:
        return rng.choice(("", "[]")), "The folder is empty."
    count = rng.choice((1, 2, 2, 3, 3, 4, 5, 7))
    names = [
        lexicon.file_name(rng) if rng.random() < 0.75 else lexicon.identifier(rng)
        for _ in range(count)
    ]
    form = rng.randrange(5)
    shown = "\n".join(names) if form < 2 else ", ".join(names) if form == 2 else _dump(names)
    if form == 4:
        shown = _dump({rng.choice(("files", "entries")): names})
    return shown, f"The folder has {', '.join(names)}."


def _sum(rng: Random, values: list[Value]) -> tuple[str, str]:
    a, b = values
    total: Value = a + b if isinstance(a, int) and isinstance(b, int) else lexicon.number(rng)
    if rng.random() < 0.4:  # a wrong total too: the answer comes from the tool, not from memory
        total = lexicon.number(rng) + lexicon.number(rng)
    return _wrap(rng, total, "sum", "result", "total"), f"The sum is {total}."


def _product(rng: Random, values: list[Value]) -> tuple[str, str]:
    total = lexicon.number(rng) * rng.randint(1, 99)
    return _wrap(rng, total, "product", "result"), f"The product is {total}."


def _found(rng: Random, values: list[Value]) -> tuple[str, str]:
    said = lexicon.text(rng, 1, 8)
    return _wrap(rng, said, "result", "text", "answer"), f"I found: {said}"


def _sent(rng: Random, values: list[Value]) -> tuple[str, str]:
    said = rng.choice(("ok", "sent", "OK", "done", "Message sent.", '{"status": "sent"}'))
    if rng.random() < 0.2:
        said = _dump({rng.choice(("ok", "sent", "success")): True})
    return said, f"I sent the message to {values[0]}."


def _wrote(rng: Random, values: list[Value]) -> tuple[str, str]:
    said = rng.choice(("ok", "written", "OK", "done", '{"status": "ok"}', '{"ok": true}'))
    return said, f"I wrote {values[0]}."


def _output(rng: Random, values: list[Value]) -> tuple[str, str]:
    said = lexicon.text(rng, 1, 6)
    return _wrap(rng, said, "output", "stdout"), f"The output is: {said}"


def plain_result(rng: Random, values: list[Value]) -> tuple[str, str]:
    """What a tool nobody has heard of may return."""
    pick = rng.random()
    value: Value = lexicon.number(rng) if pick < 0.3 else lexicon.text(rng, 1, 6)
    if pick > 0.85:
        value = lexicon.identifier(rng)
    return _wrap(rng, value, "result", "value", "output"), f"The result is: {value}"


def _integer(rng: Random) -> int:
    value = lexicon.number(rng)
    return -value if rng.random() < 0.03 else value


def _operand(rng: Random) -> int | float:
    return round(rng.uniform(0, 99), 1) if rng.random() < 0.04 else _integer(rng)


def _command(rng: Random) -> str:
    head = rng.choice(("ls", "cat", "echo", "make", "git", "python", "grep", lexicon.word(rng)))
    flag = f" -{rng.choice('abcdefghijlmnrstvx')}" if rng.random() < 0.4 else ""
    tail = lexicon.file_path(rng) if rng.random() < 0.4 else lexicon.identifier(rng)
    return f"{head}{flag} {tail}"


UNIT = ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]})
LIMIT = ("limit", {"type": "integer", "description": "How many"})
ENCODING = ("encoding", {"type": "string", "description": "Text encoding"})

CITY = Slot(
    ("city", "city", "city", "location", "place"),
    "string",
    ("City name", "The city", "Name of the city", "The city, e.g. Paris"),
    lexicon.city,
)
FILE = Slot(
    ("path", "path", "path", "file_path", "file", "filename"),
    "string",
    ("Path of the file", "File path", "The path to read", "Absolute path"),
    lexicon.file_path,
)
FOLDER = Slot(
    ("path", "path", "path", "dir", "directory", "folder"),
    "string",
    ("Path of the folder", "Directory path", "The path to list"),
    lexicon.folder_path,
)
FIRST = Slot(("a", "a", "a", "x", "first"), "number", ("First number", "A number"), _operand)
SECOND = Slot(("b", "b", "b", "y", "second"), "number", ("Second number", "A number"), _operand)
QUERY = Slot(("query", "query", "q", "text"), "string", ("What to search", "Query"), lexicon.text)
TO = Slot(("to", "to", "to", "recipient"), "string", ("Who gets it", "Recipient"), lexicon.person)
BODY = Slot(
    ("text", "text", "message", "body", "content"),
    "string",
    ("The message", "Message text", "What to say"),
    lexicon.text,
)
CONTENT = Slot(("content", "content", "text"), "string", ("The content", "Text"), lexicon.text)
COMMAND = Slot(("command", "command", "cmd"), "string", ("Shell command", "Command"), _command)

KINDS: tuple[Kind, ...] = (
    Kind(
        "weather",
        ("get_weather", "get_weather", "get_weather", "weather", "get_current_weather"),
        (
            "Get the weather in a city.",
            "Get the current weather",
            "Current weather for a city",
            "Returns the weather for a location.",
            "Weather report",
        ),
        (CITY,),
        (
            "What is the weather in {0}?",
            "What's the weather in {0}?",
            "What is the weather like in {0}?",
            "What's the weather like in {0} today?",
            "How is the weather in {0}?",
            "Weather in {0}?",
            "Weather in {0}",
            "Tell me the weather in {0}.",
            "Is it raining in {0}?",
            "Do I need an umbrella in {0}?",
            "Check the weather for {0}.",
            "How warm is it in {0}?",
            "Get the weather for {0}, please.",
            "I am going to {0}. How is the weather?",
        ),
        _weather,
        (
            "What is the weather in {0} and in {1}?",
            "What is the weather in {0} and {1}?",
            "What's the weather in {0} and {1}?",
            "Weather in {0} and {1}?",
            "Compare the weather in {0} and {1}.",
            "How is the weather in {0} and in {1}?",
        ),
        (UNIT,),
    ),
    Kind(
        "time",
        ("get_time", "get_time", "current_time", "get_current_time"),
        ("Get the time in a city.", "Current local time", "What time it is in a place"),
        (CITY,),
        (
            "What time is it in {0}?",
            "What's the time in {0}?",
            "Time in {0}?",
            "Tell me the time in {0}.",
            "How late is it in {0}?",
            "Get the current time for {0}.",
        ),
        _time,
        ("What time is it in {0} and in {1}?", "What time is it in {0} and {1}?"),
    ),
    Kind(
        "read",
        ("read_file", "read_file", "read_file", "open_file", "read"),
        ("Read a file.", "Read a text file and return its content.", "Reads the file at a path"),
        (FILE,),
        (
            "Read {0}",
            "Read the file {0}",
            "Read the file {0}.",
            "Please read {0}",
            "Open {0}",
            "Show me {0}",
            "Show me the file {0}",
            "What is in {0}?",
            "What's in the file {0}?",
            "What does {0} say?",
            "Print the content of {0}",
            "Can you read {0} for me?",
            "Look at `{0}`.",
            "Read `{0}`",
        ),
        _read,
        ("Read {0} and {1}", "Read the files {0} and {1}", "Show me {0} and {1}"),
        (ENCODING,),
    ),
    Kind(
        "list",
        ("list_dir", "list_dir", "list_dir", "list_files", "list_directory", "ls"),
        ("List a folder.", "List the files in a directory.", "Names of the files in a folder"),
        (FOLDER,),
        (
            "List {0}",
            "List the folder {0}",
            "List the files in {0}",
            "List the directory {0}",
            "Which files are in {0}?",
            "What files are in {0}?",
            "Show the files in {0}",
            "What is in the folder {0}?",
            "What's in the directory {0}?",
            "ls {0}",
        ),
        _list,
        ("List {0} and {1}", "List the files in {0} and in {1}"),
    ),
    Kind(
        "add",
        ("add", "add", "add", "add_numbers", "sum"),
        ("Add two numbers.", "Add a and b", "Returns the sum of two numbers."),
        (FIRST, SECOND),
        (
            "What is {0} + {1}?",
            "What is {0}+{1}?",
            "What's {0} + {1}?",
            "{0} + {1}",
            "{0}+{1}",
            "Add {0} and {1}.",
            "Add {0} and {1}",
            "Please add {0} and {1}.",
            "How much is {0} plus {1}?",
            "Compute {0} + {1}.",
            "Calculate {0} plus {1}.",
            "What is the sum of {0} and {1}?",
            "Use the tool to add {0} and {1}.",
        ),
        _sum,
    ),
    Kind(
        "multiply",
        ("multiply", "multiply", "mul", "product"),
        ("Multiply two numbers.", "Returns the product of two numbers."),
        (FIRST, SECOND),
        (
            "What is {0} * {1}?",
            "What is {0} times {1}?",
            "Multiply {0} and {1}.",
            "Multiply {0} by {1}.",
            "{0} * {1}",
            "{0} times {1}",
        ),
        _product,
    ),
    Kind(
        "search",
        ("search", "search", "web_search", "search_web"),
        ("Search the web.", "Search for something.", "Web search", "Look something up"),
        (QUERY,),
        (
            "Search for {0}",
            "Search the web for {0}",
            "Look up {0}",
            "Find {0}",
            "Please search for {0}",
            'Search for "{0}"',
            "Google {0}",
            "Find something about {0}",
        ),
        _found,
        (),
        (LIMIT,),
    ),
    Kind(
        "send",
        ("send_message", "send_message", "send_message", "send_email", "message"),
        ("Send a message.", "Send a message to a person.", "Sends text to someone"),
        (TO, BODY),
        (
            "Send a message to {0}: {1}",
            "Send {0} a message: {1}",
            "Send {0} the message: {1}",
            "Message {0}: {1}",
            "Write to {0}: {1}",
            "Tell {0}: {1}",
            "Tell {0} that {1}",
            'Send "{1}" to {0}',
            'Send "{1}" to {0}.',
            'Send {0} the text "{1}"',
            'Send a message to {0} saying "{1}".',
            "Send a message to {0} saying {1}",
        ),
        _sent,
    ),
    Kind(
        "write",
        ("write_file", "write_file", "save_file", "create_file"),
        ("Write a file.", "Write text to a file.", "Creates a file with the content"),
        (FILE, CONTENT),
        (
            'Write "{1}" to {0}',
            'Write "{1}" into {0}',
            "Write to {0}: {1}",
            "Create {0} with the content: {1}",
            'Create the file {0} with "{1}"',
            'Save "{1}" as {0}',
        ),
        _wrote,
    ),
    Kind(
        "run",
        ("run_command", "run_command", "bash", "shell"),
        ("Run a shell command.", "Run a command and return its output.", "Executes a command"),
        (COMMAND,),
        ("Run {0}", "Run `{0}`", "Run the command {0}", "Execute {0}", "Please run `{0}`"),
        _output,
    ),
)
