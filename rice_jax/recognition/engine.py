"""A model and an index on the device: encodes pictures, and ranks an index's products for the frames of a clip."""

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, BFloat16, Bool, Float, Float32, Int, PyTree, UInt8

from rice_jax.eval.calibration import Calibration
from rice_jax.eval.pooling import SHARPNESS, Pooling, inflation
from rice_jax.eval.scores import center, scores_by_frames
from rice_jax.index.model import Model, load_index_model, same_model
from rice_jax.index.pictures import AnyPicture, show
from rice_jax.index.store import Index, fields_of, read_index
from rice_jax.input.transforms import sample_frames
from rice_jax.models.contract import SupportsMatching, SupportsStreaming, require
from rice_jax.models.rice import embed
from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.products import Products, Where, by_gallery, first_places, freeze, select
from rice_jax.types import DataError

DEFAULT = Naming()
NUM_SELECTIONS = 64  # of products by `where` that are kept

logger = logging.getLogger(__name__)


class Frames(NamedTuple):
    """Encoded frames."""

    features: Float32[np.ndarray, "b E"]  # not normalized
    tokens: Float[np.ndarray, "b L D"] | None  # only for re-ranking

    def take(self, rows: slice | Int[np.ndarray, " n"]) -> "Frames":
        """Selects some of the frames."""
        return Frames(self.features[rows], None if self.tokens is None else self.tokens[rows])


def join_frames(parts: Sequence[Frames]) -> Frames:
    """Concatenates frames; at least one part."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Frames(np.concatenate([part.features for part in parts]), np.concatenate(tokens) if tokens else None)


class Match(NamedTuple):
    """A product of the index, as a match for a clip."""

    id: str
    gallery: str
    title: str  # the first that one of its images has; "" = unknown
    # Cosine of the embeddings, or the score by frames, pooled over its images (`pooling.pool`); if it is re-ranked,
    # the decoder's cosine of the most similar image.
    score: float
    confidence: float | None  # probability that it is shown, from the embeddings; None = the index has no calibration
    image_id: str  # of the most similar image
    fields: dict[str, str] = {}  # further columns of the shop's CSV, such as its price


class Scores(NamedTuple):
    """The scores of products for a clip, each pooled over its images."""

    mean: Float32[np.ndarray, " p"]  # cosines of the clip
    frames: Float32[np.ndarray, " p"]  # by frames


class Recognition(NamedTuple):
    """The ranking of a gallery's products for a clip."""

    time: float  # of the newest frame, seconds
    products: tuple[Match, ...]  # best first
    none: float | None  # probability that none of the products is shown; None = the index has no calibration
    restarted: bool = False  # whether the stream's clock has jumped, so that this is a new window's first frame
    product: Match | None = None  # the one that is named (`Naming`); None = none of them


