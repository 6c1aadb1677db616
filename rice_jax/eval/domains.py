"""Retrieval and one-shot classification between all pairs of sets of product items, from their embeddings."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rice_jax.eval import metrics, ranking
from rice_jax.files import write_lines
from rice_jax.input.items import Items
from rice_jax.types import DataError

CUTOFFS = (1, 5, 10)
NUM_TOP = 5  # items that a ranking keeps


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


@dataclasses.dataclass(frozen=True)
class PairRanking:
    """How the items of one domain were ranked among those of another.

    Attributes:
        ranking: of the queries, by item id; each item of the other domain counts as a product by itself.
        products: the product of each query.
        answers: the product of each item in `ranking.top`.
        num_queries: number of items whose product the other domain has, with those that the builder left out.
        num_without_truth: number of items whose product it has not.
    """

    ranking: ranking.Ranking
    products: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    num_queries: int
    num_without_truth: int

    def score(self, cutoffs: Sequence[int]) -> metrics.Result:
        """Rank-k with intervals over products, whose items resemble each other."""
        result = metrics.evaluate(self.ranking, num_queries=self.num_queries, cutoffs=cutoffs, products=self.products)
        return dataclasses.replace(result, num_without_truth=self.num_without_truth)


@dataclasses.dataclass(frozen=True)
class DomainRanking:
    """Rankings of all ordered pairs of domains, by the names and pairs of `DomainResult`."""

    retrieval: dict[str, PairRanking]
    one_shot: dict[str, PairRanking]

    def score(self) -> DomainResult:
        """The numbers."""
        return DomainResult(
            {pair: ranked.score(CUTOFFS) for pair, ranked in self.retrieval.items()},
            {pair: ranked.score((1,)) for pair, ranked in self.one_shot.items()},
        )


class _Domain(NamedTuple):
    name: str  # short
    items: Items
    embeddings: Float32[np.ndarray, "N E"]


def rank_domains(items: Mapping[str, Items], embeddings: Mapping[str, Float32[np.ndarray, "N E"]]) -> DomainRanking:
    """Ranks the items of every domain among those of every other domain.

    Memory use is that of the embeddings and of `ranking.rank`, for any number of items.

    Args:
        items: of each domain.
        embeddings: of its items, L2-normalized, finite.

    Returns:
        Rankings for retrieval and for classification. An item whose product has no item in the other domain is left out
        and counted; an item that the data set's builder had to leave out is a miss.

    Raises:
        DataError: two domains share no product.
    """
    short = short_names(list(items))
    domains = [_Domain(short[name], items[name], embeddings[name]) for name in items]
    retrieval, one_shot = {}, {}
    for queries, gallery in itertools.permutations(domains, 2):
        pair = f"{queries.name} to {gallery.name}"
        retrieval[pair] = _rank(queries, gallery, range(len(gallery.items.item_ids)))
        one_shot[pair] = _rank(queries, gallery, exemplars(gallery.items))
    return DomainRanking(retrieval, one_shot)


def exemplars(items: Items) -> list[int]:
    """One row of each product, that of the lowest item id; ids are compared by length, then as text."""
    rows: dict[str, int] = {}
    for row in sorted(range(len(items.item_ids)), key=lambda row: (len(items.item_ids[row]), items.item_ids[row])):
        rows.setdefault(items.product_ids[row], row)
    return sorted(rows.values())


def write_domain_rankings(path: str | os.PathLike, ranked: DomainRanking) -> None:
    """Writes one JSON line per query of each task and pair, readable by `results.read_rankings`.

    Args:
        path: a file, usually `rankings.jsonl`; replaced if it exists.
        ranked: the rankings.
    """
    write_lines(path, _lines(ranked))


def _lines(ranked: DomainRanking) -> Iterator[str]:
    for task in dataclasses.fields(ranked):
        for pair, of_pair in getattr(ranked, task.name).items():
            own = of_pair.ranking
            for i, (query, product) in enumerate(zip(own.query_ids, of_pair.products, strict=True)):
                top = [[item, score] for item, score in own.top[i]]
                line = {"task": task.name, "pair": pair, "query": query, "product": product, "rank": int(own.rank[i])}
                line |= {"answers": of_pair.answers[i], "top": top}
                yield json.dumps(line, ensure_ascii=False, allow_nan=False)


def _rank(queries: _Domain, gallery: _Domain, rows: Sequence[int]) -> PairRanking:
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
        num_top=NUM_TOP,
    )
    everyone = [*asking.product_ids, *asking.skipped]
    known = truths.keys() | set(images.skipped)
    num_queries = sum(product in known for product in everyone)
    product_of = dict(zip(image_ids, (images.product_ids[row] for row in rows), strict=True))
    return PairRanking(
        ranked,
        products=tuple(asking.product_ids[row] for row in asked),
        answers=tuple(tuple(product_of[item] for item, _ in top) for top in ranked.top),
        num_queries=num_queries,
        num_without_truth=len(everyone) - num_queries,
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The names without the data set's name, unless two would then be equal."""
    short = {name: name.rpartition("/")[2] for name in names}
    return short if len(set(short.values())) == len(names) else dict(zip(names, names, strict=True))
