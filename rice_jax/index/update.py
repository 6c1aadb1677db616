"""Brings an index up to date with a shop: embeds the pictures that are new or have changed, and keeps the rest."""

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree, UInt8
from PIL import UnidentifiedImageError

from rice_jax.config import Config
from rice_jax.eval.calibration import read_calibration
from rice_jax.eval.embed import compile_rows, compute_rows, model_embedder
from rice_jax.index.catalog import Picture, read_shop
from rice_jax.index.store import FILE, TEXTS, About, Index, read_index, write_index
from rice_jax.input import transforms
from rice_jax.input.pipeline import share
from rice_jax.models.rice import RiceConfig
from rice_jax.models.weights import CheckpointError, embedding_fingerprint
from rice_jax.parallel.processes import agree
from rice_jax.types import DataError

NUM_NAMED = 10  # pictures that cannot be used, in an error
LOG_SECONDS = 30

logger = logging.getLogger(__name__)


def update_index(
    config: Config,
    model: RiceConfig,
    graphdef: nnx.GraphDef,
    params: PyTree,
    mesh: Mesh,
    directory: Path,
    source: Path,
    workdir: Path,
    *,
    with_decoder: bool,
) -> None:
    """Adds the pictures of `config.index.images` to an index, or makes it hold these and no others.

    What is there already is embedded again only if its file's content is another one. All processes call this together.

    Args:
        config: how pictures are shown to the model, and `index`.
        model: its parts.
        graphdef: structure of the model.
        params: trained ones.
        mesh: all devices.
        directory: of the index; made if there is none.
        source: where the parameters are from.
        workdir: of the run, where its evaluation has written a calibration.
        with_decoder: whether there is a decoder that has been trained; then re-ranking is prepared.

    Raises:
        CheckpointError: another model made the index.
        DataError: there are no pictures; or some cannot be used, which are named after the others have been written.
    """
    about = _about(config, model, params, source, workdir, with_decoder)
    old = _read_of_same_model(directory, about)
    pictures = read_shop(config.index.images)
    with ThreadPoolExecutor(max(config.data.num_threads, 1)) as pool:
        digests = list(pool.map(_digest, pictures))
    known = {} if old is None else dict(zip(_keys(old), old.digests, strict=True))
    fresh = [
        (picture, digest)
        for picture, digest in zip(pictures, digests, strict=True)
        if not digest or known.get(_key(picture)) != digest
    ]
    logger.info("%s: %d pictures, of which %d are new or have changed", config.index.images, len(pictures), len(fresh))
    new, broken = _embed(config, graphdef, params, mesh, fresh, about) if fresh else (None, [])
    if old is not None and about.calibration is None:
        about = dataclasses.replace(about, calibration=old.about.calibration)
    if about.calibration is None:
        logger.info(
            "%s: no calibration of this model, so that nobody can say how sure a recognition is; evaluate the run "
            "(--mode=eval) and index again, which embeds nothing twice",
            workdir,
        )
    index = _merge([index for index in (old, new) if index is not None], pictures, about, config.index.change)
    if jax.process_index() == 0:
        write_index(directory, index)
    agree(True)  # a process that ends may end the others, so none does before the index is there
    logger.info("%s: %d pictures in %d galleries", directory, len(index.image_ids), len(set(index.gallery_ids)))
    if broken:
        reasons = [_problem(config, picture, digest) for picture, digest in broken[:NUM_NAMED]]
        more = [f"and {len(broken) - NUM_NAMED} more"] if len(broken) > NUM_NAMED else []
        raise DataError(
            "\n  ".join([f"{len(broken)} of {len(pictures)} pictures cannot be used:", *reasons, *more])
            + f"\nAll others are in {directory}. Repair these, or leave them out, and run the same command again: it "
            "embeds no other."
        )


def remove_pictures(directory: Path, images: str) -> None:
    """Takes pictures out of an index; their files need not exist any more. One process does it.

    Args:
        directory: of the index.
        images: directory or CSV that names them (`read_shop`); a CSV needs no paths.

    Raises:
        FileNotFoundError: there is no index.
        DataError: no picture is named, or none of them is in the index.
    """
    index = read_index(directory)
    named = set(map(_key, read_shop(images, with_paths=False)))
    kept = [row for row, key in enumerate(_keys(index)) if key not in named]
    num_removed = len(index.image_ids) - len(kept)
    if not num_removed:
        gallery, name = min(named)
        raise DataError(
            f"{images}: none of its {len(named)} pictures, e.g. {name!r} of gallery {gallery!r}, is in {directory}; "
            "expected the ids and galleries that they were indexed with"
        )
    write_index(directory, index.take(kept))
    logger.info(
        "%s: removed %d pictures, %d were not there; %d are left",
        directory,
        num_removed,
        len(named) - num_removed,
        len(kept),
    )


def _about(config: Config, model: RiceConfig, params: PyTree, source: Path, workdir: Path, with_decoder: bool) -> About:
    fingerprint = embedding_fingerprint(params, model.encoder, config.data.resize)
    calibration = read_calibration(workdir)
    return About(
        model=RiceConfig(model.encoder, model.logit_scale, model.pmd if with_decoder else None),
        resize=config.data.resize,
        num_frames=config.eval.num_frames,
        fingerprint=fingerprint,
        checkpoint=str(source.absolute()),
        calibration=calibration if calibration and calibration.fingerprint == fingerprint else None,
        ipd=config.model.ipd,
    )