class Engine:
    """Encodes pictures and ranks the products of an index for clips of them.

    An engine is stateless: any number of threads may use it at once. All its programs have fixed shapes and are
    compiled, and run once, by the constructor, so nothing is compiled later.

    Attributes:
        index: the index that is searched.
        model: the model that made the index; engines that share it share their encoders too.
        galleries: ids of its galleries, in order.
        num_frames: largest number of frames in a clip; more are sampled evenly, as in evaluation.
        calibration: turns cosines into probabilities; None = the index has none.
        naming: when a product is named.
        by_frames: whether products are ranked by frames (`eval.scores`), and otherwise by the cosines of clips. Whether
            any product is shown is always told by the latter.
        reranks: whether the decoder re-orders the first products.
    """

    model: Model
    _encoders: dict[int, jax.stages.Compiled]

    def __init__(
        self,
        index: str | os.PathLike | Index,
        *,
        model: str | os.PathLike | None = None,
        rerank: int = 0,
        batch_sizes: Sequence[int] = (1,),
        naming: Naming = DEFAULT,
        others: Iterable["Engine"] = (),
    ):
        """Loads the index and its model, and compiles everything.

        Args:
            index: directory of the index, or the index.
            model: the run or converted model that made the index; None = where it was when the index was made.
            rerank: number of first products that the decoder re-orders, by their most similar images; 0 = off.
            batch_sizes: numbers of pictures that are encoded together; other numbers are padded.
            naming: when a product is named, and what it is ranked by.
            others: engines with the same `rerank` and `batch_sizes`. If one has the model that made this index, the
                model is neither loaded nor are its encoders compiled again.

        Raises:
            CheckpointError: there is no checkpoint, it did not make the index, or it has no trained decoder to re-rank
                with.
            DataError: the index cannot be read, is empty, or lacks the calibration that `naming` needs.
            FileNotFoundError: there is no index.
        """
        self.index: Index = index if isinstance(index, Index) else read_index(index)
        name = "index" if isinstance(index, Index) else index
        if not len(self.index.vectors):
            raise DataError(f"{name}: found no images in the index, expected at least one; add some with `rice index`")
        if rerank and self.index.queries is None:
            raise CheckpointError(
                f"{name}: holds nothing to re-rank with, since its model has no trained decoder; leave --rerank out, "
                "or index the images with a run that was trained with config.loss.pmd_weight above 0"
            )
        self.calibration: Calibration | None = self.index.about.calibration
        naming.require(self.calibration, name)
        self.naming, self.by_frames = naming, naming.by_frames(self.calibration)
        shared = next((other for other in others if same_model(other.model.about, self.index.about)), None)
        loaded = shared.model if shared else load_index_model(self.index.about, model)
        self.model = loaded
        self.num_frames: int = self.index.about.num_frames
        module = nnx.merge(loaded.graphdef, loaded.params)
        require(module, SupportsStreaming, "recognition")
        if rerank:
            require(module, SupportsMatching, "re-ranking")
        # Replaces the calibration's scale if there is none: training multiplies similarities by it.
        self.logit_scale = float(module.similarity_scale())
        self._num_matched = min(rerank, self.index.num_products)
        self.reranks = self._num_matched > 0
        self._products = by_gallery(self.index)
        # Not methods: a cycle would keep the index in memory after it is replaced.
        self._selected = functools.lru_cache(NUM_SELECTIONS)(functools.partial(select, self.index, self._products))
        sharpness = SHARPNESS * self.logit_scale
        added = inflation(self.index.vectors, self._products[None], sharpness)
        self._pooling = Pooling(self._products[None].edges, sharpness, added)
        self.galleries = [gallery for gallery in self._products if gallery is not None]
        self._warn(self.index.about.ipd)
        self._compile(loaded, sorted(batch_sizes), shared)

    def pooling(self, products: Products) -> Pooling:
        """How products are scored by their images."""
        return self._pooling._replace(edges=products.edges, inflation=self._pooling.inflation[products.numbers])

    def prepare(self, picture: AnyPicture) -> UInt8[np.ndarray, "S S 3"]:
        """Crops and resizes a picture as evaluation does.

        Args:
            picture: a file's path, the content of a file (bytes), an open binary file, a PIL image, or RGB as a uint8
                array `[H, W, 3]`.

        Raises:
            DataError: it is not a picture, or it is damaged.
            OSError: its file cannot be read.
        """
        return show(picture, self.index.about)

    def encode(self, pictures: UInt8[np.ndarray, "b S S 3"]) -> Frames:
        """Encodes one or more pictures that `prepare` returned."""
        largest = max(self._encoders)
        parts = [self._encode(pictures[start : start + largest]) for start in range(0, len(pictures), largest)]
        return join_frames(parts)

    def rows(self, gallery: str | None) -> Int[np.ndarray, " g"]:
        """The rows of a gallery in the index, those of a product together; None = all rows.

        Raises:
            DataError: there is no such gallery.
        """
        return self.products(gallery).rows

    def products(self, gallery: str | None, where: Where | None = None) -> Products:
        """The products of a gallery; None = of all galleries.

        Args:
            gallery: its id.
            where: what the further columns of the shop's CSV say about them, such as `{"category": "lamp"}`; of several
                values of a column a product has one, and all columns must agree.

        Raises:
            DataError: there is no such gallery, column, or product.
        """
        if gallery not in self._products:
            some = ", ".join(map(repr, self.galleries[:5])) + (", …" if len(self.galleries) > 5 else "")
            raise DataError(f"found no gallery {gallery!r} among the index's {len(self.galleries)}: {some}")
        return self._selected(gallery, freeze(where)) if where else self._products[gallery]

    def rank(
        self,
        frames: Frames,
        gallery: str | None = None,
        top: int = 5,
        time: float = 0.0,
        where: Where | None = None,
    ) -> Recognition:
        """Ranks the products of a gallery for a clip, each by the pooled scores of its images.

        Args:
            frames: the clip's frames in order, at least one.
            gallery: id of the gallery; None = all products of the index.
            top: number of products to return, at least 1.
            time: time of the newest frame, which the result repeats.
            where: ranks only these products, see `products`; their scores are what they are without it.

        Raises:
            DataError: there is no such gallery, column, or product, there is no frame, `top` is below 1, or a cosine is
                not finite.
        """
        products = self.products(gallery, where)
        if not len(frames.features) or top < 1:
            raise DataError(f"found {len(frames.features)} frames and top={top}, expected at least one of both")
        frames = frames.take(sample_frames(len(frames.features), self.num_frames))
        cosines = self._cosines(frames)
        if not np.isfinite(cosines[products.rows]).all():
            raise DataError("the cosine of a frame and an image is not finite; has training diverged?")
        pooling = self.pooling(products)
        of_images, mean = cosines, pooling.cosines(cosines[products.rows])
        of_products = mean
        if self.by_frames:
            of_images = self._scores_by_frames(frames, gallery)
            of_products = pooling.scores(of_images[products.rows])
        best = first_places(of_products, max(top, self._num_matched))
        scores = of_products[best]
        images = map(products.images, best.tolist())
        rows = np.array([own[of_images[own].argmax()] for own in images])
        if self.reranks:
            matched = self._match(frames, rows[: self._num_matched])
            order = np.argsort(-matched, kind="stable")  # ties stay in the order of the embeddings
            best[: len(order)], rows[: len(order)] = best[order], rows[order]
            scores[: len(order)] = matched[order]
        shares = None
        if self.calibration:
            by_frames = of_products if self.by_frames else None
            shares = self.calibration.probabilities(mean, by_frames, self.naming.none_prior)
        matches = tuple(
            self._name(products.images(place), row, score, None if shares is None else float(shares[place]))
            for place, row, score in zip(best[:top].tolist(), rows.tolist(), scores.tolist(), strict=False)
        )
        none = None if shares is None else float(shares[-1])
        named = self.naming.names(matches[0].confidence, none)
        return Recognition(time, matches, none, product=matches[0] if named else None)

    def scores(self, frames: Frames, gallery: str | None = None) -> Scores:
        """Both scores of a gallery's products for a clip, whichever of them products are ranked by.

        Args:
            frames: the clip's frames in order, at least one.
            gallery: id of the gallery; None = all products of the index.

        Raises:
            DataError: there is no such gallery, or a cosine is not finite.
        """
        products = self.products(gallery)
        frames = frames.take(sample_frames(len(frames.features), self.num_frames))
        unit = frames.features / np.linalg.norm(frames.features, axis=1, keepdims=True)
        by_frames = scores_by_frames(unit @ self.index.embeddings(products.rows).T)
        mean = self.pooling(products).cosines(self._cosines(frames)[products.rows])
        if not (np.isfinite(by_frames).all() and np.isfinite(mean).all()):
            raise DataError("the cosine of a frame and an image is not finite; has training diverged?")
        return Scores(mean, self.pooling(products).scores(by_frames))

    def _name(self, images: Int[np.ndarray, " i"], row: int, score: float, confidence: float | None) -> Match:
        """The product of some images, of which that in `row` is the most similar one."""
        index = self.index
        title = next(filter(None, (index.titles[image] for image in images)), "")
        return Match(
            index.product_ids[row],
            index.gallery_ids[row],
            title,
            score,
            confidence,
            image_id=index.image_ids[row],
            fields=fields_of(index, images.tolist()),
        )

    def _encode(self, pictures: UInt8[np.ndarray, "b S S 3"]) -> Frames:
        size = min(size for size in self._encoders if size >= len(pictures))
        filled = np.zeros((size, *pictures.shape[1:]), np.uint8)
        filled[: len(pictures)] = pictures
        encoded = jax.device_get(self._encoders[size](self._params, filled))
        return Frames(*encoded).take(slice(len(pictures)))

    def _cosines(self, frames: Frames) -> Float32[np.ndarray, " G"]:
        return np.asarray(self._similar(self._params, self._vectors, *_fill(frames.features, self.num_frames)))

    def _scores_by_frames(self, frames: Frames, gallery: str | None) -> Float32[np.ndarray, " G"]:
        filled = _fill(frames.features, self.num_frames)
        return np.asarray(self._by_frames(self._vectors, self._centers[gallery], *filled))

    def _match(self, frames: Frames, rows: Int[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
        candidates = np.resize(rows, self._num_matched).astype(np.int32)  # rows of a small gallery repeat
        assert frames.tokens is not None
        filled = _fill(frames.tokens, self.num_frames)
        return np.asarray(self._matcher(self._params, self._queries, candidates, *filled))[: len(rows)]

    def _compile(self, loaded: Model, batch_sizes: Sequence[int], shared: "Engine | None") -> None:
        graphdef, params, reranks, projection = loaded.graphdef, loaded.params, self.reranks, self.index.projection
        highest = jax.lax.Precision.HIGHEST

        def project(embeddings: Float[Array, "*B E"]) -> Float[Array, "*B N"]:
            return embeddings if projection is None else jnp.matmul(embeddings, projection, precision=highest)

        def encode(params: PyTree, pictures: UInt8[Array, "b S S 3"]) -> tuple[Array, Array | None]:
            encoded = nnx.merge(graphdef, params).encode_frames(pictures)
            return encoded.features.astype(jnp.float32), encoded.tokens if reranks else None

        def similar(
            params: PyTree, vectors: Float[Array, "G N"], features: Float[Array, "T E"], frame_mask: Bool[Array, " T"]
        ) -> Float[Array, " G"]:
            clip = nnx.merge(graphdef, params).aggregate(features[None], frame_mask[None])[0]
            return jnp.matmul(vectors, project(clip), precision=highest)

        def by_frames(
            vectors: Float[Array, "G N"],
            center: Float[Array, " N"],
            features: Float[Array, "T E"],
            frame_mask: Bool[Array, " T"],
        ) -> Float[Array, " G"]:
            frames = project(embed(features))
            means = jnp.matmul(frames, center, precision=highest)
            scores = jnp.matmul(frames, vectors.T, precision=highest) - means[:, None]
            return jnp.where(frame_mask[:, None], scores, -jnp.inf).max(axis=0)

        def match(
            params: PyTree,
            queries: BFloat16[Array, "G R D"],
            rows: Int[Array, " K"],
            tokens: Float[Array, "T L D"],
            frame_mask: Bool[Array, " T"],
        ) -> Float[Array, " K"]:
            return nnx.merge(graphdef, params).match(queries[rows][None], tokens[None], frame_mask[None])[0]

        def compiled(function, *arguments):
            program = jax.jit(function).lower(*arguments).compile()
            jax.block_until_ready(program(*arguments))
            return program

        side, self._params = self.index.about.model.encoder.image_size, params
        [device] = jax.tree.leaves(params)[0].devices()
        self._vectors = jax.device_put(self.index.vectors, device)
        pictures = {size: np.zeros((size, side, side, 3), np.uint8) for size in batch_sizes}
        self._encoders = (
            shared._encoders if shared else {size: compiled(encode, params, pictures[size]) for size in batch_sizes}
        )
        frames = self._encode(pictures[batch_sizes[0]][:1])
        filled = _fill(frames.features, self.num_frames)
        self._similar = compiled(similar, params, self._vectors, *filled)
        if self.by_frames:
            known = self.index.centers
            self._centers = {
                gallery: np.asarray(known[gallery] if known else center(self.index.vectors, products.rows), np.float32)
                for gallery, products in self._products.items()
            }
            self._by_frames = compiled(by_frames, self._vectors, self._centers[None], *filled)
        if self.reranks:
            self._queries = jax.device_put(self.index.queries, device)
            assert frames.tokens is not None
            rows = np.zeros(self._num_matched, np.int32)
            self._matcher = compiled(match, params, self._queries, rows, *_fill(frames.tokens, self.num_frames))

    def _warn(self, ipd: str) -> None:
        if ipd != "off":
            logger.warning("The model was trained with config.model.ipd=%r; here, frames are encoded whole.", ipd)
        if self.calibration is None and not self.naming.always:
            logger.warning(
                "The index has no calibration: there are no confidences, and some product is always named. To get one, "
                "label some clips (rice eval CLIPS.csv --index=INDEX), or evaluate the run (rice eval) and index its "
                "images again (rice index)."
            )


def _fill(array: np.ndarray, num_frames: int) -> tuple[np.ndarray, Bool[np.ndarray, " T"]]:
    """Pads the frames of a clip with zeros; the mask is True for real frames."""
    filled = np.zeros((num_frames, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled, np.arange(num_frames) < len(array)
