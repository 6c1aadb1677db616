"""Retrieval and one-shot classification between all pairs of sets of product items, from their embeddings."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rice_jax.eval import metrics, ranking
from rice_jax.input.items import Items
from rice_jax.types import DataError

CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """One evaluation of all ordered pairs of domains, keyed by their names, e.g. "pages to videos".

    Attributes:
        retrieval: each item of the first domain is a query for items of its product among all items of the second.
        one_shot: each item of the first domain gets the product of the nearest item of the second, which has one item
            of each product; rank-1 is the accuracy.
    """

    retrieval: dict[str, metrics.Result]
    one_shot: dict[str, metrics.Result]

    def to_dict(self) -> dict[str, Any]:
        """The result as dicts, numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DomainResult":
        """The inverse of `to_dict`."""
        return cls(
            **{
                task: {pair: metrics.Result.from_dict(result) for pair, result in pairs.items()}
                for task, pairs in values.items()
            }
        )


class _Domain(NamedTuple):
    name: str  # short
    items: Items
    embeddings: Float32[np.ndarray, "N E"]


def compare_domains(items: Mapping[str, Items], embeddings: Mapping[str, Float32[np.ndarray, "N E"]]) -> DomainResult:
    """Ranks the items of every domain among those of every other domain.

    Memory use is that of the embeddings and of `ranking.rank`, for any number of items.

    Args:
        items: of each domain.
        embeddings: of its items, L2-normalized, finite.

    Returns:
        Rank-k of retrieval and of classification. An item whose product has no item in the other domain is left out
        and counted; an item that the data set's builder had to leave out is a miss.

    Raises:
        DataError: two domains share no product.
    """
    short = _short_names(list(items))
    domains = [_Domain(short[name], items[name], embeddings[name]) for name in items]
    retrieval, one_shot = {}, {}
    for queries, gallery in itertools.permutations(domains, 2):
        pair = f"{queries.name} to {gallery.name}"
        retrieval[pair] = _compare(queries, gallery, range(len(gallery.items.item_ids)), CUTOFFS)
        one_shot[pair] = _compare(queries, gallery, exemplars(gallery.items), (1,))
    return DomainResult(retrieval, one_shot)


def exemplars(items: Items) -> list[int]:
    """One row of each product, that of the lowest item id; ids are compared by length, then as text."""
    rows: dict[str, int] = {}
    for row in sorted(range(len(items.item_ids)), key=lambda row: (len(items.item_ids[row]), items.item_ids[row])):
        rows.setdefault(items.product_ids[row], row)
    return sorted(rows.values())


def _compare(queries: _Domain, gallery: _Domain, rows: Sequence[int], cutoffs: Sequence[int]) -> metrics.Result:
    """Ranks all items of one domain among some rows of another."""
    asking, images = queries.items, gallery.items
    image_ids = [images.item_ids[row] for row in rows]
    of_product = ranking.group_rows(images.product_ids[row] for row in rows)
    truths = {product: [image_ids[place] for place in places] for product, places in of_product.items()}
    asked = [row for row, product in enumerate(asking.product_ids) if product in truths]
    if not asked:
        raise DataError(
            f"found no item of the {queries.name} whose product is among the {gallery.name}, expected domains that "
            "share products"
        )
    ranked = ranking.rank(
        ranking.Queries(
            embeddings=queries.embeddings[asked],
            ids=[asking.item_ids[row] for row in asked],
            gallery_ids=[gallery.name] * len(asked),
            truths=[truths[asking.product_ids[row]] for row in asked],
        ),
        ranking.GalleryImages(gallery.embeddings[list(rows)], [gallery.name] * len(rows), image_ids),
        num_top=1,
    )
    everyone = [*asking.product_ids, *asking.skipped]
    known = truths.keys() | set(images.skipped)
    num_queries = sum(product in known for product in everyone)
    result = metrics.evaluate(ranked, num_queries=num_queries, cutoffs=cutoffs)
    return dataclasses.replace(result, num_without_truth=len(everyone) - num_queries)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The names without the data set's name, unless two would then be equal."""
    short = {name: name.rpartition("/")[2] for name in names}
    return short if len(set(short.values())) == len(names) else dict(zip(names, names, strict=True))
