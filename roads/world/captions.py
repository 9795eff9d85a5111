"""Captions: what a person might write who wants, or sees, this image.

A caption names some of the attributes and leaves the others open; an attribute that is
not named varies freely in the data, so leaving it out of a prompt means "any".  Absence
is worth a word now and then ("without streetlights", "an empty road"), so that prompts
can also ask for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from roads.world.scene import CARS, OBJECTS, PLACES, WEATHERS, Scene

# Each phrasing is (before the noun, after the noun): "a snowy road", "a road in the snow".
WEATHER_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "sunny": (("sunny", ""), ("sunny", ""), ("", "on a sunny day"), ("", "in sunny weather")),
    "snowy": (
        ("snowy", ""),
        ("snowy", ""),
        ("", "in the snow"),
        ("", "in winter"),
        ("snow covered", ""),
    ),
    "rainy": (
        ("rainy", ""),
        ("rainy", ""),
        ("", "in the rain"),
        ("wet", ""),
        ("", "on a rainy day"),
    ),
    "night": (("", "at night"), ("", "at night"), ("dark", ""), ("", "by night")),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "forest": ("in the forest", "through the forest", "in the woods", "in a forest"),
    "mountains": ("in the mountains", "through the mountains", "in front of mountains"),
    "desert": ("in the desert", "through the desert", "in a desert"),
    "city": ("in the city", "through the city", "in a city", "in town"),
}
PLACE_ADJECTIVES = {
    "forest": "forest", "mountains": "mountain", "desert": "desert", "city": "city",
}  # fmt: skip
VIEWS = ("", "", "", "", "a photo of", "a picture of", "a dashcam view of", "a dashcam photo of")
NOUNS = ("road", "road", "road", "street", "highway")
PRESENT: dict[str, tuple[str, ...]] = {
    "streetlights": ("streetlights", "street lamps", "streetlights"),
    "clouds": ("clouds", "clouds in the sky", "a cloudy sky"),
    "house": ("a house", "a house by the road", "a little house"),
}
ABSENT: dict[str, tuple[str, ...]] = {
    "car": ("no car", "no cars"),
    "streetlights": ("no streetlights", "no street lamps"),
    "clouds": ("no clouds", "a clear sky"),
    "house": ("no house", "no houses"),
    "orb": ("no sun",),
}


def caption(
    scene: Scene,
    rng: np.random.Generator,
    unseen: Collection[str] = frozenset(),
    present: float = 0.7,
    absent: float = 0.2,
) -> str:
    """One of many captions of `scene`.

    Weather and place are named four times out of five, an object that is there with odds
    `present`, an object that is not there with odds `absent`.  `unseen` are objects that are
    there but cannot be made out in the image, like a sun behind a cloud: no caption says
    a word about them, neither that they are there nor that they are not.
    """

    def chance(odds: float) -> bool:
        return bool(rng.random() < odds)

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    before, after = [], []
    if chance(0.8):
        options = WEATHER_WORDS[scene.weather]
        adjective, phrase = options[int(rng.integers(len(options)))]
        before.append(adjective)
        after.append(phrase)
    noun = pick(NOUNS)
    if chance(0.8):
        form = rng.random()
        if form < 0.12:  # "a snowy city"
            noun = scene.place
        elif form < 0.30:  # "a snowy desert road"
            noun = PLACE_ADJECTIVES[scene.place] + " " + noun
        else:
            after.insert(0 if chance(0.5) else len(after), pick(PLACE_WORDS[scene.place]))
    things = named_things(scene, rng, unseen, present, absent)
    if scene.car == "none" and chance(0.12):
        before.insert(0, "empty")
    words = " ".join(word for word in (*before, noun) if word)
    article = "an" if words[0] in "aeiou" else "a"
    if noun == "mountains":  # the one plural
        article = ""
    text = " ".join(word for word in (pick(VIEWS), article, words, *after) if word)
    if things:
        rng.shuffle(things)
        joined = " and ".join(things) if chance(0.6) else ", ".join(things)
        text += (" with " if chance(0.7) else ", ") + joined
    return text


def named_things(
    scene: Scene, rng: np.random.Generator, unseen: Collection[str], present: float, absent: float
) -> list[str]:
    """What a caption says about the objects of the scene."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    phrases = dict(PRESENT)
    night = scene.weather == "night"
    phrases["car"] = (f"a {scene.car} car",) * 5 + ("a car",)
    phrases["orb"] = ("the moon", "a full moon") if night else ("the sun", "the sun in the sky")
    missing = dict(ABSENT)
    if night:
        missing["orb"] = ("no moon",)
    things = []
    for thing in ("car", "streetlights", "clouds", "house", "orb"):
        if thing in unseen:
            continue
        if scene.has(thing) and rng.random() < present:
            things.append(pick(phrases[thing]))
        elif not scene.has(thing) and rng.random() < absent:
            things.append(pick(missing[thing]))
    return things


