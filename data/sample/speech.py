"""Generates titles and speech about a product from its name and category."""

import numpy as np

from .shop import Product

_TITLES = (
    "{name}, new season, for your {category}",
    "{quality} {name} | {category}",
    "{category} {name} {quality} and easy to care for",
    "Livestream offer: {quality} {name}",
    "{name} by our own workshop, {quality}",
)
_QUALITIES = ("classic", "modern", "solid", "light", "handmade", "premium", "compact", "large", "simple", "elegant")
_OPENINGS = (
    "okay everyone, the next one",
    "look at this, my friends",
    "link number {number}, who was waiting for it",
    "welcome to all who just came in",
    "so many of you asked for it",
)
_MIDDLES = (
    "this {name} is really {quality}",
    "here is the {name} for your {category}",
    "I turn it around so you can see the {name} from all sides",
    "we have this {name} at home as well and it is {quality}",
    "other shops have a {name} too but not one this {quality}",
)
_CLOSINGS = (
    "only {price} today and shipping is free",
    "normally {high}, now {price}, only in the live",
    "three, two, one, it is on the shelf",
    "we have {number} left, be quick",
    "send it back within a week if it does not fit your {category}",
)


def title(product: Product, rng: np.random.Generator) -> str:
    """Generates the shop's title for a product.

    Args:
        product: the product.
        rng: the only source of randomness.
    """
    return _fill(_pick(_TITLES, rng), product, rng)


def asr(product: Product, rng: np.random.Generator) -> str:
    """Generates a host's speech about a product, as a speech recognizer writes it.

    Now and then the recognizer hears nothing; the text is then `null`, as in LPR4M.
    """
    if rng.random() < 0.04:
        return "null"
    parts = [_pick(_OPENINGS, rng)]
    parts += [_pick(_MIDDLES, rng) for _ in range(int(rng.integers(1, 4)))]
    parts.append(_pick(_CLOSINGS, rng))
    return _fill(" ".join(parts), product, rng).lower()


def _fill(text, product, rng):
    price = int(rng.integers(9, 400))
    return text.format(
        name=_clean(product.name),
        category=_clean(product.category).lower(),
        quality=_pick(_QUALITIES, rng),
        number=int(rng.integers(1, 60)),
        price=price,
        high=price * 2,
    )


def _clean(text):
    return " ".join(text.split())  # a tab or line break would end a column


def _pick(choices, rng):
    return choices[int(rng.integers(len(choices)))]
