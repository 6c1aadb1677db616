"""Items of products in several domains, as in ROPE: pairs of items to train on, and lists of items to test on."""

import json
from typing import NamedTuple

import numpy as np

from rice_jax.config import InputConfig
from rice_jax.input.source import Source, build_command, version_directory
from rice_jax.input.texts import ITEM, item_key
from rice_jax.types import DataError


class Items(NamedTuple):
    """The test items of a domain, without their pictures."""

    item_ids: list[str]  # in the order of `index` in `eval_batches`
    product_ids: list[str]  # the product of each item
    skipped: list[str]  # the product of each item that the builder left out


class ItemPairs:
    """Pairs of items of one product from two domains, as rows of a training set with one random pair per product.

    Products with items in only one domain are left out. A draw reads only the records of its two items. The object can
    be pickled, in 4 bytes per item and about 60 per product.

    Attributes:
        columns: features of the rows.
        name: name of the first domain.
        directory: directories of all domains, for errors.
    """

    columns = frozenset(
        {"clip_id", "image_id", "frames", "boxes", "image", "image_item", "image_text", "clip_item", "clip_text"}
    )

    def __init__(self, config: InputConfig):
        """Opens the domains of `config.domains`.

        Raises:
            FileNotFoundError: a domain is missing.
            DataError: a domain has no items of products, or no product has items in two domains.
        """
        names = config.domain_names
        self.name = names[0]
        self._sources = [Source(config.data_dir, name, ("item_id", "frames"), ITEM, split="train") for name in names]
        self.directory = " and ".join(str(source.directory) for source in self._sources)
        indices = [_read_index(config, name, "train") for name in names]
        found = np.concatenate([np.unique(index["product_id"]) for index in indices])
        products, num_domains = np.unique(found, return_counts=True)
        self._products = products[num_domains > 1]
        if not len(self._products):
            raise DataError(f"{self.directory}: found no product with items in two of them, expected some to pair")
        # Where the rows of each product begin and end in each domain: [P, domains].
        self._first, self._end = (
            np.stack([np.searchsorted(index["product_id"], self._products, side) for index in indices], axis=1)
            for side in ("left", "right")
        )
        self._rows = [np.ascontiguousarray(index["row"]) for index in indices]

    def __len__(self) -> int:
        return len(self._products)

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """Draws two domains that have the product and an item of each; all domains and items are equally likely.

        Args:
            index: number of the product.
            rng: generator of the draws.

        Returns:
            A row like those of a training set: `image`, a random picture of the first item; `frames`, all pictures of
            the second; `clip_id`, the second's id; `image_id`, the product's id; `boxes`, zeros; `index`; `image_item`,
            `image_text`, `clip_item`, `clip_text`: what names the texts of the first and the second item
            (`texts.item_key`), and the texts.
        """
        first, last = self._first[index], self._end[index]
        domains = rng.choice(np.flatnonzero(first < last), 2, replace=False)
        places = [rng.integers(first[domain], last[domain]) for domain in domains]
        seen, shown = (
            self._sources[domain][int(self._rows[domain][place])] for domain, place in zip(domains, places, strict=True)
        )
        texts = {}
        for role, domain, item in zip(("image", "clip"), domains, (seen, shown), strict=True):
            texts[f"{role}_item"] = item_key(self._sources[domain].name, item["item_id"].decode()).encode()
            texts[f"{role}_text"] = item.get("text", b"")
        return {
            "clip_id": shown["item_id"],
            "image_id": bytes(self._products[index]),
            "frames": shown["frames"],
            "boxes": np.zeros((len(shown["frames"]), 4), np.float32),
            "image": seen["frames"][rng.integers(len(seen["frames"]))],
            "index": index,
            **texts,
        }


def read_items(config: InputConfig, name: str) -> Items:
    """Reads the test items of a domain.

    Args:
        config: data sets.
        name: one of `config.domain_names`.

    Raises:
        FileNotFoundError: the data set is missing.
        DataError: it has no items of products, or no test items.
    """
    index = _read_index(config, name, "test")
    index = index[np.argsort(index["row"])]
    metadata = json.loads((version_directory(config.data_dir, name) / "metadata.json").read_text())
    named = [item.rpartition("/") for item in metadata["test"]["skipped"]]
    skipped = [product for product, slash, _ in named if slash]  # names without a slash lack the product
    return Items(_texts(index["item_id"]), _texts(index["product_id"]), skipped)


def _read_index(config: InputConfig, name: str, split: str) -> np.ndarray:
    path = version_directory(config.data_dir, name) / f"{split}_index.npy"
    if not path.exists():
        raise DataError(
            f"{path}: found no such file, expected items of products, as in ROPE, built for split {split!r}; change "
            f"config.data.domains, or build the data set again: {build_command(name)}"
        )
    with path.open("rb") as file:
        return np.load(file)


def _texts(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values.tolist()]
