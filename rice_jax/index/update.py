"""Builds and updates the index of a shop: embeds pictures that are new or have changed, and keeps the rest."""

import dataclasses
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rice_jax.files import absolute, leaving_no_trace, locked
from rice_jax.index.catalog import Names, Picture, of_gallery, read_names, read_shop, require_shop
from rice_jax.index.decoder_texts import load_decoder_texts
from rice_jax.index.embedding import NUM_NAMED, content, digest_of, embed_pictures, problem
from rice_jax.index.model import Model, describe, load_index_model, load_model, same_model
from rice_jax.index.similar import report_similar
from rice_jax.index.smaller import make_smaller, project, require_smaller
from rice_jax.index.store import FILE, TEXTS, About, Index, read_index, require_one_file, write_index
from rice_jax.index.text import AS_BEFORE, TextSettings, embed_distinct, embed_titles
from rice_jax.models.contract import SupportsEmbedding, require
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.processes import LOCK, agree, only_program
from rice_jax.types import DataError, counted

CHANGES = ("add", "mirror", "remove")

logger = logging.getLogger(__name__)


class UnusablePictures(DataError):
    """Some pictures cannot be used; all others are in the index."""


def build_index(
    images: str | os.PathLike,
    *,
    out: str | os.PathLike,
    model: str | os.PathLike | None = None,
    change: str = "add",
    mix: bool = False,
    dimensions: int | None = None,
    store_as: str | None = None,
    text_model: str | os.PathLike | None = None,
    text_weight: float | None = None,
) -> Index:
    """Builds or updates the index of a shop, on this process's first device.

    Pictures that are in the index already are embedded again only if their file's content has changed, or, where the
    model reads titles, their title.

    Example:
        >>> import rice_jax
        >>> index = rice_jax.build_index("pictures", model="runs/lpr4m", out="shop")
        >>> index.image_ids
        ['mug', 'sofa']
        >>> index = rice_jax.build_index("sold_out.csv", out="shop", change="remove")

    Args:
        images: a directory with the files ID.jpg, GALLERY/ID.jpg, or GALLERY/PRODUCT/PICTURE.jpg (also .jpeg, .png,
            .webp), or a CSV with the columns `path`, relative to the CSV, and `id` or `product` or both, and optionally
            `gallery` and `title`. Pictures of one product share `product`. Further columns are kept (`Index.fields`).
        out: directory of the index; created if it does not exist.
        model: a run's workdir, one of its checkpoints, or a converted model; None = the model that made the index.
        change: "add" adds and replaces pictures; "mirror" also removes pictures that are not among `images`; "remove"
            removes `images`, whose files need not exist, and needs no model.
        mix: whether "add" may add pictures from another directory or CSV than the index is made of.
        dimensions: of the vectors, fewer than the model's; None = those of the index, or the model's for a new one.
        store_as: "float32", or "int8" for a quarter of the bytes on disk; None = as the index is.
        text_model: a converted text tower, or a run that has trained one, which embeds the titles; None = that of the
            index, or of the model's calibration, and for a decoder that was trained with embeddings the one that made
            these (`decoder_texts`).
        text_weight: of the cosine of title and speech in the scores, beside 1 of the pictures; 0 = titles are not
            embedded; None = that of the index, or of the model's calibration.

    Returns:
        The index.

    Raises:
        CheckpointError: there is no checkpoint, another model made the index, or another text tower embedded its
            titles.
        ConfigError: one of `text_model` and `text_weight` is needed, too.
        DataError: the index has another source, there are no pictures, or some cannot be used; these are listed after
            all others have been stored, and nothing is stored if there are no others.
        FileNotFoundError: `images` does not exist; or there is no index, and no model is named or `change` is "remove".
    """
    if change not in CHANGES:
        raise DataError(f"change: found {change!r}, expected one of {', '.join(map(repr, CHANGES))}")
    directory = Path(out)
    if change == "remove":
        return remove_pictures(directory, images)
    require_shop(images)  # before the model is loaded
    loaded = load_index_model(read_index(directory).about) if model is None else load_model(model)
    texts = TextSettings(text_model, text_weight)
    return update_index(
        directory, images, loaded, change=change, mix=mix, dimensions=dimensions, store_as=store_as, texts=texts
    )


