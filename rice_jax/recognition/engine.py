"""A model and an index on the device: encodes pictures, and ranks an index's products for the frames of a clip."""

import functools
import logging
import os
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int, UInt8

from rice_jax.eval.calibration import Calibration
from rice_jax.eval.pooling import SHARPNESS, Pooling, inflation
from rice_jax.eval.scores import center, scores_by_frames
from rice_jax.index.model import Model, load_index_model, same_model
from rice_jax.index.pictures import AnyPicture, show
from rice_jax.index.store import Index, fields_of, read_index
from rice_jax.index.text import Texts
from rice_jax.input.transforms import sample_frames
from rice_jax.models.contract import SupportsDomains, SupportsStreaming, require
from rice_jax.recognition.frames import Frames, fill, join_frames
from rice_jax.recognition.matches import Match, Recognition, Scores
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.products import (
    Products,
    Where,
    by_gallery,
    first_places,
    freeze,
    in_gallery,
    known_as,
    select,
)
from rice_jax.recognition.programs import comparing, compile_encoders, compiled
from rice_jax.recognition.reranking import Reranker, load_speech, require_queries
from rice_jax.recognition.titles import Titles, load_titles
from rice_jax.types import DataError

DEFAULT = Naming()
NUM_SELECTIONS = 64  # of products by `where` that are kept

