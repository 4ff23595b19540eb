"""Random values for the corpus: names, paths, numbers, texts.

Every public draw excludes the held-out values by construction: a value that the evaluation
owns is drawn again. Most values are made up letter by letter, so that copying one into an
argument has to be learnt as copying and cannot be learnt by heart.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905

from __future__ import annotations

import string
from collections.abc import Callable
from functools import wraps
from random import Random
from typing import ParamSpec

from tools.tiny.facts import capitals, is_held_out, is_held_out_pair

P = ParamSpec("P")

WORDS = (
    "the a my your our this that new old red blue green big small first last next good bad "
    "late early today tomorrow tonight now soon here there home work school office kitchen "
    "garden street river mountain sea sky sun moon star rain snow wind cat dog bird horse fish "
    "tree flower bread milk coffee tea apple cheese soup cake dinner lunch breakfast book paper "
    "letter phone train bus car bike boat plane ticket key door window table chair lamp clock "
    "music film game team party meeting report test build server model file code bug release "
    "price money bank shop market doctor friend mother father sister brother boss child people "
    "is are was will can must should needs has have go come bring take send call meet see find "
    "buy sell open close start stop read write run fix check clean wait help ask tell make "
    "at in on by with for to from of and or not very more less all two three five ten "
    "please sorry ready done happy tired cold warm fast slow easy hard free full empty "
    "morning evening night week month year monday sunday history science weather news recipe "
    "best cheap near how what why when where guide rules python linux docker kernel driver "
    "memory cache token batch queue worker gateway cluster backup deploy config update error "
    "file files folder text number name time city message answer question user tool path list "
    "search add sum tiny model capital helpful about current product web demo run before key "
    "many careful access location language command content says know need return result short"
).split()

CITIES = [
    *(
        "London Barcelona Milan Naples Munich Hamburg Cologne Frankfurt Lyon Marseille Nice Lille "
        "Zurich Basel Antwerp Rotterdam Manchester Liverpool Edinburgh Belfast Krakow Prague Brno "
        "Bratislava Zagreb Split Belgrade Riga Vilnius Tallinn Minsk Istanbul Bursa "
        "Alexandria Tunis "
        "Algiers Lagos Accra Dakar Kampala Lusaka Durban Dubai Doha Tehran Karachi Lahore Delhi "
        "Chennai Kolkata Dhaka Kabul Manila Cebu Seoul Busan Taipei Nagoya Sapporo Kobe "
        "Perth Sydney "
        "Brisbane Auckland Chicago Miami Dallas Austin Atlanta Phoenix Detroit Vancouver Montreal "
        "Calgary Bogota Medellin Quito Caracas Managua Panama Kingston Moscow Kazan Tbilisi Baku"
    ).split(),
    *("New York", "Los Angeles", "San Francisco", "Sao Paulo", "Rio de Janeiro"),
]

PEOPLE = (
    "Anna Bob Clara David Emma Frank Grace Henry Ida Jack Karl Laura Max Nina Oscar Paula Robert "
    "Sara Tom Ute Victor Wendy Yara Zoe Alice Ben Carol Dan Eve Felix Gina Hans Ivan Julia"
).split()

SKIES = "sunny rain snow cloudy fog windy clear storm overcast hail drizzle hot".split()
EXTENSIONS = "txt md py json toml csv log yaml rs c js html sh cfg ini ts go xml".split()
FOLDERS = (
    "src docs tests data home user etc var log tmp build config assets lib bin opt srv notes "
    "images project app core tools scripts work"
).split()

ONSETS = (
    "b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl pr sk sl st tr th sh ch qu bl".split()
)
VOWELS = "a e i o u a e i o u ai ea ee ou oa io ia y".split()
CODAS = ["", "", "", "", *"n r s l t m k d x nd rt st lm ck ng th sk rn ff".split()]
ENDINGS = "ville ford ton burg ia berg mere dale port wick by ham stad ov a o en ar is um".split()


PIECES = [
    piece
    for words in (
        *(WORDS, CITIES, PEOPLE, SKIES, FOLDERS, ENDINGS),
        *(list(capitals()), list(capitals().values())),
        "additional properties required parameters function description arguments object "
        "integer boolean string celsius fahrenheit encoding directory recipient english answers "
        "questions briefly relative markdown instructions assistant multiply output failed "
        "concise sentence would could should running language priority friendly repeat hello "
        "goodbye welcome create delete translate schedule calendar package contact invoice".split(),
    )
    for piece in " ".join(words).split()
    if len(piece) > 2
]


def _fresh(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw again until the value is not one of the evaluation's."""

    @wraps(draw)
    def redraw(*args: P.args, **kwargs: P.kwargs) -> str:
        while True:
            value = draw(*args, **kwargs)
            if not is_held_out(value):
                return value

    return redraw


def syllables(rng: Random, low: int = 1, high: int = 3) -> str:
    """A pronounceable lower-case word that most likely nobody has written before."""
    count = rng.randint(low, high)
    parts = (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(count))
    return "".join(parts)


