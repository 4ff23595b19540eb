"""Whole conversations: a system prompt, tools on offer, several turns, thinking or not.

Puts the exchanges of :mod:`chat` and :mod:`toolkit` together as an OpenAI client would send
them. Rendering and tokens belong to :mod:`corpus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny import chat, lexicon
from tools.tiny.invented import invent
from tools.tiny.toolkit import FILE, KINDS, Kind, Value

Message = dict[str, Any]

SYSTEM_SENTENCES = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are cortex/tiny.",
    "You are a coding agent.",
    "You are a careful agent with access to tools.",
    "You are an assistant in a chat room.",
    "You are a test.",
    "Answer briefly.",
    "Answer in one sentence.",
    "Be kind and be short.",
    "Be concise.",
    "Use the tools when you need them.",
    "Use tools to answer questions.",
    "Call a tool if one fits.",
    "If you do not know, say so.",
    "Never guess.",
    "Think before you answer.",
    "Reply in English.",
    "Do not use markdown.",
    "The user works on linux.",
    "The user likes short answers.",
    "Follow the instructions of the user.",
    "Do what the user asks, nothing more.",
    "Today is monday.",
    "All paths are relative to the project.",
    "You answer questions about cities and numbers.",
    "Keep your answers factual and polite.",
    "You can read files and list folders.",
)


SKILLS = (
    *("capital", "sum", "talk", "script", "count", "echo", "unknown", "no_tool", "json"),
    "elsewhere",
)


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each sort of conversation, exchange and tool is drawn."""

    thinking: float = 0.5
    with_tools: float = 0.54
    long: float = 0.03
    long_turns: tuple[int, int] = (8, 24)  # fewest and most in a long conversation
    chains: float = 0.1  # share of the turns that take one call after another, if tools allow
    again: float = 0.0  # share of the tool turns that repeat an earlier request
    kin: float = 0.0  # share of the file paths that resemble an earlier one
    thoughtless: float = 0.0  # share of the thinking ones whose client sends no thoughts back
    invented: float = 0.27
    ends_at_call: float = 0.3  # share of the tool turns at the end that stop at their call
    skills: tuple[float, ...] = (27, 23, 12, 9, 3, 6, 9, 5, 4, 0)  # in the order of SKILLS
    kinds: tuple[float, ...] = (4, 1.5, 3.5, 3, 3.5, 1, 2.5, 3, 1.5, 1.5)  # as in KINDS


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form. ``thinking`` says which generation prompt they came from."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    thinking: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind of tool under the names that this conversation gives it."""

    kind: Kind
    name: str
    arguments: tuple[str, ...]
    schema: dict[str, Any]


def system_prompt(rng: Random) -> str | None:
    """None, the usual sentence, or up to four sentences, sometimes with strange words."""
    pick = rng.random()
    if pick < 0.45:
        return None
    if pick < 0.62:
        return "You are a helpful assistant."
    if pick > 0.985:
        return " ".join(lexicon.text(rng, 4, 12).capitalize() for _ in range(rng.randint(10, 60)))
    sentences = rng.sample(SYSTEM_SENTENCES, rng.choice((1, 2, 2, 3, 4)))
    if rng.random() < 0.35:
        extra = rng.choice(
            (
                f"Your name is {lexicon.person(rng)}.",
                f"You work in the folder {lexicon.folder_path(rng)}.",
                f"The user is {lexicon.person(rng)} from {lexicon.city(rng)}.",
                f"Today is 20{rng.randint(20, 39)}-{rng.randint(10, 12)}-{rng.randint(10, 30)}.",
                lexicon.text(rng, 5, 20).capitalize() + ".",
            )
        )
        sentences.insert(rng.randint(0, len(sentences)), extra)
    return rng.choice((" ", " ", "\n")).join(sentences)


