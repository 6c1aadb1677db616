"""Re-ranking: the decoder matches each query with its first products by embedding, and re-orders these.

A product is matched by the image that is most similar to the query.

An image's side of a match is the same for every query: it is kept from the gallery pass, or computed again for each
query that needs it. A video's side is computed once for all its candidates.

The order is that of the decoder's cosines alone, as published, or that of

    score + weight · match

of the score that products were ranked by before and the decoder's cosine. The weight is fitted (`eval.weight`) to the
first products of the queries whose truth is one of them: a decoder that tells nothing has a weight near 0, and then the
order stays as it was.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import BFloat16, Bool, Float, Float32, Float64, Int64, PyTree

from rice_jax.config import InputConfig
from rice_jax.eval.ranking import GalleryImages, Queries, Ranking, product_scores
from rice_jax.eval.weight import fit
from rice_jax.input.pipeline import eval_batches
from rice_jax.models.contract import SupportsMatching, require
from rice_jax.types import DataError


class Matched(NamedTuple):
    """What the decoder says of the first products of every query.

    Attributes:
        ranked: the products, by the score that they are ranked by before; its `top` holds at least K products, or a
            whole gallery.
        cosines: the decoder's, of the first K products of `top`, in its order; beyond the end of a gallery they have no
            meaning.
    """

    ranked: Ranking
    cosines: Float32[np.ndarray, "Q K"]


def candidates(
    ranked: Ranking, num: int, gallery_ids: Sequence[str], image_ids: Sequence[str]
) -> Int64[np.ndarray, "Q K"]:
    """Finds the first products of every query, by their most similar images.

    Args:
        ranked: its `top` holds at least `num` products, or a whole gallery.
        num: how many to match, at least 1.
        gallery_ids, image_ids: of the gallery's rows.

    Returns:
        Rows of the gallery, best first; K is `num`, or the size of the largest gallery if that is smaller. For a query
        with fewer products the number of rows is used as padding.
    """
    row = {pair: i for i, pair in enumerate(zip(gallery_ids, image_ids, strict=True))}
    found = [
        [row[gallery_id, image_id] for image_id in own[:num]]
        for gallery_id, own in zip(ranked.gallery_ids, ranked.images, strict=True)
    ]
    width = max(map(len, found))
    return np.array([rows + [len(row)] * (width - len(rows)) for rows in found], np.int64)


def match_batches(
    data: InputConfig,
    batch_size: int,
    rows: Int64[np.ndarray, "Q K"],
    kept: BFloat16[np.ndarray, "G R D"] | None,
) -> Iterator[dict]:
    """This process's share of the queries, each with its candidates, as `matcher` takes them.

    Args:
        data: what to read and how.
        batch_size: global number of queries.
        rows: output of `candidates`.
        kept: the images' side of a match, from the gallery pass; None = read the candidates' pictures again.

    Returns:
        Iterator over the batches of `eval_batches`, with `queries` bfloat16 [b, K, R, D], or with `images`, a dict of
        what the gallery's batches have of the candidates, [b, K, ...]. Padding candidates and queries have no meaning.

    Raises:
        FileNotFoundError, DataError: as `eval_batches`.
    """
    processes = (jax.process_index(), jax.process_count())
    videos = eval_batches(data, "query", batch_size, *processes)
    if kept is not None:
        for batch in videos:
            yield batch | {"queries": kept.take(rows.take(batch["index"], axis=0, mode="clip"), axis=0, mode="clip")}
    else:
        num = rows.shape[1]
        pictures = eval_batches(data, "gallery", batch_size * num, *processes, rows=rows.ravel().tolist())
        for batch, images in zip(videos, pictures, strict=True):
            yield batch | {"images": jax.tree.map(lambda x: x.reshape(-1, num, *x.shape[1:]), dict(images))}


@functools.cache
def matcher(graphdef: nnx.GraphDef) -> Callable[[PyTree, dict], jax.Array]:
    """The function of (params, batch) to the decoder's cosines of each query and its candidates, float32 `[b, K]`."""

    def match(params: PyTree, batch: dict) -> jax.Array:
        model = nnx.merge(graphdef, params)
        require(model, SupportsMatching, "re-ranking")
        tokens = model.video_tokens(batch)

        def image_queries(images: dict) -> jax.Array:
            model = nnx.merge(graphdef, params)  # its own: a module does not go from one trace into another
            return model.encode_images(images).queries

        if "images" in batch:  # one candidate of each query at a time, as the encoder needs memory for its pictures
            first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch["images"])
            queries = jnp.moveaxis(jax.lax.map(image_queries, first), 0, 1)
        else:
            queries = batch["queries"]
        return model.match(queries, tokens, batch["frame_mask"], batch.get("patch_mask"), model.speech(batch))

    return match


