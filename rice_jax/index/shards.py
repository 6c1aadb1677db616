"""Embeds a large catalog in shards, by any number of processes or machines that need not know of each other.

A shard is a tar, or some thousand pictures of a list. Process I of N embeds each N-th shard from the I-th on, and
writes it as a file of its own, whole or not at all; a shard that is there is not embedded again. So a job that was
killed continues when the same command is run again, with any number of processes. `read_index` reads all shards as one
index.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import nnx

from rice_jax.files import absolute, locked, write_lines
from rice_jax.index.catalog import Picture, read_shop
from rice_jax.index.decoder_texts import load_decoder_texts
from rice_jax.index.embedding import digest_of, embed_pictures, problem
from rice_jax.index.model import Model, describe, same_model
from rice_jax.index.similar import report_similar
from rice_jax.index.smaller import make_smaller
from rice_jax.index.store import FILE, SHARDS, TEXTS, Index, Shard, read_file, read_index, read_shard, write_index
from rice_jax.index.tars import Found, find_packs, read_pack
from rice_jax.index.text import AS_BEFORE, TextSettings, embed_distinct, embed_titles
from rice_jax.index.update import keep_calibration, read_of_same_model
from rice_jax.models.contract import SupportsEmbedding, require
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.processes import LOCK
from rice_jax.types import DataError

SHARD_SIZE = 10_000  # pictures of a list, as many as img2dataset puts into a tar

logger = logging.getLogger(__name__)


class Done(NamedTuple):
    """What a process has done."""

    num_embedded: int  # pictures
    num_unusable: int
    num_missing: int
    num_shards: int  # that it wrote
    num_finished: int  # that were there before
    seconds: float


class Piece(NamedTuple):
    """What a shard is made of."""

    made_of: str
    read: Callable[[], Found]


def build_shards(
    images: str | os.PathLike,
    directory: Path,
    model: Model,
    *,
    worker: tuple[int, int] = (0, 1),
    store_as: str | None = None,
    texts: TextSettings = AS_BEFORE,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 128,
    num_threads: int = 16,
) -> Done:
    """Embeds this process's shards of a catalog, but for those that are there already.

    Args:
        images: a directory of tars (WebDataset, img2dataset), a directory that img2dataset wrote in its format "files",
            or whatever `read_shop` reads.
        directory: of the shards; created if it does not exist.
        model: what embeds the pictures.
        worker: which of how many processes this is, from 0.
        store_as: see `build_index`; shards of another type are embedded again.
        texts: how titles are embedded; shards with other ones are embedded again.
        shard_size: pictures of a shard, if they are not in tars or folders of img2dataset.
        batch_size: see `update_index`.
        num_threads: see `update_index`.

    Returns:
        What was done. Pictures that cannot be used are left out, counted, and listed in a text file beside their shard.

    Raises:
        CheckpointError: another model made shards in the directory.
        ConfigError: the model embeds no images, or `texts` are incomplete.
        DataError: there are no pictures, or the directory holds an index.
    """
    require(nnx.merge(model.graphdef, model.params), SupportsEmbedding, "an index")
    if (directory / FILE).exists():
        raise DataError(f"{directory}: holds an index, expected a directory of its own for shards")
    directory.mkdir(parents=True, exist_ok=True)
    embedder = texts.load(None, model.about)
    model, read = load_decoder_texts(model, None, texts.model, embedder and embedder[0])
    told = f" {embedder[0].fingerprint} {embedder[1]:g}" if embedder else ""
    told += f" {read.fingerprint}" if read else ""
    told += " int8" if store_as == "int8" else ""
    pieces = [piece._replace(made_of=piece.made_of + told) for piece in find_pieces(Path(images), shard_size)]
    own = range(worker[0], len(pieces), worker[1])
    fresh = [number for number in own if not _is_finished(directory, number, pieces, model)]
    for number in sorted({*own} - {*fresh}):
        _tell_number(directory, number, len(pieces))
    logger.info(
        "%s: %d shards, of which %d are of process %d of %d, and %d of these are finished",
        images, len(pieces), len(own), *worker, len(own) - len(fresh),
    )  # fmt: skip
    num_embedded = num_unusable = num_missing = 0
    start = time.monotonic()
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        for number in fresh:
            began, piece = time.monotonic(), pieces[number]
            found = piece.read()
            pairs = list(zip(found.pictures, pool.map(digest_of, found.pictures), strict=True))
            titles = embed_distinct(read, (picture.title for picture in found.pictures)) if read else None
            index, broken = embed_pictures(model, pairs, batch_size, pool, titles) if pairs else (_empty(model), [])
            problems = found.problems + [problem(model.about, *pair) for pair in broken]
            known = titles if titles and embedder and read is embedder[0] else {}
            text = embed_titles(*embedder, index.titles, known) if embedder else None
            index = dataclasses.replace(index, sources=(absolute(images),), text=text)
            index = make_smaller(index, None, store_as)
            shard = Shard(number, len(pieces), piece.made_of, len(problems), found.num_missing)
            listed = directory / Path(shard.file).with_suffix(".txt")
            if problems:
                write_lines(listed, problems)
            else:
                listed.unlink(missing_ok=True)
            write_index(directory, index, shard)
            num_embedded += len(index.image_ids)
            num_unusable += len(problems)
            num_missing += found.num_missing
            seconds = time.monotonic() - began
            logger.info(
                "%s: %d pictures in %.1f seconds (%.0f per second)%s",
                directory / shard.file, len(index.image_ids), seconds, len(index.image_ids) / seconds,
                f"; {len(problems)} cannot be used, see {listed.name}" if problems else "",
            )  # fmt: skip
    seconds = time.monotonic() - start
    return Done(num_embedded, num_unusable, num_missing, len(fresh), len(own) - len(fresh), seconds)


def merge_shards(
    shards: str | os.PathLike, directory: Path, *, dimensions: int | None = None, store_as: str | None = None
) -> Index:
    """Writes all shards of a job as one index, with smaller vectors if asked to.

    Args:
        shards: directory of the shards.
        directory: of the index, another one.
        dimensions: see `build_index`.
        store_as: see `build_index`.

    An existing index is replaced if the same model made it from the same source; its calibration is kept if it is one
    of own clips. If another program changes the index, this one waits until that one is done.

    Raises:
        CheckpointError: another model made the existing index.
        DataError: a shard is missing or damaged, the existing index is of another source, or `make_smaller` raises.
        FileNotFoundError: there is no shard.
    """
    paths = sorted(Path(shards).glob(SHARDS))
    if not paths:
        raise FileNotFoundError(f"{shards}: found no shards ({SHARDS}), expected those that rice index --worker writes")
    if directory.exists() and directory.samefile(shards):
        raise DataError(f"{directory}: holds the shards, expected another directory for the index")
    index = make_smaller(read_index(shards), dimensions, store_as)
    index = dataclasses.replace(index, sources=tuple(dict.fromkeys(map(absolute, index.sources))))
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / LOCK, wait=True):
        old = read_of_same_model(directory, index.about)
        if old and old.sources and set(map(absolute, old.sources)) != set(index.sources):
            raise DataError(
                f"{directory}: holds an index of {', '.join(old.sources)}, and the shards are of "
                f"{', '.join(index.sources)}; choose another directory for the index, or remove it"
            )
        index = dataclasses.replace(index, about=keep_calibration(index.about, old))
        write_index(directory, index)
    report_similar(directory, index)
    told = [found[1] for found in map(read_shard, paths) if found]
    logger.info(
        "%s: %d pictures of %d products from %d shards; %d could not be used, and %d not be downloaded",
        directory, len(index.image_ids), index.num_products, len(paths),
        sum(shard.num_unusable for shard in told), sum(shard.num_missing for shard in told),
    )  # fmt: skip
    return index


def find_pieces(images: Path, shard_size: int = SHARD_SIZE) -> list[Piece]:
    """What each shard is made of, the same in each process.

    Raises:
        DataError: there are no pictures.
        FileNotFoundError: `images` does not exist.
    """
    if packs := find_packs(images) if images.is_dir() else []:
        return [Piece(_describe_files([pack]), functools.partial(read_pack, pack)) for pack in packs]
    pictures = read_shop(images)
    return [_piece(pictures[start : start + shard_size]) for start in range(0, len(pictures), shard_size)]


def _piece(pictures: Sequence[Picture]) -> Piece:
    listed = hashlib.sha256(json.dumps([(*own[:3], own.title, dict(own.fields)) for own in pictures]).encode())
    listed.update(_describe_files([picture.path for picture in pictures]).encode())
    return Piece(listed.hexdigest(), lambda: Found(list(pictures), [], 0))


def _describe_files(paths: Sequence[Path]) -> str:
    """Tells files apart by their names, sizes and times, as reading them takes as long as embedding them."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = path.stat()
            told = f"{path.name} {found.st_size} {found.st_mtime_ns}\n"
        except OSError:
            told = f"{path.name}\n"
        digest.update(told.encode())
    return digest.hexdigest()


