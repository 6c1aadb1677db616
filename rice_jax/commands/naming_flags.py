"""The flags for when a product is named, and for labeled clips, which several commands share."""

import argparse
import contextlib

from rice_jax.eval.calibration import NONE_PRIOR
from rice_jax.recognition.naming import SCORES, Naming


def add_naming_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags to a command's parser or to a group of its flags."""
    least = parser.add_mutually_exclusive_group()
    least.add_argument(
        "--min_confidence", type=share, metavar="P", help="name only products at least this likely, 0 to 1"
    )
    least.add_argument("--name_always", action="store_true", help="always name the most similar product")
    prior = "assumed share of clips with no product (default: %(default)s)"
    parser.add_argument("--none_prior", type=share, default=NONE_PRIOR, metavar="P", help=prior)
    parser.add_argument("--score", choices=SCORES, help="rank by mean or best frame (default: as calibrated)")


def add_interval(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for how many frames of a clip are read."""
    interval = "look at one frame every S seconds (default: %(default)g)"
    parser.add_argument("--interval_seconds", type=float, default=1.0, metavar="S", help=interval)


def add_max_wrong(parser: argparse._ActionsContainer) -> None:
    """Adds the flag for the share of wrong names at which a least confidence is suggested."""
    wrong = "share of wrong names below which to suggest a --min_confidence (default: %(default)s)"
    parser.add_argument("--max_wrong", type=share, default=0.1, metavar="P", help=wrong)


def naming_of(options: argparse.Namespace) -> Naming:
    """What the flags say."""
    return Naming(0.0 if options.name_always else options.min_confidence, options.none_prior, options.score)


def share(text: str) -> float:
    """Parses a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number, 0 to 1")
