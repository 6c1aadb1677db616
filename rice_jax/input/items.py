"""Items of products in several domains, as in ROPE: pairs or triplets to train on, and lists of items to test on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rice_jax.config import DataConfig, InputConfig
from rice_jax.input.source import Source, build_command, version_directory
from rice_jax.input.texts import ITEM, item_key
from rice_jax.types import DataError


class Items(NamedTuple):
    """The test items of a domain, without their pictures."""

    item_ids: list[str]  # in the order of `index` in `eval_batches`
    product_ids: list[str]  # the product of each item
    skipped: list[str]  # the product of each item that the builder left out


class ProductItems:
    """The training items of products that have some in two domains or more; other products are left out.

    A draw reads only the records of its items. The object can be pickled, in 4 bytes per item and about 60 per product.

    Attributes:
        name: name of the first domain.
        directory: directories of all domains, for errors.
        num_left_out: products with items in only one domain.
    """

    def __init__(self, config: InputConfig):
        """Opens the domains of `config.domains`.

        Raises:
            FileNotFoundError: a domain is missing.
            DataError: a domain has no items of products, or no product has items in two domains.
        """
        names = config.domain_names
        self.name = names[0]
        features = "item_id", "frames"
        self.sources = [Source(config.data_dir, name, features, ITEM, split="train") for name in names]
        self.directory = " and ".join(str(source.directory) for source in self.sources)
        indices = [_read_index(config, name, "train") for name in names]
        found = np.concatenate([np.unique(index["product_id"]) for index in indices])
        products, num_domains = np.unique(found, return_counts=True)
        self._products = products[num_domains > 1]
        self.num_left_out = len(products) - len(self._products)
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

    @property
    def product_ids(self) -> list[str]:
        """The id of each product, in their order as bytes."""
        return _texts(self._products)

    def domains_of(self, index: int) -> Int[np.ndarray, " n"]:
        """The numbers of the domains that have items of a product, ascending."""
        return np.flatnonzero(self._first[index] < self._end[index])

    def draw_item(self, index: int, domain: int, rng: np.random.Generator) -> dict:
        """Draws an item of a product from a domain that has some; all are equally likely."""
        place = rng.integers(self._first[index, domain], self._end[index, domain])
        return self.sources[domain][int(self._rows[domain][place])]


class ItemPairs(ProductItems):
    """Pairs of items of one product from two domains, as rows of a training set with one random pair per product.

    Attributes:
        columns: features of the rows.
    """

    columns = frozenset(
        {"clip_id", "image_id", "frames", "boxes", "image", "image_item", "image_text", "clip_item", "clip_text"}
    )

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
        domains = rng.choice(self.domains_of(index), 2, replace=False).tolist()
        seen, shown = (self.draw_item(index, domain, rng) for domain in domains)
        texts = {}
        for role, domain, item in zip(("image", "clip"), domains, (seen, shown), strict=True):
            texts[f"{role}_item"] = item_key(self.sources[domain].name, item["item_id"].decode()).encode()
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


class ItemTriplets(ProductItems):
    """An item of each domain that has the product, as rows of a training set with one random triplet per product.

    Attributes:
        classes: the number of each product's class.
    """

    def __init__(self, config: InputConfig):
        """Opens the domains of `config.domains`, and numbers the products as `list_classes` does.

        Raises:
            FileNotFoundError: a domain is missing.
            DataError: as in `ProductItems`, or `config.products` is damaged.
        """
        super().__init__(config)
        products = self.product_ids
        number = {product: number for number, product in enumerate(list_classes(config.products, products))}
        self.classes = np.array([number[product] for product in products], np.int32)

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """Draws an item of each domain that has the product; all items of a domain are equally likely.

        Args:
            index: number of the product.
            rng: generator of the draws.

        Returns:
            `items`, {number of a domain: a row of it}; `product`, the number of the product's class.
        """
        items = {domain: self.draw_item(index, domain, rng) for domain in self.domains_of(index).tolist()}
        return {"items": items, "product": self.classes[index]}


def list_classes(path: str, products: Sequence[str]) -> list[str]:
    """The product of each class: those of a file in its order, then the others, so that no number ever changes.

    Args:
        path: file with a product on each line; where there is none, all products are others.
        products: of the data, in any order.

    Raises:
        DataError: a line of the file is empty or repeats an earlier one.
    """
    known: dict[str, None] = {}
    try:
        text = Path(path).read_text(encoding="utf-8") if path and Path(path).exists() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found bytes that are not UTF-8 ({error}); restore the file") from error
    for line, product in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        if not product or product in known:
            raise DataError(
                f"{path}:{line}: found {product!r}, expected the id of a product, each once; restore the file, since "
                "its lines number the rows of the class matrix"
            )
        known[product] = None
    return [*known, *sorted(set(products) - set(known))]


def read_items(config: DataConfig, name: str) -> Items:
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


def _read_index(config: DataConfig, name: str, split: str) -> np.ndarray:
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