def _is_finished(directory: Path, number: int, pieces: Sequence[Piece], model: Model) -> bool:
    expected = Shard(number, len(pieces), pieces[number].made_of)
    found = read_shard(directory / expected.file) if (directory / expected.file).exists() else None
    if found is None:
        return False
    about, shard = found
    if not same_model(about, model.about):
        raise CheckpointError(
            f"{directory / expected.file}: another model made this shard (found {describe(about)}; expected "
            f"{describe(model.about)}). Use the model that made it, or another directory for the shards"
        )
    return shard.made_of == expected.made_of


def _tell_number(directory: Path, number: int, of: int) -> None:
    """Writes into a finished shard how many there are now, if the catalog has got more or fewer since."""
    path = directory / Shard(number, of).file
    found = read_shard(path)
    if found and found[1].of != of:
        write_index(directory, read_file(path), dataclasses.replace(found[1], of=of))


def _empty(model: Model) -> Index:
    """A shard without pictures."""
    texts: dict[str, Any] = {name: [] for name in TEXTS}
    about, queries = model.about, None
    if about.model.pmd:
        queries = np.zeros((0, 1, about.model.encoder.width), ml_dtypes.bfloat16)
    return Index(**texts, vectors=np.zeros((0, 1), np.float32), queries=queries, about=about)
