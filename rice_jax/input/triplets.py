"""Batches of pages, short videos, and live clips as COPE sees them, for training and for evaluation.

A page is its main picture, the first one. Of a video's frames, those in the middle of equal parts are taken.
"""

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np
from jaxtyping import Int

from rice_jax.config import InputConfig
from rice_jax.config.cope import DOMAINS, PAGE
from rice_jax.input import transforms
from rice_jax.input.items import ItemTriplets
from rice_jax.input.pipeline import fixed_batches, join, random_batches
from rice_jax.input.text_views import Kind, TokensView
from rice_jax.input.texts import ITEM, KINDS, tidy
from rice_jax.input.views import Example, FramesView, Part, RandomFramesView, TrainExample, View, open_source

TEXT = Kind("text", tuple(KINDS), *ITEM, tidy)


def triplet_batches(
    config: InputConfig, text_domains: tuple[str, ...], start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Makes endless training batches, with a new order and new triplets in each epoch.

    Args:
        config: what to read and how.
        text_domains: domains whose items have a text.
        start, process_index, process_count: as in `pipeline.train_batches`.

    Returns:
        Iterator over dicts of numpy arrays of b rows, each a product: for each of "page", "video" and "live" a dict
        with `video`, `frame_mask`, and, of `text_domains`, `text_ids` and `text_token_mask`, as the model takes them,
        and `real` bool [b], False = the product has no such item, and what stands in its place has no meaning;
        `product` int32 [b], the number of the product's class; `index` int32 [b].

    Raises:
        FileNotFoundError: a data set is missing.
        DataError: the batch does not divide by the number of processes, or is larger than the data set; later, an item
            has no pictures or one cannot be decoded.
    """
    views = [TripletView(config, text_domains)]
    return random_batches(config, ItemTriplets(config), views, start, process_index, process_count)


def item_batches(
    config: InputConfig,
    domain: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    with_text: bool,
) -> grain.DatasetIterator:
    """Makes batches of a domain's test items in their order, without randomness.

    Args:
        config: what to read and how.
        domain: one of `DOMAINS`.
        batch_size, process_index, process_count: as in `pipeline.eval_batches`.
        with_text: whether to read the items' texts.

    Returns:
        Iterator over dicts of numpy arrays: what `triplet_batches` has of a domain but `real`, and `index` and `mask`
        as in `pipeline.eval_batches`.
    """
    name = config.domain_names[DOMAINS.index(domain)]
    views = [FramesView(*_of_frames(config, domain)), *([ItemTextView(config)] if with_text else [])]
    source = open_source(config, name, views, split="test")
    return fixed_batches(config, source, views, range(len(source)), batch_size, process_index, process_count)


class TripletView(View):
    """An item of each domain, under the domain's name, and `product`, the number of the class."""

    def __init__(self, config: InputConfig, text_domains: tuple[str, ...]):
        self._views: Mapping[str, list[View]] = {
            domain: [
                RandomFramesView(*_of_frames(config, domain)),
                *([ItemTextView(config)] if domain in text_domains else []),
            ]
            for domain in DOMAINS
        }

    def train(self, example: TrainExample) -> Part:
        assert isinstance(example.source, ItemTriplets)
        triplet: Part = {"product": example.row["product"]}
        for number, (domain, views) in enumerate(self._views.items()):
            row = example.row["items"].get(number)
            if row is None:
                item = Example(source=example.source, index=example.index, row={})
                triplet[domain] = join([view.evaluate(item) for view in views]) | {"real": np.bool_(False)}
                # A video without a frame would have no feature.
                triplet[domain]["frame_mask"] = np.arange(len(triplet[domain]["frame_mask"])) < 1
                continue
            drawn = TrainExample(
                source=example.source.sources[number],
                index=example.index,
                row=row,
                rng=example.rng,
                max_hue=example.max_hue,
            )
            drawn.hue = example.hue  # of the product, so that it is the same in its three domains
            triplet[domain] = join([view.train(drawn) for view in views]) | {"real": np.bool_(True)}
        return triplet


class ItemTextView(TokensView):
    """The tokens of an item's text, `text_ids` and `text_token_mask`; a text that is missing has none."""

    def __init__(self, config: InputConfig):
        """Checks the tokenizer.

        Raises:
            DataError: there is none.
        """
        super().__init__(config, TEXT)

    def evaluate(self, example: Example) -> Part:
        part = super().evaluate(example)
        has_text = part.pop("text_mask")
        return part | {"text_token_mask": part["text_token_mask"] & has_text}


def _of_frames(config: InputConfig, domain: str) -> tuple:
    """The arguments of the view of a domain's pictures."""
    if domain == PAGE:
        return dataclasses.replace(config, num_frames=1), None, "item_id", _first
    return config, None, "item_id", transforms.middle_frames


def _first(count: int, num_frames: int) -> Int[np.ndarray, " 1"]:
    """The main picture of a page."""
    return np.zeros(1, int)