def scramble(rng: Random, low: int = 3, high: int = 8) -> str:
    """Letters without any order: nothing but copying can reproduce them."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(low, high)))


def blend(rng: Random) -> str:
    """The head of one word on the tail of another.

    Learnt words leave fragments in the vocabulary that no syllable contains ("ould", "den").
    Here they all occur, so none is met for the first time in somebody's real name.
    """
    head, tail = rng.choice(PIECES), rng.choice(PIECES)
    return (head[: rng.randint(1, 6)] + tail[-rng.randint(2, 6) :]).lower()


def coined(rng: Random, low: int = 1, high: int = 3) -> str:
    """A made-up word of either sort."""
    return blend(rng) if rng.random() < 0.4 else syllables(rng, low, high)


@_fresh
def word(rng: Random) -> str:
    """One lower-case word: mostly English, otherwise made up."""
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(WORDS)
    return coined(rng) if kind < 0.92 else scramble(rng)


@_fresh
def identifier(rng: Random) -> str:
    """A name as programs have them: one or two parts, perhaps digits."""
    parts = [word(rng) for _ in range(rng.choice((1, 1, 2)))]
    tail = str(rng.randint(0, 99)) if rng.random() < 0.2 else ""
    return rng.choice("_-_").join(parts) + tail


@_fresh
def city(rng: Random) -> str:
    """A place, real or not, sometimes of two words or in lower case."""
    kind = rng.random()
    if kind < 0.15:
        name = rng.choice(CITIES)
    elif kind < 0.3:
        name = rng.choice(list(capitals().values()))
    elif kind < 0.62:
        name = (coined(rng, 1, 2) + rng.choice(ENDINGS)).capitalize()
    elif kind < 0.84:
        name = coined(rng, 2, 3).capitalize()
    elif kind < 0.92:
        name = f"{coined(rng, 1, 2).capitalize()} {coined(rng, 1, 2).capitalize()}"
    else:
        name = scramble(rng, 4, 8).capitalize()
    return name.lower() if rng.random() < 0.06 else name


@_fresh
def person(rng: Random) -> str:
    """Whom to write to: a first name, a lower-case handle or an address."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(PEOPLE)
    if kind < 0.75:
        return coined(rng, 1, 3).capitalize()
    if kind < 0.88:
        return identifier(rng)
    return f"{word(rng)}@{word(rng)}.{rng.choice(('com', 'org', 'net'))}"


@_fresh
def file_name(rng: Random) -> str:
    """A file's base name with its extension."""
    stem = identifier(rng)
    if rng.random() < 0.08:
        stem = stem.upper()
    return f"{stem}.{rng.choice(EXTENSIONS)}"


@_fresh
def kin(rng: Random, path: str) -> str:
    """A path that shares its folder, its name or its stem with another one."""
    folder, slash, name = path.rpartition("/")
    pick = rng.random()
    if pick < 0.4:
        return folder + slash + file_name(rng)
    if pick < 0.7:
        return "/".join([*_folders(rng, 1, 2), name])
    return f"{folder}{slash}{name.rpartition('.')[0]}.{rng.choice(EXTENSIONS)}"


def _folders(rng: Random, low: int, high: int) -> list[str]:
    count = rng.randint(low, high)
    return [rng.choice(FOLDERS) if rng.random() < 0.4 else identifier(rng) for _ in range(count)]


@_fresh
def file_path(rng: Random) -> str:
    """A path to a file: absolute, relative, or below the home folder."""
    start = rng.choice(("/", "/", "", "", "./", "~/", "../"))
    return start + "/".join([*_folders(rng, 0, 3), file_name(rng)])


@_fresh
def folder_path(rng: Random) -> str:
    """A path to a folder."""
    start = rng.choice(("/", "/", "", "", "./", "~/"))
    if rng.random() < 0.08:
        return rng.choice((".", "/", "~", "..", "/tmp", "/etc"))
    return start + "/".join(_folders(rng, 1, 3)) + rng.choice(("", "", "", "/"))


@_fresh
def text(rng: Random, low: int = 1, high: int = 7) -> str:
    """A message of a few words, perhaps with a capital letter, a comma or a full stop."""
    words = [word(rng) for _ in range(rng.randint(low, high))]
    if rng.random() < 0.08:
        words.append(str(rng.randint(0, 999)))
    if len(words) > 3 and rng.random() < 0.1:
        words[1] += ","
    joined = " ".join(words)
    if rng.random() < 0.35:
        joined = joined[0].upper() + joined[1:]
    return joined + (rng.choice((".", "!", "")) if rng.random() < 0.2 else "")


def number(rng: Random) -> int:
    """A whole number of one to four digits, each length as likely."""
    digits = rng.choice((1, 2, 2, 3, 3, 4))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def number_pair(rng: Random) -> tuple[int, int]:
    """Two numbers to add; never a held-out pair."""
    while True:
        a, b = number(rng), number(rng)
        if not is_held_out_pair(a, b):
            return a, b
