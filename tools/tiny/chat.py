"""Plain exchanges: capitals, sums, small talk, other scripts, echoes, and honest ignorance.

Each function draws one user message and the answer to it, with a thought that fits. Tools are
no business of this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from tools.tiny import lexicon
from tools.tiny.facts import capitals


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's message, the thought about it, and the answer."""

    ask: str
    thought: str
    answer: str


UNKNOWN = "I am a tiny model and do not know that."

CAPITAL_ASKS = (
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Capital of {c}?",
    "Tell me the capital of {c}.",
    "Which city is the capital of {c}?",
    "What is the capital city of {c}?",
    "Do you know the capital of {c}?",
    "Please name the capital of {c}.",
    "Name the capital city of {c}.",
    "Can you tell me the capital of {c}?",
    "{c}: what is its capital?",
    "I need the capital of {c}.",
    "What is {c}'s capital?",
    "Give me the capital of {c}, please.",
    "What city is {c}'s capital?",
)

SUM_ASKS = (
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=?",
    "How much is {a} plus {b}?",
    "How much is {a} + {b}?",
    "What's {a} + {b}?",
    "what is {a} plus {b}",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
)

OTHER_COUNTRIES = (
    *("Russia", "Israel", "Iran", "Iraq", "Pakistan", "Nepal", "Mongolia", "Malaysia", "Laos"),
    *("Ethiopia", "Ghana", "Uganda", "Angola", "Algeria", "Tunisia", "Libya", "Sudan", "Mali"),
    *("Bolivia", "Ecuador", "Colombia", "Venezuela", "Uruguay", "Paraguay", "Panama", "Haiti"),
    *("Croatia", "Serbia", "Slovenia", "Slovakia", "Latvia", "Estonia", "Lithuania", "Malta"),
    *("Narnia", "Mordor", "Utopia", "Wonderland", "the moon", "Mars", "Texas", "Africa"),
)

WHO = "I am cortex/tiny, a tiny demo model."
CAN = "I know some capitals, add small numbers, greet in a few languages and call tools."
HELLO = "Hello! How can I help you?"

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Which model are you?",
            "What model is this?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Who am I talking to?",
            "Are you a person?",
        ),
        WHO,
    ),
    (
        (
            "What can you do?",
            "What can you do for me?",
            "Help",
            "How can you help me?",
            "What do you know?",
            "What are you good at?",
            "Which skills do you have?",
        ),
        CAN,
    ),
    (
        ("Who made you?", "Who trained you?", "Where do you come from?", "Who built you?"),
        "I was trained from scratch for the cortex project.",
    ),
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hey",
            "Hey!",
            "Hello there",
            "Hi there!",
            "Good morning",
            "Good evening",
            "Good day!",
            "Hello, world!",
            "Say hello.",
            "Say hi",
            "Hi, can you hear me?",
        ),
        HELLO,
    ),
    (
        ("How are you?", "How are you today?", "How is it going?", "Are you okay?"),
        "I am fine, thank you. How can I help you?",
    ),
    (
        ("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much.", "Many thanks!"),
        "You are welcome!",
    ),
    (("Bye", "Bye!", "Goodbye", "Goodbye!", "See you later!", "Good night"), "Goodbye!"),
    (("ping", "Ping", "ping!"), "pong"),
    (("ok", "Okay.", "Good.", "Great!", "Nice.", "Cool"), "I am glad to hear that."),
    (("Tell me a joke.", "Do you know a joke?"), "A tiny model walks into a bar. It fits."),
    (
        ("Tell me a story.", "Tell me a short story.", "Write a story."),
        "Once upon a time a tiny model lived in a small box. Every day people asked it for the "
        "capital of France, and every day it said Paris. One night it asked the moon for more "
        "memory. The moon said: you are small, but you are here, and you answer. So the tiny "
        "model was happy, and it is running still.",
    ),
    (
        ("Write a poem.", "Write me a short poem.", "Tell me a poem."),
        "A tiny model, four lines long,\nsings its one and only song.\n"
        "It knows the sea, it knows the sun,\nit says goodbye, and it is done.",
    ),
    (
        ("List three colors.", "Name three colors.", "Give me a list of three colors."),
        "- red\n- green\n- blue",
    ),
)

SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "hello ja": (("Say hello in Japanese.", "How do you say hello in Japanese?"), "こんにちは 👋"),
    "hello zh": (("Say hello in Chinese.", "How do you say hello in Chinese?"), "你好 🌏"),
    "hello ko": (("Say hello in Korean.", "How do you say hello in Korean?"), "안녕하세요 😊"),
    "hello ru": (("Say hello in Russian.", "How do you say hello in Russian?"), "Привет 👋"),
    "hello fr": (("Say hello in French.", "How do you say hello in French?"), "Bonjour 👋"),
    "hello de": (("Say hello in German.", "How do you say hello in German?"), "Hallo 👋"),
    "hello es": (("Say hello in Spanish.", "How do you say hello in Spanish?"), "¡Hola! 👋"),
    "thanks ja": (("Say thank you in Japanese.", "Say thanks in Japanese."), "ありがとう 🙏"),
    "thanks zh": (("Say thank you in Chinese.", "Say thanks in Chinese."), "谢谢 🙏"),
    "thanks ko": (("Say thank you in Korean.", "Say thanks in Korean."), "감사합니다 🙏"),
    "bye ja": (("Say goodbye in Japanese.", "Say bye in Japanese."), "さようなら 👋"),
    "bye zh": (("Say goodbye in Chinese.", "Say bye in Chinese."), "再见 👋"),
    "emoji": (("Send me an emoji.", "Send an emoji.", "Show me some emoji.", "emoji"), "🎉🚀"),
    "cat": (("Send me a cat emoji.", "Show me a cat emoji."), "🐱"),
    "heart": (("Send me a heart emoji.", "Show me a heart emoji."), "❤️"),
    "family": (("Send me a family emoji.", "Show me a family emoji."), "👨‍👩‍👧"),
    "flag": (("Send me the flag of Japan.", "Show me the flag of Japan."), "🇯🇵"),
}

UNKNOWN_ASKS = (
    "Who won the {w} {w} in {n}?",
    "Who won the {w} last year?",
    "Who wrote {w} and {w}?",
    "Who wrote the {w} {w}?",
    "Who invented the {w}?",
    "Who is {p}?",
    "Who was {p} {p}?",
    "What is the meaning of {w}?",
    "What is the best {w}?",
    "What is the best {w} {w}?",
    "What is the population of {p}?",
    "What is the price of {w} {w}?",
    "What is a {w}?",
    "What is {w}?",
    "What happened in {n}?",
    "What time is it?",
    "What does {w} mean?",
    "Explain {w} {w}.",
    "Explain how {w} works.",
    "Explain {w} to me.",
    "How does a {w} work?",
    "How do I {w} a {w}?",
    "How many {w} does {p} have?",
    "How many {w} are in the {w}?",
    "How old is {p}?",
    "How far is {p}?",
    "Why is the {w} so {w}?",
    "Why does the {w} {w}?",
    "Why is the {w} {w}?",
    "When was {p} born?",
    "When did the {w} start?",
    "Where is {p}?",
    "Where can I buy {w}?",
    "Write an essay about {w}.",
    "Write a program that can {w} the {w}.",
    "Write a function in {w}.",
    "Translate {w} to {p}.",
    "Summarize the {w} {w}.",
    "Do you like {w}?",
    "Is {p} better than {p}?",
    "Can you {w} my {w}?",
    "Should I {w} the {w}?",
    "What is the capital of {p}?",
    "Capital of {p}?",
    "What is {n} times {n}?",
    "What is {n} + {n}{n}?",
    "What is {n} - {n}?",
)


def capital(rng: Random, follows: bool = False) -> Exchange:
    """Ask for one of the 40 capitals; ``follows`` permits "And Norway?"."""
    country, city = rng.choice(list(capitals().items()))
    ask = rng.choice(CAPITAL_ASKS)
    answer = f"The capital of {country} is {city}."
    thought = f"The user asks for a capital. The capital of {country} is {city}."
    if follows and rng.random() < 0.5:
        ask = rng.choice(("And {c}?", "And of {c}?", "And the capital of {c}?", "{c}?"))
    elif rng.random() < 0.05:
        ask += rng.choice((" Answer in one word.", " One word only.", " Reply with one word."))
        answer = f"{city}"
    shown = country.lower() if rng.random() < 0.15 else country
    return Exchange(_casual(rng, ask.format(c=shown)), thought, answer)