def offer(rng: Random, kind: Kind) -> Offer:
    """Name the tool and its arguments, and write the schema as an SDK's user would."""
    name = rng.choice(kind.names)
    renamed = rng.random() < 0.2 and not kind.key.startswith("invented")
    if renamed:
        name = _rename(rng, kind)
    arguments: list[str] = []
    for slot in kind.slots:
        chosen = rng.choice(slot.names)
        if rng.random() < 0.06:
            chosen = lexicon.syllables(rng, 1, 2)
        while chosen in arguments:
            chosen = lexicon.syllables(rng, 2, 2)
        arguments.append(chosen)
    described = rng.random() < 0.45
    properties: dict[str, Any] = {}
    for slot, argument in zip(kind.slots, arguments, strict=True):
        member: dict[str, Any] = {"type": slot.type}
        about = rng.choice(slot.about)
        if described and about:
            member["description"] = about
        if slot.choices:
            member["enum"] = list(slot.choices)
        properties[argument] = member
    for extra, member in kind.extras:
        if rng.random() < 0.25:
            properties[extra] = member
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        parameters["required"] = list(arguments)
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    about = rng.choice(kind.about)
    if about and (renamed or rng.random() < 0.92):
        function["description"] = about
    if rng.random() < 0.04:
        function["strict"] = True
    function["parameters"] = parameters
    if rng.random() < 0.06:
        function["strict"] = True
    return Offer(kind, name, tuple(arguments), {"type": "function", "function": function})


def _rename(rng: Random, kind: Kind) -> str:
    """A name that only the schema can tell: the model has to look it up there."""
    noun = kind.names[0].split("_")[-1]
    return rng.choice(
        (
            f"{rng.choice(('fetch', 'lookup', 'do', 'my', 'tool', 'api', 'query'))}_{noun}",
            f"{noun}_{rng.choice(('lookup', 'tool', 'api', 'now', 'v2'))}",
            f"{lexicon.syllables(rng)}_{noun}",
            f"{noun}_{lexicon.syllables(rng)}",
            f"{kind.key}{rng.randint(1, 9)}",
            "get" + noun.capitalize(),
            lexicon.syllables(rng, 2, 3),
        )
    )


def offers(rng: Random, mix: Mix) -> list[Offer]:
    """One to six tools in any order, no two of a sort or of a name."""
    wanted = rng.choices((1, 2, 3, 4, 5, 6), (4, 4, 4, 3, 1, 1))[0]
    chosen: list[Offer] = []
    while len(chosen) < wanted:
        made_up = rng.random() < mix.invented
        kind = invent(rng) if made_up else rng.choices(KINDS, mix.kinds)[0]
        drawn = offer(rng, kind)
        if all(kind.key != o.kind.key and drawn.name != o.name for o in chosen):
            chosen.append(drawn)
    return chosen


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _generic_ask(rng: Random, tool: Offer, values: list[Value]) -> str:
    """A request that names the tool and its arguments outright."""
    shown = [_show(value) for value in values]
    if not shown:
        return rng.choice((f"Call {tool.name}.", f"Use {tool.name}", f"Call the tool {tool.name}."))
    pairs = list(zip(tool.arguments, shown, strict=True))
    joined = " and ".join(f"{name} {value}" for name, value in pairs)
    return rng.choice(
        (
            f"Call {tool.name} with {joined}",
            f"Use {tool.name} with {joined}",
            f"Please call {tool.name} with {joined}",
            f"Use the tool {tool.name}: {', '.join(f'{n}={v}' for n, v in pairs)}",
            f"{tool.name} {' '.join(shown)}",
        )
    )


def _draw_values(rng: Random, tool: Offer) -> list[Value]:
    if tool.kind.key in ("add", "multiply"):
        pair = lexicon.number_pair(rng)
        if rng.random() < 0.94:
            return list(pair)
    return [slot.draw(rng) for slot in tool.kind.slots]


def _outcome(rng: Random, tool: Offer, values: list[Value]) -> tuple[str, str, bool]:
    """What the tool returns, the answer to it, and whether it failed."""
    if rng.random() < 0.07:
        why = lexicon.text(rng, 1, 5).rstrip(".!")
        if rng.random() < 0.4:
            why = rng.choice(("not found", "timeout", "permission denied", "no such file"))
        form = rng.choice(("Error: {}", "error: {}", "ERROR: {}", '{{"error": "{}"}}'))
        return form.format(why), f"The call failed: {why}", True
    said, answer = tool.kind.result(rng, values)
    return said, answer, False


