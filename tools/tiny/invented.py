"""Tools nobody has heard of, so that the schema in the prompt is what decides.

Draws a verb, a noun and up to three arguments, and the ways a person would ask for them.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905

from __future__ import annotations

from random import Random

from tools.tiny import lexicon
from tools.tiny.toolkit import Kind, Slot, Value, plain_result

VERBS = (
    "create delete update get set find lock unlock start stop restart book cancel order track "
    "rename move copy open close show hide enable disable check scan print play pause convert "
    "translate schedule assign archive resize count rate tag merge split deploy ping buy sell"
).split()
NOUNS = (
    "user task event timer alarm door light room song note invoice order ticket table page job "
    "server queue photo video contact price stock flight hotel car device key file report team "
    "project branch issue record backup cluster node model lamp sensor robot package calendar"
).split()
ARGUMENTS = (
    "name id title label color size amount date day time user group owner target source kind "
    "level status count limit symbol key value room topic note reason priority language unit"
).split()


def _string(rng: Random) -> Value:
    draw = rng.choice(
        (
            lexicon.identifier,
            lexicon.person,
            lexicon.city,
            lexicon.file_path,
            lambda r: lexicon.text(r, 1, 3).rstrip(".!"),
        )
    )
    return draw(rng)


def _slot(rng: Random, name: str) -> Slot:
    about = (f"The {name}", f"{name} to use", "")
    pick = rng.random()
    if pick < 0.55:
        return Slot((name,), "string", about, _string)
    if pick < 0.8:
        return Slot((name,), rng.choice(("integer", "number")), about, lexicon.number)
    if pick < 0.87:
        return Slot((name,), "boolean", about, lambda r: r.random() < 0.5)
    choices = tuple(dict.fromkeys(lexicon.word(rng) for _ in range(rng.randint(2, 4))))
    return Slot((name,), "string", about, lambda r: r.choice(choices), choices)


def invent(rng: Random) -> Kind:
    """A new kind of tool with its schema and its requests."""
    plain = rng.random() < 0.75
    verb = rng.choice(VERBS) if plain else lexicon.syllables(rng)
    noun = rng.choice(NOUNS) if plain else lexicon.syllables(rng, 2, 3)
    count = rng.choices((0, 1, 2, 3), (1, 5, 4, 1))[0]
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(ARGUMENTS) if rng.random() < 0.7 else lexicon.syllables(rng, 1, 2)
        if name not in names:
            names.append(name)
    slots = tuple(_slot(rng, name) for name in names)
    upper = verb.capitalize()
    named = [f"{name} {{{index}}}" for index, name in enumerate(names)]
    asks = [f"{upper} the {noun}" + _with(named), f"Please {verb} the {noun}" + _with(named)]
    if count == 0:
        asks += [f"{upper} the {noun}.", f"Can you {verb} the {noun}?", f"{upper} {noun}"]
    if count >= 1:
        listed = ", ".join(named)
        asks += [f"{upper} the {noun} {{0}}" + _with(named[1:]), f"{upper} {noun} {listed}"]
        asks += [f"{upper} a {noun}: {', '.join(named)}"]
    about = (f"{upper} a {noun}.", f"{upper} the {noun}", f"{verb} {noun}", "")
    style = rng.random()
    title = f"{verb}_{noun}" if style < 0.85 else f"{verb}{noun.capitalize()}"
    return Kind(f"invented {title}", (title,), about, slots, tuple(asks), plain_result)


def _with(named: list[str]) -> str:
    if not named:
        return ""
    return " with " + (" and ".join(named) if len(named) < 3 else ", ".join(named))