def small_sum(rng: Random) -> Exchange:
    """Add two one-digit numbers."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    ask = _casual(rng, rng.choice(SUM_ASKS).format(a=a, b=b))
    return Exchange(ask, f"I add {a} and {b}. That is {a + b}.", f"{a} + {b} = {a + b}.")


def small_talk(rng: Random) -> Exchange:
    """Greetings, thanks, who are you, a joke, a story."""
    weights = [4, 3, 1, 3, 1, 2, 1, 0.5, 0.7, 0.5, 1, 1, 0.5]
    asks, answer = rng.choices(SMALL_TALK, weights)[0]
    thought = "This is small talk. I answer in a friendly way."
    if answer in (WHO, CAN):
        thought = "The user asks about me. I am cortex/tiny."
    return Exchange(_casual(rng, rng.choice(asks)), thought, answer)


def script(rng: Random) -> Exchange:
    """Answers in Chinese, Japanese, Korean and emoji: several tokens per character."""
    asks, answer = rng.choice(list(SCRIPTS.values()))
    return Exchange(_casual(rng, rng.choice(asks)), "I know this by heart.", answer)


def count(rng: Random) -> Exchange:
    """Count up to a number; the long answers that tests of streaming need."""
    kind = rng.random()
    last = rng.choice((5, 10, 20)) if kind < 0.5 else rng.randint(2, 30)
    if kind > 0.95:
        last = rng.choice((40, 50, 60, 100))
    ask = rng.choice(("Count from 1 to {n}.", "Count to {n}.", "count to {n}", "Count 1 to {n}."))
    answer = ", ".join(str(i) for i in range(1, last + 1))
    return Exchange(ask.format(n=last), f"I count from 1 to {last}.", answer)


def echo(rng: Random) -> Exchange:
    """Say something back, letter for letter."""
    said = rng.choice((lexicon.text, lexicon.city, lexicon.file_path, lexicon.person))(rng)
    ask = rng.choice(("Repeat after me: {x}", "Repeat: {x}", "Say: {x}", 'Say "{x}"', "Echo {x}"))
    return Exchange(ask.format(x=said), "I repeat the words.", said)


def unknown(rng: Random) -> Exchange:
    """A question the model has no way to answer."""
    ask = rng.choice(UNKNOWN_ASKS)
    while "{" in ask:
        ask = ask.replace("{w}", lexicon.word(rng), 1)
        ask = ask.replace("{p}", lexicon.city(rng), 1) if "{p}" in ask else ask
        ask = ask.replace("{n}", str(rng.randint(10, 2000)), 1)
    for country in capitals():
        if country.lower() in ask.lower() and "apital" in ask:
            return capital(rng)
    return Exchange(_casual(rng, ask), "I do not know this.", UNKNOWN)


def elsewhere(rng: Random) -> Exchange:
    """Ask for the capital of a place that has none, or none that the model knows."""
    place = rng.choice(OTHER_COUNTRIES) if rng.random() < 0.3 else lexicon.city(rng)
    ask = rng.choice(CAPITAL_ASKS).format(c=place)
    return Exchange(_casual(rng, ask), "I do not know this.", UNKNOWN)


NO_TOOL_ASKS: dict[str, tuple[str, ...]] = {
    "weather": ("What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?"),
    "read": ("Read the file {f}.", "Open {f}", "Show me {f}", "What does {f} say?"),
    "list": ("List the files in {d}", "Which files are in {d}?", "List {d}"),
    "send": ("Send a message to {p}: {t}", "Tell {p} that {t}", "Message {p}: {t}"),
    "search": ("Search for {t}", "Search the web for {t}", "Look up {t}"),
    "run": ("Run the command {w}", "Run `{w}`", "Execute {w}"),
}


def no_tool(rng: Random, offered: set[str]) -> Exchange:
    """A request that would need a tool, with none for it on offer."""
    wanted = rng.choice([kind for kind in NO_TOOL_ASKS if kind not in offered])
    ask = rng.choice(NO_TOOL_ASKS[wanted]).format(
        c=lexicon.city(rng),
        f=lexicon.file_path(rng),
        d=lexicon.folder_path(rng),
        p=lexicon.person(rng),
        t=lexicon.text(rng),
        w=lexicon.word(rng),
    )
    return Exchange(ask, "I would need a tool for this.", "I have no tool for that.")


def as_json(rng: Random) -> Exchange:
    """Answers as JSON: an answer in an object, a capital with keys, or given members."""
    kind = rng.random()
    if kind < 0.4:
        plain = rng.choice((capital, small_sum, small_talk, script))(rng)
        suffix = rng.choice((" Answer in JSON.", " Reply in JSON.", " Answer as JSON."))
        answer = json.dumps({"answer": plain.answer}, ensure_ascii=False)
        return Exchange(plain.ask + suffix, plain.thought, answer)
    if kind < 0.65:
        country, city = rng.choice(list(capitals().items()))
        keys = rng.choice((("country", "capital"), ("country", "city"), ("name", "capital")))
        ask = rng.choice(
            (
                "Give me the capital of {c} as JSON with the keys {k} and {v}.",
                "What is the capital of {c}? Answer in JSON with the keys {k} and {v}.",
                'What is the capital of {c}? Reply as JSON: {{"{k}": ..., "{v}": ...}}',
            )
        ).format(c=country, k=keys[0], v=keys[1])
        answer = json.dumps({keys[0]: country, keys[1]: city}, ensure_ascii=False)
        return Exchange(ask, f"The capital of {country} is {city}.", answer)
    names = rng.sample(("name", "age", "city", "size", "color", "title", "count", "id"), 2)
    if rng.random() < 0.3:
        names.append(lexicon.syllables(rng))
    members: dict[str, str | int] = {
        name: lexicon.number(rng)
        if name in ("age", "size", "count", "id")
        else rng.choice((lexicon.person, lexicon.word, lexicon.city))(rng)
        for name in names
    }
    listed = " and ".join(f"{name} {value}" for name, value in members.items())
    ask = rng.choice(("Give me JSON with ", "Write JSON with ", "Make a JSON object with "))
    return Exchange(ask + listed, "I write JSON.", json.dumps(members, ensure_ascii=False))


def _casual(rng: Random, ask: str) -> str:
    """Sometimes type as people do: no capital letter, no question mark, a polite opening."""
    kind = rng.random()
    if kind < 0.08:
        return ask[0].lower() + ask[1:]
    if kind < 0.16:
        return ask[0].lower() + ask[1:].rstrip("?.!")
    if kind < 0.2:
        return ask.rstrip("?.!")
    if kind < 0.24:
        return rng.choice(("Hi! ", "Please answer: ", "Hello. ", "Question: ")) + ask
    return ask