logger = logging.getLogger(__name__)


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
    """

    model: Model
    _encoders: dict[int, jax.stages.Compiled]

    def __init__(
        self,
        index: str | os.PathLike | Index,
        *,
        model: str | os.PathLike | None = None,
        text_model: str | os.PathLike | None = None,
        rerank: int = 0,
        batch_sizes: Sequence[int] = (1,),
        naming: Naming = DEFAULT,
        others: Iterable["Engine"] = (),
    ):
        """Loads the index and its model, and compiles everything.

        Args:
            index: directory of the index, or the index.
            model: the run or converted model that made the index; None = where it was when the index was made.
            text_model: what embedded the index's titles, if it has any (`Index.text`) or the decoder reads them; None =
                where it was then.
            rerank: number of first products that are re-ordered with the decoder (`recognition.reranking`), which
                matches their most similar images; 0 = off.
            batch_sizes: numbers of pictures that are encoded together; other numbers are padded.
            naming: when a product is named, and what it is ranked by.
            others: engines with the same `rerank` and `batch_sizes`. If one has the model that made this index, the
                model is neither loaded nor are its encoders compiled again.

        Raises:
            CheckpointError: there is no checkpoint, it did not make the index, or it has no trained decoder to re-rank
                with; or the text tower is missing or another one.
            ConfigError: the model cannot recognize, or the package that its texts need is not installed.
            DataError: the index cannot be read, is empty, or lacks the calibration that `naming` needs.
            FileNotFoundError: there is no index.
        """
        others = tuple(others)
        self.index: Index = index if isinstance(index, Index) else read_index(index)
        name = "index" if isinstance(index, Index) else index
        if not len(self.index.vectors):
            raise DataError(f"{name}: found no images in the index, expected at least one; add some with `rice index`")
        if rerank:
            require_queries(self.index, name)
        self.calibration: Calibration | None = self.index.about.calibration
        naming.require(self.calibration, name)
        self.naming, self.by_frames = naming, naming.by_frames(self.calibration)
        shared = next((other for other in others if same_model(other.model.about, self.index.about)), None)
        loaded = shared.model if shared else load_index_model(self.index.about, model)
        self.model = loaded
        self.num_frames: int = self.index.about.num_frames
        module = nnx.merge(loaded.graphdef, loaded.params)
        if SupportsDomains not in module.capabilities:  # which has a head for live clips
            require(module, SupportsStreaming, "recognition")
        # Replaces the calibration's scale if there is none: training multiplies similarities by it.
        self.logit_scale = float(module.similarity_scale())
        self._products = by_gallery(self.index)
        # Not methods: a cycle would keep the index in memory after it is replaced.
        self._selected = functools.lru_cache(NUM_SELECTIONS)(functools.partial(select, self.index, self._products))
        sharpness = SHARPNESS * self.logit_scale
        added = inflation(self.index.vectors, self._products[None], sharpness)
        self._pooling = Pooling(self._products[None].edges, sharpness, added)
        self.galleries = [gallery for gallery in self._products if gallery is not None]
        known = [texts for other in others for texts in other._loaded_texts]
        self._titles: Titles | None = load_titles(self.index, model, text_model, known)
        known += [self._titles.texts] if self._titles else []
        texts = load_speech(self.index.about, model, text_model, known) if rerank > 0 else None
        self._warn(self.index.about.ipd)
        frames = self._compile(loaded, sorted(batch_sizes), shared, with_tokens=rerank > 0)
        self._reranker = None
        if rerank > 0:
            self._reranker = Reranker(self.index, loaded, rerank, frames, by_frames=self.by_frames, texts=texts)

    @property
    def reads_texts(self) -> bool:
        """Whether what is said has a part in the ranking.

        The index holds titles as vectors (`Index.text`), or the decoder that re-ranks reads texts.
        """
        return bool(self._loaded_texts)

    @property
    def texts(self) -> Texts | None:
        """What embeds texts as the titles of the index are embedded; None = they are not."""
        return self._titles.texts if self._titles else None

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """Embeds texts, such as speech, as the titles of the index are embedded.

        Args:
            texts: of any length; what the text tower does not read of a long one is cut off.

        Returns:
            Unit length; 0 for a text that is missing, such as "".

        Raises:
            DataError: the index has no titles as vectors.
        """
        if self._titles is None:
            raise DataError(
                "the index has no titles as vectors, so texts cannot be compared with it; index the pictures with "
                "--text_model and --text_weight"
            )
        return self._titles.texts(texts)

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
        products = in_gallery(self._products, gallery)
        return self._selected(gallery, freeze(where)) if where else products

    def rank(
        self,
        frames: Frames,
        gallery: str | None = None,
        top: int = 5,
        time: float = 0.0,
        where: Where | None = None,
        speech: str = "",
    ) -> Recognition:
        """Ranks the products of a gallery for a clip, each by the pooled scores of its images.

        If the index has titles as vectors (`Index.text`), the score of an image is the cosine of the pictures plus
        `index.text.weight` times the cosine of its title and the speech. If the decoder re-ranks and was trained with
        texts, it reads both. Otherwise speech has no part in the ranking (`reads_texts`).

        Args:
            frames: the clip's frames in order, at least one.
            gallery: id of the gallery; None = all products of the index.
            top: number of products to return, at least 1.
            time: time of the newest frame, which the result repeats.
            where: ranks only these products, see `products`; their scores are what they are without it.
            speech: what is said while the frames are shown; "" = nothing, or unknown.

        Raises:
            DataError: there is no such gallery, column, or product, there is no frame, `top` is below 1, or a cosine is
                not finite.
        """
        products, gallery = self.products(gallery, where), known_as(gallery)
        if not len(frames.features) or top < 1:
            raise DataError(f"found {len(frames.features)} frames and top={top}, expected at least one of both")
        frames = frames.take(sample_frames(len(frames.features), self.num_frames))
        cosines = self._cosines(frames)
        if not np.isfinite(cosines[products.rows]).all():
            raise DataError("the cosine of a frame and an image is not finite; has training diverged?")
        pooling = self.pooling(products)
        said = self._titles.compare(speech, self.rows(gallery), gallery) if self._titles else None
        cosines = cosines + said.scores if said else cosines
        of_images, mean = cosines, pooling.cosines(cosines[products.rows])
        of_products = mean
        if self.by_frames:
            of_images = self._scores_by_frames(frames, gallery)
            of_images = of_images + said.scores - said.mean if said else of_images
            of_products = pooling.scores(of_images[products.rows])
        best = first_places(of_products, max(top, self._reranker.num_matched if self._reranker else 0))
        scores = of_products[best]
        images = map(products.images, best.tolist())
        rows = np.array([own[of_images[own].argmax()] for own in images])
        if self._reranker:
            order, by = self._reranker.reorder(frames, rows, scores, speech)
            best[: len(order)], rows[: len(order)], scores[: len(order)] = best[order], rows[order], by
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
        features, tokens = encoded
        kept = None if self.model.is_streaming else filled
        return Frames(features, tokens, kept).take(slice(len(pictures)))

    def _cosines(self, frames: Frames) -> Float32[np.ndarray, " G"]:
        filled = fill(_kept(frames), self.num_frames)
        return np.asarray(self._similar(self._params, self._vectors, *filled))

    def _scores_by_frames(self, frames: Frames, gallery: str | None) -> Float32[np.ndarray, " G"]:
        filled = fill(frames.features, self.num_frames)
        return np.asarray(self._by_frames(self._vectors, self._centers[gallery], *filled))

    def _compile(
        self, loaded: Model, batch_sizes: Sequence[int], shared: "Engine | None", *, with_tokens: bool
    ) -> Frames:
        """Compiles what all engines have, and returns an encoded frame."""
        index, params, side = self.index, loaded.params, self.index.about.model.encoder.image_size
        self._params = params
        [device] = jax.tree.leaves(params)[0].devices()
        self._vectors = jax.device_put(index.vectors, device)
        self._encoders = (
            shared._encoders if shared else compile_encoders(loaded, batch_sizes, side, with_tokens=with_tokens)
        )
        frames = self._encode(np.zeros((1, side, side, 3), np.uint8))
        filled, (similar, by_frames) = fill(frames.features, self.num_frames), comparing(loaded, index)
        self._similar = compiled(similar, params, self._vectors, *fill(_kept(frames), self.num_frames))
        if self.by_frames:
            known = index.centers
            self._centers = {
                gallery: np.asarray(known[gallery] if known else center(index.vectors, products.rows), np.float32)
                for gallery, products in self._products.items()
            }
            self._by_frames = compiled(by_frames, self._vectors, self._centers[None], *filled)
        return frames

    @property
    def _loaded_texts(self) -> list[Texts]:
        return [part.texts for part in (self._titles, self._reranker) if part and part.texts]

    def _warn(self, ipd: str) -> None:
        if ipd != "off":
            logger.warning("The model was trained with config.model.ipd=%r; here, frames are encoded whole.", ipd)
        if self.calibration is None and not self.naming.always:
            logger.warning(
                "The index has no calibration: there are no confidences, and some product is always named. To get one, "
                "label some clips (rice eval CLIPS.csv --index=DIR), or evaluate the run (rice eval) and index its "
                "images again (rice index)."
            )


def _kept(frames: Frames) -> np.ndarray:
    """What a clip is embedded from."""
    return frames.features if frames.pictures is None else frames.pictures