def update_index(
    directory: Path,
    images: str | os.PathLike,
    model: Model,
    *,
    change: str = "add",
    mix: bool = False,
    dimensions: int | None = None,
    store_as: str | None = None,
    texts: TextSettings = AS_BEFORE,
    batch_size: int = 128,
    num_threads: int = 16,
) -> Index:
    """Adds pictures to an index, or makes it hold these and no others; all processes call this together.

    If another program changes the index, this one waits until that one is done.

    Args:
        directory: of the index; created if it does not exist.
        images: a directory or a CSV, see `read_shop`.
        model: what embeds the pictures.
        change: "add" or "mirror", see `build_index`.
        mix: see `build_index`.
        dimensions: see `build_index`.
        store_as: see `build_index`.
        texts: how titles are embedded.
        batch_size: largest number of pictures embedded together; rounded up to a multiple of the number of devices.
        num_threads: decoding threads of this process.

    Returns:
        The index.

    Raises:
        ConfigError: the model embeds no images, or `texts` are incomplete.
        CheckpointError: another model made the index, or another text tower embedded its titles.
        DataError: the index has another source, there are no pictures, or some cannot be used; these are listed after
            all others have been stored, and nothing is stored if there are no others.
    """
    with leaving_no_trace(directory):
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
        with only_program(directory, wait=True):
            settings = _Settings(change, mix, dimensions, store_as, texts, batch_size, num_threads)
            return _update(directory, images, model, settings)


class _Settings(NamedTuple):
    """The keyword arguments of `update_index`."""

    change: str
    mix: bool
    dimensions: int | None
    store_as: str | None
    texts: TextSettings
    batch_size: int
    num_threads: int


def _update(directory: Path, images: str | os.PathLike, model: Model, settings: _Settings) -> Index:
    about = model.about
    require(nnx.merge(model.graphdef, model.params), SupportsEmbedding, "an index")
    old = read_of_same_model(directory, about)
    texts = settings.texts.load(old.text if old else None, about, is_new=old is None)
    of_old = old.about if old and old.image_ids else None
    model, read = load_decoder_texts(model, of_old, settings.texts.model, texts and texts[0])
    about = model.about
    sources = _sources(directory, old, images, settings)
    pictures = read_shop(images)
    num, width = (
        len(pictures) + len(old.image_ids if old else ()),
        old.vectors.shape[1] if old else about.model.embed_dim,
    )
    require_smaller(num, width, bool(old and old.projection is not None), settings.dimensions, settings.store_as)
    with ThreadPoolExecutor(max(settings.num_threads, 1)) as pool:
        digests = list(pool.map(digest_of, pictures))
        known = {} if old is None else _contents(old)
        fresh = [
            (picture, digest)
            for picture, digest in zip(pictures, digests, strict=True)
            if not digest or known.get(_key(picture)) != content(about, digest, picture.title)
        ]
        logger.info("%s: %s; new or changed: %d", images, counted(len(pictures), "picture"), len(fresh))
        if old and len(sources) > 1:
            _report_replaced(images, old, [picture for picture, _ in fresh])
        titles = embed_distinct(read, (picture.title for picture, _ in fresh)) if read else None
        new, broken = embed_pictures(model, fresh, settings.batch_size, pool, titles) if fresh else (None, [])
    about = keep_calibration(about, old)
    if about.calibration is None:
        logger.info(
            "%s: has no calibration of this model, so recognition cannot give confidences; to get one, label some "
            "clips (rice eval CLIPS.csv --index=%s), or evaluate the run (rice eval) and index again; unchanged "
            "pictures are not embedded again",
            about.checkpoint,
            shlex.quote(str(directory)),
        )
    if old and new:
        new = dataclasses.replace(new, vectors=project(new.vectors, old.projection))
    index = _merge([index for index in (old, new) if index is not None], pictures, about, settings.change)
    text = None
    if texts:
        embedded = (old.known_titles if old else {}) | (titles if titles and read is texts[0] else {})
        text = embed_titles(*texts, index.titles, embedded)
    index = dataclasses.replace(index, sources=sources, text=text)
    index = make_smaller(index, settings.dimensions, settings.store_as)
    if index.image_ids and jax.process_index() == 0:
        write_index(directory, index)
        report_similar(directory, index)
    agree(True)  # a process that exits may end the others, so all wait until the index is on disk
    if index.image_ids:
        held, galleries = len(index.image_ids), len(set(index.gallery_ids))
        of_products = f" of {counted(index.num_products, 'product')}" if index.num_products < held else ""
        logger.info("%s: %s%s in %s", directory, counted(held, "picture"), of_products, counted(galleries, "gallery"))
    if broken:
        reasons = [problem(about, picture, digest) for picture, digest in broken[:NUM_NAMED]]
        more = [f"and {len(broken) - NUM_NAMED} more"] if len(broken) > NUM_NAMED else []
        raise (UnusablePictures if index.image_ids else DataError)(
            "\n  ".join([f"{len(broken)} of {counted(len(pictures), 'picture')} cannot be used:", *reasons, *more])
            + (
                f"\nAll others are in {directory}. Repair these or leave them out, and run the same command again; the "
                "others are not embedded again."
                if index.image_ids
                else f"\nNo index is written to {directory}."
            )
        )
    return index


