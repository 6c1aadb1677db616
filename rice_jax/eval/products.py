"""Products, each of which has one or several images in a gallery."""

import itertools
from collections.abc import Hashable, Sequence
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


def group_products(gallery_ids: Sequence[str], product_ids: Sequence[str] | None) -> dict[str | None, Products]:
    """The products of each gallery, and of all under None, from the gallery and the product of each image.

    Without products, each image is one by itself.
    """
    if product_ids is None:
        number = np.arange(len(gallery_ids))
    else:
        number = _number(list(zip(gallery_ids, product_ids, strict=True)))
    order = np.argsort(number, kind="stable")  # of the images, by product
    of_gallery = _number(gallery_ids)[order]
    by_gallery = order[np.argsort(of_gallery, kind="stable")]
    ends = np.cumsum(np.bincount(of_gallery)).tolist()
    own = [by_gallery[start:end] for start, end in itertools.pairwise([0, *ends])]
    rows = {None: order} | dict(zip(dict.fromkeys(gallery_ids), own, strict=True))
    edges = {gallery: np.flatnonzero(np.diff(number[own], prepend=-1, append=-1)) for gallery, own in rows.items()}
    return {gallery: Products(own, edges[gallery], number[own][edges[gallery][:-1]]) for gallery, own in rows.items()}


def _number(names: Sequence[Hashable]) -> Int[np.ndarray, " n"]:
    """Numbers equal names alike, in order of their first places."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.fromiter(map(numbers.__getitem__, names), np.int64, len(names))