def _akin(
    rng: Random,
    share: float,
    tool: Offer,
    values: list[Value],
    asked: list[tuple[Offer, list[Value]]],
) -> list[Value]:
    """The values, some of whose file paths now resemble one that was asked for earlier."""
    known = [
        str(value)
        for other, others in asked
        for slot, value in zip(other.kind.slots, others, strict=True)
        if slot is FILE
    ]
    return [
        lexicon.kin(rng, rng.choice(known))
        if slot is FILE and known and rng.random() < share
        else value
        for slot, value in zip(tool.kind.slots, values, strict=True)
    ]


def tool_turn(rng: Random, tool: Offer, values: list[Value]) -> list[Message]:
    """Request for these values, call or two calls, results, answer: four messages or five."""
    sets = [values]
    if tool.kind.pairs and rng.random() < 0.16:
        sets.append(_draw_values(rng, tool))
        ask = rng.choice(tool.kind.pairs).format(*(_show(v) for values in sets for v in values))
    elif rng.random() < 0.12:
        ask = _generic_ask(rng, tool, sets[0])
    else:
        ask = rng.choice(tool.kind.asks).format(*(_show(value) for value in sets[0]))
        if rng.random() < 0.08 and not ask[0].isdigit():
            ask = ask[0].lower() + ask[1:]
    calls, results, answers, failed = [], [], [], False
    for values in sets:
        arguments = dict(zip(tool.arguments, values, strict=True))
        call = {"name": tool.name, "arguments": arguments}
        calls.append({"type": "function", "function": call})
        said, answer, fault = _outcome(rng, tool, values)
        failed = failed or fault
        results.append({"role": "tool", "content": said})
        answers.append(answer)
    wanted = "; ".join(" and ".join(_show(value) for value in values) for values in sets)
    thought = f"I call {tool.name} with {wanted}." if wanted else f"I call {tool.name}."
    after = "The call failed. I tell the user." if failed else "I tell the user the result."
    return [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "\n".join(answers), "reasoning_content": after},
    ]


def chain_turn(rng: Random, tools: dict[str, Offer], kin: float) -> list[Message] | None:
    """One request that takes two calls, the second made of the first one's result."""
    firsts = [tools[key] for key in ("read", "add", "search", "run") if key in tools]
    seconds = [tools[key] for key in ("send", "write") if key in tools]
    if not firsts or not seconds:
        return None
    first, second = rng.choice(firsts), rng.choice(seconds)
    given = _draw_values(rng, first)
    target = second.kind.slots[0].draw(rng)
    if kin and first.kind.key == "read" and second.kind.key == "write" and rng.random() < kin:
        target = lexicon.kin(rng, str(given[0]))
    found: Value = lexicon.text(rng, 1, 6)
    if first.kind.key == "add":
        found = lexicon.number(rng) + lexicon.number(rng)
    shown = [_show(value) for value in given]
    opening = {
        "read": ("Read {0}", "Read the file {0}"),
        "add": ("Add {0} and {1}", "Compute {0} + {1}"),
        "search": ('Search for "{0}"', "Look up {0}"),
        "run": ("Run `{0}`",),
    }[first.kind.key]
    closing = (
        (" and send it to {t}.", " and send the result to {t}", ", then send it to {t}")
        if second.kind.key == "send"
        else (" and write it to {t}", " and save the result as {t}", ", then write it to {t}")
    )
    ask = rng.choice(opening).format(*shown) + rng.choice(closing).format(t=target)
    messages: list[Message] = [{"role": "user", "content": ask}]
    for tool, values in ((first, given), (second, [target, str(found)])):
        arguments = dict(zip(tool.arguments, values, strict=True))
        thought = f"I call {tool.name} with {' and '.join(_show(value) for value in values)}."
        call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        said = str(found) if tool is first else rng.choice(("ok", "done", '{"status": "ok"}'))
        messages += [
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": thought,
                "tool_calls": [call],
            },
            {"role": "tool", "content": said},
        ]
    verb = "sent the message to" if second.kind.key == "send" else "wrote"
    messages.append(
        {
            "role": "assistant",
            "content": f"I {verb} {target}.",
            "reasoning_content": "I tell the user the result.",
        }
    )
    return messages