def remove_pictures(directory: Path, images: str | os.PathLike) -> Index:
    """Removes pictures from an index; their files need not exist anymore. Only one process may call this.

    Args:
        directory: of the index.
        images: a directory or a CSV that names pictures or products, see `read_names`. An id also names the product's
            pictures ID/….

    Returns:
        The index.

    Raises:
        FileNotFoundError: there is no index.
        DataError: no picture is named, or none of them is in the index.
    """
    require_one_file(directory)
    read_index(directory)  # there may be none, and then nothing to lock
    with locked(directory / LOCK, wait=True):
        return _remove(directory, images)


def _remove(directory: Path, images: str | os.PathLike) -> Index:
    index = read_index(directory)
    named = read_names(images)
    everything = named.pictures | named.products
    found = [_named(named, *ids) for ids in zip(index.gallery_ids, index.image_ids, index.product_ids, strict=True)]
    kept = [row for row, key in enumerate(found) if key is None]
    num_removed = len(found) - len(kept)
    if not num_removed:
        raise DataError(
            f"{images}: none of its {len(everything)} {'pictures' if named.pictures else 'products'}, e.g. "
            f"{of_gallery(*min(everything))}, is in {directory}; expected the ids and galleries that they were indexed "
            "with"
        )
    left = index.take(kept)
    write_index(directory, left)
    logger.info("%s: removed %d of %s", directory, num_removed, counted(len(found), "picture"))
    if unknown := sorted(everything.difference(found)):
        some = ", ".join(of_gallery(*name) for name in unknown[:3]) + (", …" if len(unknown) > 3 else "")
        logger.warning("%s: %d not in %s, and so not removed: %s", images, len(unknown), directory, some)
    return left


def keep_calibration(about: About, old: Index | None) -> About:
    """The model with the calibration of the index that is changed, if that is one of own clips, or the only one.

    A calibration of own clips is closer to the shop than the run's.
    """
    kept = old and old.about.calibration
    if kept and (kept.source or about.calibration is None):
        return dataclasses.replace(about, calibration=kept.with_match(about.calibration))
    return about