def full_caption(scene: Scene, unseen: Collection[str] = frozenset()) -> str:
    """The caption that names everything that there is, but `unseen`, in one fixed phrasing."""
    weather = {"night": ""}.get(scene.weather, scene.weather + " ")
    text = f"a {weather}road {PLACE_WORDS[scene.place][0]}"
    if scene.weather == "night":
        text += " at night"
    named = [name for name in OBJECTS if scene.has(name) and name not in unseen]
    things = [PRESENT[name][0] for name in ("streetlights", "clouds", "house") if name in named]
    if "car" in named:
        things.insert(0, f"a {scene.car} car")
    if "orb" in named:
        things.append("the moon" if scene.weather == "night" else "the sun")
    return text + (" with " + " and ".join(things) if things else "")


SAYS: tuple[tuple[str, str, str | bool], ...] = (  # pattern, attribute, value
    (r"\bsunny\b", "weather", "sunny"),
    (r"\b(snowy|snow|winter)\b", "weather", "snowy"),
    (r"\b(rainy|rain|wet)\b", "weather", "rainy"),
    (r"\b(night|dark)\b", "weather", "night"),
    (r"\b(forest|woods)\b", "place", "forest"),
    (r"\b(mountain|mountains)\b", "place", "mountains"),
    (r"\bdesert\b", "place", "desert"),
    (r"\b(city|town)\b", "place", "city"),
    *((rf"\b{colour} car\b", "car", colour) for colour in CARS[1:]),
    (r"\ba car\b", "car", "any"),
    (r"\b(no cars?|empty)\b", "car", "none"),
    (r"\bno (streetlights|street lamps)\b", "streetlights", False),
    (r"\b(streetlights|street lamps)\b", "streetlights", True),
    (r"\b(no clouds|clear sky)\b", "clouds", False),
    (r"\b(clouds|cloudy)\b", "clouds", True),
    (r"\bno houses?\b", "house", False),
    (r"\bhouse\b", "house", True),
    (r"\bno (sun|moon)\b", "orb", False),
    (r"\b(sun|moon)\b", "orb", True),
)


def read_caption(text: str) -> dict[str, str | bool]:
    """Attribute -> what a caption of the world says about it; the first pattern that fits."""
    asked: dict[str, str | bool] = {}
    for pattern, attribute, value in SAYS:
        if attribute not in asked and re.search(pattern, text):
            asked[attribute] = value
    return asked


def vocabulary() -> list[str]:
    """Every word that a caption can contain, in alphabetical order."""
    phrases: list[str] = ["a", "an", "and", "with", "empty", *VIEWS, *NOUNS, "car", "the moon"]
    phrases += ["a full moon", "no moon", "the sun in the sky", *WEATHERS, *PLACES, *CARS[1:]]
    phrases += PLACE_ADJECTIVES.values()
    phrases += [part for pairs in WEATHER_WORDS.values() for pair in pairs for part in pair]
    tables = (PLACE_WORDS, PRESENT, ABSENT)
    phrases += [phrase for table in tables for options in table.values() for phrase in options]
    return sorted({word for phrase in phrases for word in phrase.split()})
