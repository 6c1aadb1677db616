"""Items of products in several domains, as ROPE has them: what there is, and pairs of them to train on."""

import json
from typing import NamedTuple

import numpy as np

from rice_jax.config import InputConfig
from rice_jax.input.source import Source, build_command, version_directory
from rice_jax.types import DataError


class Items(NamedTuple):
    """The test items of a domain, without their pictures."""

    item_ids: list[str]  # in the order of the rows that `eval_batches` numbers
    product_ids: list[str]  # parallel
    skipped: list[str]  # products of items that the builder had to leave out, as often as there are such items


class ItemPairs:
    """Pairs of items of one product from two domains, as rows of a training set; one for each product, drawn anew.

    A product is there if it has items in two domains or more. A pair can be drawn for any of them without reading
    another record; the object can be sent to another process, with 4 bytes an item and some 60 a product.
    """

    def __init__(self, config: InputConfig):
        """Opens the domains of `config.domains`.

        Raises:
            FileNotFoundError: one of them is not there.
            DataError: one has no items of products, or no product is in two of them.
        """
        names = config.domain_names
        self.name = names[0]
        self._sources = [Source(config.data_dir, name, ("item_id", "frames"), split="train") for name in names]
        self.directory = " and ".join(str(source.directory) for source in self._sources)
        indices = [_read_index(config, name, "train") for name in names]
        found = np.concatenate([np.unique(index["product_id"]) for index in indices])
        products, num_domains = np.unique(found, return_counts=True)
        self._products = products[num_domains > 1]
        if not len(self._products):
            raise DataError(f"{self.directory}: found no product that has items in two of them, expected some to pair")
        # Of each product and domain, where the product's rows begin and end: [P, domains].
        self._first, self._end = (
            np.stack([np.searchsorted(index["product_id"], self._products, side) for index in indices], axis=1)
            for side in ("left", "right")
        )
        self._rows = [np.ascontiguousarray(index["row"]) for index in indices]

    def __len__(self) -> int:
        return len(self._products)

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """Draws two domains, each pair of them that has the product being equally likely, and an item of each.

        Args:
            index: of the product.
            rng: random numbers.

        Returns:
            What a row of a training set holds: `image`, a picture of the first item, any equally likely; `frames`, all
            of the second; `clip_id`, the second's id; `image_id`, the product's id, by which pairs of one product are
            known; `boxes`, none; `index`.
        """
        first, last = self._first[index], self._end[index]
        domains = rng.choice(np.flatnonzero(first < last), 2, replace=False)
        places = [rng.integers(first[domain], last[domain]) for domain in domains]
        seen, shown = (
            self._sources[domain][int(self._rows[domain][place])] for domain, place in zip(domains, places, strict=True)
        )
        return {
            "clip_id": shown["item_id"],
            "image_id": bytes(self._products[index]),
            "frames": shown["frames"],
            "boxes": np.zeros((len(shown["frames"]), 4), np.float32),
            "image": seen["frames"][rng.integers(len(seen["frames"]))],
            "index": index,
        }


def read_items(config: InputConfig, name: str) -> Items:
    """Reads which items there are to test on.

    Args:
        config: where the data sets are.
        name: one of `config.domain_names`.

    Raises:
        FileNotFoundError: the data set is not there.
        DataError: it has no items of products, or none to test on.
    """
    index = _read_index(config, name, "test")
    index = index[np.argsort(index["row"])]
    metadata = json.loads((version_directory(config.data_dir, name) / "metadata.json").read_text())
    named = [item.rpartition("/") for item in metadata["test"]["skipped"]]
    skipped = [product for product, slash, _ in named if slash]  # without one its product is not known
    return Items(_texts(index["item_id"]), _texts(index["product_id"]), skipped)


def _read_index(config: InputConfig, name: str, split: str) -> np.ndarray:
    path = version_directory(config.data_dir, name) / f"{split}_index.npy"
    if not path.exists():
        raise DataError(
            f"{path}: found no such file, expected items of products, as of ROPE, built for {split}; name others in "
            f"config.data.domains, or build the data set again: {build_command(name)}"
        )
    with path.open("rb") as file:
        return np.load(file)


def _texts(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values.tolist()]
