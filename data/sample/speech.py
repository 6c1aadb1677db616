"""Generates the titles of products, and what hosts say about them as a speech recognizer writes it.

A sentence seldom names its product, and some name another one: speech is a hint. README.md beside this file says how
much of one.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from .phrases import Language
from .shop import Product

UNHEARD = 0.04  # probability that the recognizer hears nothing in a clip
CALLS = (  # what the host calls the product in a clip, and its probability
    ("name", 0.35),
    ("short", 0.25),
    ("vague", 0.4),
)
IT = 0.4  # probability that a sentence says "it" all the same
KINDS = (  # of a sentence after the opening, each with its probability
    ("about", 0.35),
    ("uses", 0.15),
    ("others", 0.15),
    ("prices", 0.2),
    ("fillers", 0.15),
)
MISHEARD = 0.05  # share of English words and of Chinese characters
DROPPED = 0.4  # share of those that are not written at all


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What is said from one second to another, counted from the start of what is shown."""

    start: float
    end: float
    text: str


def title(product: Product, language: Language, seed: int) -> str:
    """Generates the shop's title for a product.

    Args:
        product: the product.
        language: that of the shop.
        seed: that of the simulation; a product has the same title in all its clips.
    """
    rng = np.random.default_rng([seed, *product.product_id.encode()])
    return _fill(_pick(language.titles, rng), _name(product, language), product, None, language, rng)


def asr(product: Product, others: Sequence[Product], language: Language, rng: np.random.Generator) -> str:
    """Generates a host's speech about a product, as a speech recognizer writes it.

    Now and then the recognizer hears nothing; the text is then `null`, as in LPR4M.

    Args:
        product: the product.
        others: other products of the shop.
        language: that of the livestream.
        rng: the only source of randomness.
    """
    if rng.random() < UNHEARD:
        return "null"
    return language.joint.join(_talk(product, others, int(rng.integers(3, 8)), language, rng))


def sentences(
    seconds: int, product: Product | None, others: Sequence[Product], language: Language, rng: np.random.Generator
) -> list[Sentence]:
    """Generates what a host says while something is shown.

    Args:
        seconds: how long it is shown.
        product: the product; None = nothing is presented, and the host only passes the time.
        others: other products of the shop.
        language: that of the livestream.
        rng: the only source of randomness.
    """
    times = []
    start = rng.uniform(0, 1)
    while start + 1 < seconds:
        end = min(start + rng.uniform(2, 5), seconds)
        times.append((start, end))
        start = end + rng.uniform(0, 1.5)
    texts = _talk(product, others, len(times), language, rng)
    return [Sentence(start, end, text) for (start, end), text in zip(times, texts, strict=True)]


def subtitles(sentences: Sequence[Sentence]) -> str:
    """The text of an SRT file."""
    blocks = []
    for number, sentence in enumerate(sentences, 1):
        times = " --> ".join(_clock(seconds) for seconds in (sentence.start, sentence.end))
        blocks.append(f"{number}\n{times}\n{sentence.text}\n")
    return "\n".join(blocks)


def _clock(seconds):
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def _talk(product, others, count, language, rng):
    """Draws sentences. If no product is shown, they are fillers; if there is no other product, none is mentioned."""
    allowed = [
        (kind, share) for kind, share in KINDS if (product or kind == "fillers") and (others or kind != "others")
    ]
    call = _draw(CALLS, rng)
    texts = []
    for number in range(count):
        kind = "openings" if product and number == 0 else _draw(allowed, rng)
        called = _called(product, call, language, rng)
        other = _pick(others, rng) if others else None
        text = _fill(_pick(getattr(language, kind), rng), called, product, other, language, rng)
        texts.append(_mishear(text, language, rng))
    return texts


def _called(product, call, language, rng):
    """Draws what a sentence calls the product."""
    if product is None or call == "vague" or rng.random() < IT:
        return _pick(language.vague, rng)
    return language.article + (_name(product, language) if call == "name" else _short(product, language))


def _fill(template, called, product, other, language, rng):
    price, number = int(rng.integers(9, 400)), int(rng.integers(1, 60))
    category = product.category if product else ""
    text = template.format(
        name=called.format(number=number),
        short=_short(product, language) if product else "",
        other=_name(other, language) if other else "",
        category=language.categories.get(category, category.lower()),
        quality=_pick(language.qualities, rng),
        brand=_pick(language.brands, rng),
        number=number,
        price=price,
        high=price * 2,
    )
    return " ".join(text.split())  # a tab or line break would end a column


def _name(product, language):
    return product.row[language.name_column].strip().lower()


def _short(product, language):
    """The product's kind: "sofa" of "sofa 2 seats", and the last two characters of a longer Chinese name."""
    name = _name(product, language)
    if not language.space:
        return name[-2:] if len(name) > 3 else name
    return re.split(r" - | with | and | on |, | \d", name)[0].split()[-1]


def _mishear(text: str, language: Language, rng: np.random.Generator) -> str:
    """Leaves out a few words, and writes others as they sound; in lowercase, as recognizers do."""
    heard = []
    for word in text.lower().split(language.space) if language.space else text.lower():
        if rng.random() >= MISHEARD:
            heard.append(word)
        elif rng.random() >= DROPPED:
            places = [place for place, letter in enumerate(word) if letter in language.sounds]
            place = _pick(places, rng) if places else len(word)
            heard.append(word[:place] + language.sounds.get(word[place : place + 1], "") + word[place + 1 :])
    return language.space.join(heard)


def _draw(choices, rng):
    shares = np.array([share for _, share in choices])
    return choices[int(rng.choice(len(choices), p=shares / shares.sum()))][0]


def _pick(choices, rng):
    return choices[int(rng.integers(len(choices)))]
