"""The flags for when a product is named, which several commands share."""

import argparse
import contextlib

from rice_jax.recognition.naming import SCORES, Naming


def add_naming_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a command's parser, as a group."""
    group = parser.add_argument_group("naming")
    least = group.add_mutually_exclusive_group()
    least.add_argument(
        "--min_confidence",
        type=share,
        metavar="P",
        help="name a product from this probability on, 0 to 1 (default: if any is likelier shown than not)",
    )
    least.add_argument("--name_always", action="store_true", help="always name the most similar product")
    group.add_argument(
        "--none_prior",
        type=share,
        default=0.5,
        metavar="P",
        help="share of clips without a product (default: 0.5)",
    )
    group.add_argument(
        "--score",
        choices=SCORES,
        help="rank by the mean or the best frame (default: frames if the index is calibrated for it)",
    )


def naming_of(options: argparse.Namespace) -> Naming:
    """What the flags say."""
    return Naming(0.0 if options.name_always else options.min_confidence, options.none_prior, options.score)


def share(text: str) -> float:
    """Parses a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number, 0 to 1")
