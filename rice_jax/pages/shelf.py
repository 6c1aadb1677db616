"""The pictures of product items for a page, read from their data sets when the page needs them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rice_jax.input.items import Items
from rice_jax.input.source import Source
from rice_jax.input.transforms import sample_frames
from rice_jax.pages.album import Pictures, thumbnail
from rice_jax.types import DataError


class Shelf(Pictures):
    """Reads test items of several domains."""

    def __init__(self, data_dir: str, items: Mapping[str, Items], names: Mapping[str, str], num_frames: int):
        """Opens the data sets.

        Args:
            data_dir: as in `DataConfig`.
            items: {domain as in `DataConfig.domains`: its test items}.
            names: {domain: its name on the page}.
            num_frames: pictures of an item that are shown at most, spread evenly.

        Raises:
            FileNotFoundError: a data set is missing.
        """
        super().__init__()
        self._num_frames = num_frames
        self._sources = {
            names[domain]: Source(data_dir, domain, ("frames",), optional=("text",), split="test") for domain in items
        }
        self._rows = {names[domain]: {item: row for row, item in enumerate(items[domain].item_ids)} for domain in items}
        self._products: dict[str, tuple[str, str]] = {}  # the first item of each product
        for domain, of_domain in items.items():
            for item, product in zip(of_domain.item_ids, of_domain.product_ids, strict=True):
                self._products.setdefault(product, (names[domain], item))

    def item(self, domain: str, item: str) -> dict[str, Any]:
        """Reads an item as a query: its `id`, `text` ("" = unknown), and `pictures`.

        Raises:
            DataError: the domain has no such item.
        """
        row, stored = self._read(domain, item)
        chosen = sample_frames(len(stored["frames"]), self._num_frames).tolist()
        pictures = [self._add(domain, row, stored, place) for place in chosen]
        return {"id": item, "text": _text(stored), "pictures": pictures}

    def answer(self, domain: str, item: str) -> dict[str, Any]:
        """Reads an item as an answer: its `id`, `text`, and its middle picture, `thumbnail`.

        Raises:
            DataError: the domain has no such item.
        """
        row, stored = self._read(domain, item)
        middle = self._add(domain, row, stored, (len(stored["frames"]) - 1) // 2)
        return {"id": item, "text": _text(stored), "thumbnail": middle}

    def product(self, product: str) -> dict[str, Any]:
        """Reads what stands for a product, the first picture of an item of the first domain that has one."""
        domain, item = self._products[product]
        row, stored = self._read(domain, item)
        return {"id": product, "text": _text(stored), "thumbnail": self._add(domain, row, stored, 0)}

    def _read(self, domain: str, item: str) -> tuple[int, dict]:
        row = self._rows[domain].get(item)
        if row is None:
            raise DataError(
                f"{self._sources[domain].directory}: found no item {item}, expected that of the evaluation: the data "
                "set is not the one that was evaluated; evaluate again (rice eval)"
            )
        return row, self._sources[domain][row]

    def _add(self, domain: str, row: int, stored: dict, place: int) -> Any:
        return self.add((domain, row, place), partial(thumbnail, stored["frames"][place]))


def _text(stored: dict) -> str:
    return stored.get("text", b"").decode()
