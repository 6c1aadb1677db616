"""Embeds pictures as an index holds them, all processes together."""

import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, PyTree, UInt8

from rice_jax.eval.embed import Images, compile_rows, compute_rows, model_embedder, padded_batch_size
from rice_jax.files import absolute
from rice_jax.index.catalog import Picture
from rice_jax.index.model import Model
from rice_jax.index.store import About, Index
from rice_jax.input import transforms
from rice_jax.input.texts import clean
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.types import DataError, counted

NUM_NAMED = 10  # unusable pictures named in an error or in the log
LOG_SECONDS = 30
_Texts = Callable[[Sequence[tuple[Picture, str]], int], dict[str, np.ndarray]]  # of pictures, filled up to some rows

logger = logging.getLogger(__name__)


def embed_pictures(
    model: Model,
    pictures: Sequence[tuple[Picture, str]],
    batch_size: int,
    pool: Executor,
    titles: Mapping[str, Float32[np.ndarray, " W"]] | None = None,
) -> tuple[Index, list[tuple[Picture, str]]]:
    """An index of some pictures, and those of them that cannot be used.

    Args:
        model: what embeds them.
        pictures: at least one, with its digest.
        batch_size: largest number of pictures embedded together.
        pool: decodes them.
        titles: {title: its vector} for the decoder, 0 = there is no title; None = it reads none.
    """
    about, mesh, params = model.about, model.mesh, model.params
    embed = compile_rows(_image_embedder(model.graphdef, about.model.pmd is not None), params, mesh)
    # Few pictures get a small batch, but of a power of two: every size is compiled anew.
    few = mesh.size * 2 ** math.ceil(math.log2(max(len(pictures) / mesh.size, 1)))
    texts: _Texts | None = functools.partial(_vectors, titles) if titles else None
    texts = _Tokens(about) if about.tokenizer else texts
    batches = _picture_batches(about, pictures, min(padded_batch_size(batch_size, mesh), few), pool, texts)
    images, decoded = compute_rows(embed, params, batches, len(pictures), mesh)
    if not np.isfinite(images.embedding[decoded]).all():
        raise DataError(f"{about.checkpoint}: an embedding is not finite. Has the training diverged?")
    index = Index(
        gallery_ids=[picture.gallery for picture, _ in pictures],
        image_ids=[picture.id for picture, _ in pictures],
        product_ids=[picture.product for picture, _ in pictures],
        titles=[picture.title for picture, _ in pictures],
        paths=[absolute(picture.path) for picture, _ in pictures],
        digests=[digest for _, digest in pictures],
        fields=[dict(picture.fields) for picture, _ in pictures],
        vectors=images.embedding,
        queries=images.queries,
        about=about,
    )
    return index.take(np.flatnonzero(decoded).tolist()), [pictures[row] for row in np.flatnonzero(~decoded).tolist()]


@functools.cache
def _image_embedder(graphdef: nnx.GraphDef, with_queries: bool) -> Callable[[PyTree, dict], tuple[Images, jax.Array]]:
    """The function of (params, batch) to the embeddings and `decoded`, as all processes need the rows of all."""
    embedder = model_embedder(graphdef, with_queries=with_queries)
    return lambda params, batch: (embedder.image(params, batch), batch["decoded"])


def _picture_batches(
    about: About,
    pictures: Sequence[tuple[Picture, str]],
    batch_size: int,
    pool: Executor,
    titles: "_Texts | None",
) -> Iterator[dict]:
    """This process's share of the pictures, as `compute_rows` takes them; `decoded` is False where a picture is broken.

    The next batch is decoded while a batch is embedded.
    """
    local_size = batch_size // jax.process_count()
    first, side = jax.process_index() * local_size, about.model.encoder.image_size
    logged = time.monotonic()

    def decode(start: int) -> list[Future]:
        return [pool.submit(_decode, about, *pair) for pair in pictures[start : start + local_size]]

    waiting = decode(first)
    for start in range(first, first + len(pictures), batch_size):
        futures, waiting = waiting, decode(start + batch_size)
        index = np.arange(start, start + local_size, dtype=np.int32)
        image, decoded = np.zeros((local_size, side, side, 3), np.uint8), np.zeros(local_size, bool)
        for place, future in enumerate(futures):
            if future.exception() is None:
                image[place], decoded[place] = future.result(), True
        texts = titles(pictures[start : start + local_size], local_size) if titles else {}
        yield {"image": image, "decoded": decoded, "index": index, "mask": index < len(pictures)} | texts
        if time.monotonic() > logged + LOG_SECONDS:
            logged = time.monotonic()
            done = min(start - first + batch_size, len(pictures))
            logger.info("embedded %d of %s", done, counted(len(pictures), "picture"))


class _Tokens:
    """The tokens of pictures' titles, for models that read them; a title that is missing has none."""

    def __init__(self, about: About):
        """Reads the tokenizer.

        Raises:
            DataError: its folder is not there, or holds none.
        """
        self._tokenizer = Tokenizer(about.tokenizer, about.text_context)

    def __call__(self, pictures: Sequence[tuple[Picture, str]], num_rows: int) -> dict[str, np.ndarray]:
        texts = [clean(picture.title) for picture, _ in pictures] + [""] * (num_rows - len(pictures))
        ids, token_mask, _ = self._tokenizer(texts)
        return {"text_ids": ids, "text_token_mask": token_mask & np.array([text != "" for text in texts])[:, None]}


def _vectors(
    titles: Mapping[str, Float32[np.ndarray, " W"]], pictures: Sequence[tuple[Picture, str]], num_rows: int
) -> dict[str, np.ndarray]:
    """The vectors of pictures' titles, for decoders that read them."""
    vectors = np.zeros((num_rows, len(next(iter(titles.values())))), np.float32)
    for place, (picture, _) in enumerate(pictures):
        vectors[place] = titles[picture.title]
    return {"title": vectors, "title_mask": np.asarray(vectors.any(axis=1))}


def content(about: About, digest: str, title: str) -> tuple[str, str]:
    """What an embedding is made of: a picture, and its title if the model reads it."""
    return digest, title if about.reads_titles else ""


def _decode(about: About, picture: Picture, digest: str) -> UInt8[np.ndarray, "S S 3"]:
    """A picture as evaluation shows it to the model."""
    encoded = picture.read()
    if hashlib.sha256(encoded).hexdigest() != digest:
        raise OSError("it has changed since this program started")
    side = about.model.encoder.image_size
    return transforms.render(encoded, transforms.center_crop(about.resize, side), side)


def problem(about: About, picture: Picture, digest: str) -> str:
    """What is wrong with a picture that could not be decoded, in one line."""
    where = picture.place if picture.place == str(picture.path) else f"{picture.place}: {picture.path}"
    try:
        _decode(about, picture, digest)
    except OSError as error:
        return f"{where}: {error.strerror or error}"
    return f"{where}: it changed while this program ran"


def digest_of(picture: Picture) -> str:
    """SHA-256 of a file's content; "" if it cannot be read."""
    try:
        return hashlib.sha256(picture.read()).hexdigest()
    except OSError:
        return ""