def fit_weight(
    matches: Matched, queries: Queries, images: GalleryImages, *, among: Bool[np.ndarray, " Q"] | None = None
) -> float:
    """The weight of the decoder's cosines that explains the queries best; 0 if none of them tells anything.

    Args:
        matches: names the products among which a query's truth is found.
        queries, images: have the scores that the cosines are added to; they need not be those of `matches`.
        among: which queries count; None = all.
    """
    ranked, cosines = matches
    names = ((gallery_id, images.names(own)) for gallery_id, own in images.products.items())
    places = {gallery_id: {name: place for place, name in enumerate(own)} for gallery_id, own in names}
    pairs, is_truth = [], []
    for query, (gallery_id, top, truths) in enumerate(zip(ranked.gallery_ids, ranked.top, ranked.truths, strict=True)):
        own = [name for name, _ in top[: cosines.shape[1]]]
        truth = np.isin(own, truths)
        if (among is None or among[query]) and truth.any() and not truth.all():
            scores = product_scores(queries, images, query)[[places[gallery_id][name] for name in own]]
            pairs.append(np.stack([scores, cosines[query, : len(own)]], axis=1))
            is_truth.append(truth)
    return fit(pairs, is_truth)


def add_matches(matches: Matched, weights: Float[np.ndarray, " Q"]) -> Float64[np.ndarray, "Q K"]:
    """score + weight · match of the first K products of every query, as `reorder` takes them."""
    sums = weights[:, None] * matches.cosines.astype(np.float64)
    for own, top in zip(sums, matches.ranked.top, strict=True):
        first = top[: len(own)]
        own[: len(first)] += [score for _, score in first]
    return sums


def reorder(ranked: Ranking, scores: Float[np.ndarray, "Q K"]) -> Ranking:
    """Sorts the first K products of every query by other scores; the others stay behind them.

    The order is: higher score first; among equal ones products that are no truth of the query before those that are,
    so that a tie never helps; then the order before.

    Args:
        ranked: as in `Matched`.
        scores: of the first K products, as in `Matched`: the decoder's cosines, or sums with them (`add_matches`).

    Raises:
        DataError: naming the query, for a cosine that is not finite.
    """
    truth_ranks, tops, images = [], [], []
    of_queries = zip(ranked.truth_ranks, ranked.top, ranked.images, scores.tolist(), ranked.truths, strict=True)
    for query, (ranks, top, own, by, truths) in enumerate(of_queries):
        matched = [(name, score, image) for (name, _), image, score in zip(top, own, by, strict=False)]
        if not np.isfinite([score for _, score, _ in matched]).all():
            raise DataError(
                f"Query {ranked.query_ids[query]!r} and one of its images have a cosine that is not finite: has the "
                "training diverged?"
            )
        matched.sort(key=lambda entry: (-entry[1], entry[0] in truths))
        found = (place for place, (name, *_) in enumerate(matched, start=1) if name in truths)
        truth_ranks.append((*found, *(place for place in ranks if place > len(matched))))
        tops.append((*((name, score) for name, score, _ in matched), *top[len(matched) :]))
        images.append((*(image for *_, image in matched), *own[len(matched) :]))
    return dataclasses.replace(ranked, truth_ranks=tuple(truth_ranks), top=tuple(tops), images=tuple(images))