def _read_of_same_model(directory: Path, about: About) -> Index | None:
    """The index to change; None if there is none yet."""
    if not (directory / FILE).exists():
        return None
    index = read_index(directory)
    found = index.about
    if (found.fingerprint, found.model.pmd) != (about.fingerprint, about.model.pmd):
        describe = lambda about: f"{about.fingerprint[:12]}, decoder {about.model.pmd}, from {about.checkpoint}"  # noqa: E731
        raise CheckpointError(
            f"{directory}: another model made this index ({describe(found)}); this one is {describe(about)}. Use that "
            "run's --config and --workdir, or another config.index.directory"
        )
    return index


def _merge(indexes: Sequence[Index], pictures: Sequence[Picture], about: About, change: str) -> Index:
    """One index of several, where what a later one has replaces what an earlier one has."""
    queries = [index.queries for index in indexes]
    both = Index(
        **{name: [text for index in indexes for text in getattr(index, name)] for name in TEXTS},
        vectors=np.concatenate([index.vectors for index in indexes]),
        queries=np.concatenate(queries) if about.model.pmd else None,
        about=about,
    )
    rows = {key: row for row, key in enumerate(_keys(both))}
    named = {_key(picture): picture for picture in pictures}
    kept = sorted(rows.keys() & named.keys() if change == "mirror" else rows)
    merged = both.take([rows[key] for key in kept])
    for place, picture in enumerate(map(named.get, kept)):
        if picture:
            merged.titles[place], merged.paths[place] = picture.title, str(picture.path.absolute())
    return merged


def _embed(
    config: Config,
    graphdef: nnx.GraphDef,
    params: PyTree,
    mesh: Mesh,
    pictures: Sequence[tuple[Picture, str]],
    about: About,
) -> tuple[Index, list[tuple[Picture, str]]]:
    """An index of some pictures, and those of them that cannot be used."""
    embedder = model_embedder(graphdef, with_queries=about.model.pmd is not None)
    embed = compile_rows(lambda params, batch: (embedder.image(params, batch), batch["decoded"]), params, mesh)
    # For a few pictures a batch of few, but not of every number: each is compiled anew.
    batch_size = min(config.eval.batch_size, mesh.size * 2 ** math.ceil(math.log2(max(len(pictures) / mesh.size, 1))))
    batches = _picture_batches(config, pictures, batch_size)
    images, decoded = compute_rows(embed, params, batches, len(pictures), mesh)
    if not np.isfinite(images.embedding[decoded]).all():
        raise DataError(
            f"{about.checkpoint}: embeds a picture by numbers that are not finite. Has the training diverged?"
        )
    index = Index(
        gallery_ids=[picture.gallery for picture, _ in pictures],
        image_ids=[picture.id for picture, _ in pictures],
        titles=[picture.title for picture, _ in pictures],
        paths=[str(picture.path.absolute()) for picture, _ in pictures],
        digests=[digest for _, digest in pictures],
        vectors=images.embedding,
        queries=images.queries,
        about=about,
    )
    return index.take(np.flatnonzero(decoded).tolist()), [pictures[row] for row in np.flatnonzero(~decoded)]


def _picture_batches(config: Config, pictures: Sequence[tuple[Picture, str]], batch_size: int) -> Iterator[dict]:
    """This process's share of the pictures, as `compute_rows` takes them; `decoded` says which are there.

    While a batch is embedded the next one is decoded.
    """
    local_size = share(batch_size, jax.process_index(), jax.process_count(), "config.eval.batch_size")
    first, side = jax.process_index() * local_size, config.model.image_size
    said = time.monotonic()
    with ThreadPoolExecutor(max(config.data.num_threads, 1)) as pool:

        def decode(start: int) -> list[Future]:
            return [pool.submit(_decode, config, *pair) for pair in pictures[start : start + local_size]]

        waiting = decode(first)
        for start in range(first, first + len(pictures), batch_size):
            futures, waiting = waiting, decode(start + batch_size)
            index = np.arange(start, start + local_size, dtype=np.int32)
            image, decoded = np.zeros((local_size, side, side, 3), np.uint8), np.zeros(local_size, bool)
            for place, future in enumerate(futures):
                if decoded_here := future.exception() is None:
                    image[place] = future.result()
                decoded[place] = decoded_here
            yield {"image": image, "decoded": decoded, "index": index, "mask": index < len(pictures)}
            if time.monotonic() > said + LOG_SECONDS:
                said = time.monotonic()
                logger.info("embedded %d of %d pictures", min(start - first + batch_size, len(pictures)), len(pictures))


def _decode(config: Config, picture: Picture, digest: str) -> UInt8[np.ndarray, "S S 3"]:
    """A picture as evaluation shows it to the model."""
    encoded = picture.path.read_bytes()
    if hashlib.sha256(encoded).hexdigest() != digest:
        raise OSError("it has changed since this program started")
    crop = transforms.center_crop(config.data.resize, config.model.image_size)
    return transforms.render(encoded, crop, config.model.image_size)


def _problem(config: Config, picture: Picture, digest: str) -> str:
    """What is wrong with a picture that could not be decoded, in a line."""
    where = picture.place if picture.place == str(picture.path) else f"{picture.place}: {picture.path}"
    try:
        _decode(config, picture, digest)
    except UnidentifiedImageError:  # it names an object in memory
        return f"{where}: is no picture"
    except OSError as error:
        return f"{where}: {error.strerror or error}"
    except Exception as error:  # a damaged file lets Pillow raise anything
        return f"{where}: {type(error).__name__}: {error}"
    return f"{where}: it changed while this program ran"


def _digest(picture: Picture) -> str:
    """SHA-256 of a file's content; "" if it cannot be read."""
    try:
        return hashlib.sha256(picture.path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _key(picture: Picture) -> tuple[str, str]:
    return picture.gallery, picture.id


def _keys(index: Index) -> Iterator[tuple[str, str]]:
    return zip(index.gallery_ids, index.image_ids, strict=True)
