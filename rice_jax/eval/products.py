"""Products, each of which has one or several images in a gallery."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Products(NamedTuple):
    """Products in the order of their first images, each with the rows of all its images."""

    rows: Int[np.ndarray, " g"]  # of the images; those of a product are neighbors
    edges: Int[np.ndarray, " p1"]  # place of each product's first row, and the number of rows
    numbers: Int[np.ndarray, " p"]  # of the products among those of all galleries

    def images(self, product: int) -> Int[np.ndarray, " i"]:
        """The rows of a product's images."""
        return self.rows[self.edges[product] : self.edges[product + 1]]

    def take(self, kept: Bool[np.ndarray, " p"]) -> "Products":
        """Selects some of the products."""
        sizes = np.diff(self.edges)
        return Products(self.rows[np.repeat(kept, sizes)], np.cumsum([0, *sizes[kept]]), self.numbers[kept])


def group_products(gallery_ids: Sequence[str], product_ids: Sequence[str]) -> dict[str | None, Products]:
    """The products of each gallery, and of all under None, from the gallery and the product of each image."""
    numbers: dict[tuple[str, str], int] = {}  # of the products, in order of their first images
    names = zip(gallery_ids, product_ids, strict=True)
    number = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    order = np.argsort(number, kind="stable")
    rows: dict[str | None, list[int]] = {None: order.tolist()}
    for row in order.tolist():
        rows.setdefault(gallery_ids[row], []).append(row)
    edges = {gallery: np.flatnonzero(np.diff(number[own], prepend=-1, append=-1)) for gallery, own in rows.items()}
    return {
        gallery: Products(np.array(own), edges[gallery], number[own][edges[gallery][:-1]])
        for gallery, own in rows.items()
    }