def read_of_same_model(directory: Path, about: About) -> Index | None:
    """The index to change; None if there is none yet.

    Raises:
        CheckpointError: another model made it.
        DataError: it is in several files, or damaged.
    """
    require_one_file(directory)
    if not (directory / FILE).exists():
        return None
    index = read_index(directory)
    found = index.about
    if not same_model(found, about):
        raise CheckpointError(
            f"{directory}: another model made this index (found {describe(found)}; expected {describe(about)}). Use "
            "the model that made it, or another directory for the index"
        )
    return index


def _sources(directory: Path, old: Index | None, images: str | os.PathLike, settings: _Settings) -> tuple[str, ...]:
    """Where the pictures of the index are from, after the update.

    Raises:
        DataError: two shops would be mixed, and nobody has asked for it.
    """
    own = absolute(images)
    if old is None or not old.image_ids or settings.change == "mirror":
        return (own,)
    sources = list(map(absolute, old.sources))
    if sources and own not in sources and not settings.mix:
        raise DataError(
            f"{directory}: holds pictures of {', '.join(sources)}, and {own} is another source. If they are of one "
            "shop, add them with --mix (mix=True, config.index.mix=True); otherwise choose another directory for the "
            "index"
        )
    return tuple(dict.fromkeys([*sources, own]))


def _report_replaced(images: str | os.PathLike, old: Index, fresh: Sequence[Picture]) -> None:
    """Names pictures of one source that take the place of those of another one."""
    paths = dict(zip(_keys(old), old.paths, strict=True))
    pairs = [(absolute(paths[_key(picture)]), absolute(picture.path)) for picture in fresh if _key(picture) in paths]
    if replaced := [pair for pair in pairs if len(set(pair)) == 2]:
        found = "1 picture replaces one" if len(replaced) == 1 else f"{len(replaced)} pictures replace those"
        logger.warning("%s: %s of another source with the same id, such as %s by %s", images, found, *replaced[0])


def _merge(indexes: Sequence[Index], pictures: Sequence[Picture], about: About, change: str) -> Index:
    """Merges indexes; pictures of a later one replace those of an earlier one."""
    queries = [index.queries for index in indexes if index.queries is not None]
    texts: dict[str, Any] = {name: [text for index in indexes for text in getattr(index, name)] for name in TEXTS}
    both = Index(
        **texts,
        vectors=np.concatenate([index.vectors for index in indexes]),
        queries=np.concatenate(queries) if about.model.pmd else None,
        about=about,
        projection=indexes[0].projection,
        dtype=indexes[0].dtype,
    )
    rows = {key: row for row, key in enumerate(_keys(both))}
    named = {_key(picture): picture for picture in pictures}
    kept = sorted(rows.keys() & named.keys() if change == "mirror" else rows)
    merged = both.take([rows[key] for key in kept])
    for place, picture in enumerate(map(named.get, kept)):
        if picture:
            merged.titles[place], merged.paths[place] = picture.title, absolute(picture.path)
            merged.product_ids[place], merged.fields[place] = picture.product, dict(picture.fields)
    return merged


def _named(named: Names, gallery: str, image: str, product: str) -> tuple[str, str] | None:
    """Which name means a picture: its own, its product's, or its product's as an id if the picture's is PRODUCT/…."""
    if (gallery, product) in named.products:
        return gallery, product
    keys = [(gallery, image)] + [(gallery, product)] * image.startswith(f"{product}/")
    return next((key for key in keys if key in named.pictures), None)


def _key(picture: Picture) -> tuple[str, str]:
    return picture.gallery, picture.id


def _contents(index: Index) -> dict[tuple[str, str], tuple[str, str]]:
    made_of = (content(index.about, *of) for of in zip(index.digests, index.titles, strict=True))
    return dict(zip(_keys(index), made_of, strict=True))


def _keys(index: Index) -> Iterator[tuple[str, str]]:
    return zip(index.gallery_ids, index.image_ids, strict=True)