def plain_turn(rng: Random, mix: Mix, offered: set[str], earlier: bool) -> list[Message]:
    """A question that needs none of the tools on offer."""
    while True:
        skill = rng.choices(SKILLS, mix.skills)[0]
        if skill == "sum" and offered & {"add"}:
            continue
        if skill == "unknown" and offered & {"search", "time", "add", "multiply"}:
            continue
        if skill == "no_tool" and (offered & {"search", "run"} or len(offered) > 4):
            continue
        if skill in ("echo", "count", "json") and offered:
            continue
        break
    exchange = {
        "capital": lambda: chat.capital(rng, earlier),
        "sum": lambda: chat.small_sum(rng),
        "talk": lambda: chat.small_talk(rng),
        "script": lambda: chat.script(rng),
        "count": lambda: chat.count(rng),
        "echo": lambda: chat.echo(rng),
        "unknown": lambda: chat.unknown(rng),
        "no_tool": lambda: chat.no_tool(rng, offered),
        "json": lambda: chat.as_json(rng),
        "elsewhere": lambda: chat.elsewhere(rng),
    }[skill]()
    return [
        {"role": "user", "content": exchange.ask},
        {
            "role": "assistant",
            "content": exchange.answer,
            "reasoning_content": exchange.thought,
        },
    ]


def converse(rng: Random, mix: Mix) -> Conversation:
    """One conversation of any sort, in the shares the training wants."""
    thinking = rng.random() < mix.thinking
    with_tools = rng.random() < mix.with_tools
    tools = offers(rng, mix) if with_tools else []
    long = rng.random() < mix.long
    if long:
        turns = rng.randint(*mix.long_turns)
    else:
        turns = rng.choices((1, 2, 3, 4, 5), (3, 3, 3, 2, 1) if with_tools else (5, 3, 2, 1, 1))[0]
    messages: list[Message] = []
    prompt = system_prompt(rng)
    if prompt is not None:
        messages.append({"role": "system", "content": prompt})
    offered = {tool.kind.key for tool in tools}
    after_capital = False
    asked: list[tuple[Offer, list[Value]]] = []
    for _ in range(turns):
        chain = None
        if rng.random() < mix.chains:
            chain = chain_turn(rng, {t.kind.key: t for t in tools}, mix.kin)
        if chain:
            turn = chain
        elif asked and mix.again and rng.random() < mix.again:
            # The same request again, another result: the newest one counts.
            turn = tool_turn(rng, *rng.choice(asked))
        elif tools and rng.random() < 0.8:
            tool = rng.choice(tools)
            values = _draw_values(rng, tool)
            if mix.kin:
                values = _akin(rng, mix.kin, tool, values, asked)
            turn = tool_turn(rng, tool, values)
            asked.append((tool, values))
        else:
            turn = plain_turn(rng, mix, offered, after_capital)
        after_capital = turn[-1]["content"].startswith("The capital of")
        messages.extend(turn)
    # Some tool conversations end at the call: that is where a client takes over, and without
    # thinking the only place where the choice to call is seen from behind an empty thought.
    if messages[-2]["role"] == "tool" and rng.random() < mix.ends_at_call:
        while messages[-1]["role"] != "assistant" or "tool_calls" not in messages[-1]:
            messages.pop()
    if thinking and mix.thoughtless and rng.random() < mix.thoughtless:
        for message in messages[:-1]:
            message.pop("reasoning_content", None)
    if not thinking:
        for message in messages:
            message.pop("reasoning_content", None)
    return Conversation(messages, [tool.schema for tool in tools], thinking)
