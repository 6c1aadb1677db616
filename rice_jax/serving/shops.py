"""The indexes that the server searches, each of which may be replaced while it is searched."""

import contextlib
import datetime
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import HTTPException

from rice_jax.pages.album import thumbnail
from rice_jax.recognition.changes import Event
from rice_jax.recognition.engine import Engine, Match
from rice_jax.recognition.lines import event_line
from rice_jax.recognition.products import Products, fields_of, parse_where
from rice_jax.recognition.words import choose_space, search_words
from rice_jax.serving.responses import (
    HealthResponse,
    ListedImage,
    ListedProduct,
    Product,
    ProductsResponse,
    WordsResponse,
)
from rice_jax.serving.stills import Still
from rice_jax.serving.uploads import Listing, Selection, WordsQuery
from rice_jax.types import DataError

NUM_THUMBNAILS = 1000  # of an index, kept in memory
RETRY_SECONDS = 60.0  # after which an index that could not be used is tried again: its model may have arrived

logger = logging.getLogger(__name__)


class Version(NamedTuple):
    """Tells one content of an index's files from the next."""

    written: int  # nanoseconds, the latest
    size: int  # of all
    numbers: tuple[int, ...]  # of the files; others take their places when an index is replaced


class Shop:
    """An index in use. It never changes, so a request that holds it finishes with it.

    Attributes:
        name: of the index; "" = it is the only one.
        engine: searches it.
        num_products: number of its products.
        fingerprint: of the index (`Index.checksum`).
        loaded: when it was loaded, UTC.
    """

    def __init__(self, name: str, engine: Engine, written: int):
        """Describes a loaded index, whose file was written at a time in nanoseconds."""
        self.name, self.engine = name, engine
        index = engine.index
        self.num_products = index.num_products
        names = zip(index.gallery_ids, index.image_ids, strict=True)
        self._digests = dict(zip(names, index.digests, strict=True))
        paths = dict(zip(index.digests, index.paths, strict=True))
        # Not a method: a cycle would keep the index in memory after it is replaced.
        self.thumbnail = functools.lru_cache(NUM_THUMBNAILS)(functools.partial(_thumbnail, paths))
        self.fingerprint, self._written = index.checksum, _time(written / 1e9)
        self.loaded = _time(time.time())

    @property
    def model(self) -> str:
        """Fingerprint of the model."""
        return self.engine.index.about.fingerprint

    def require_products(self, selection: Selection) -> Products:
        """The products that are searched.

        Raises:
            HTTPException: the index has no such gallery, column, or product (404).
        """
        try:
            return self.engine.products(selection.gallery, parse_where(selection.where))
        except DataError as error:
            raise HTTPException(404, str(error)) from error

    def product(self, match: Match) -> Product:
        """A match as a response has it."""
        return Product(**match._asdict(), image=self._image(match.gallery, match.image_id))

    def written(self, event: Event, stream_id: str, frame: Still | None) -> dict[str, Any]:
        """An event as `rice recognize --follow` prints it, with the addresses of small pictures as in responses."""
        line = event_line(event)
        if frame:
            line["frame"] = {"second": round(frame.second, 4), "image": f"streams/{stream_id}/frames/{frame.name}"}
        for product in (line["product"], *line.get("products", ())):
            if (product["gallery"], product["image_id"]) in self._digests:  # the event may be older than the index
                product["image"] = self._image(product["gallery"], product["image_id"])
        return line

    def listed(self, listing: Listing) -> ProductsResponse:
        """Lists products.

        Raises:
            HTTPException: of `require_products`.
        """
        products = self.require_products(listing)
        total = len(products.edges) - 1
        return ProductsResponse(
            products=[
                self._listed(products.images(place).tolist())
                for place in range(listing.offset, min(listing.offset + listing.limit, total))
            ],
            total=total,
            index=self.fingerprint,
        )

    def search(self, query: WordsQuery) -> WordsResponse:
        """Searches with words.

        Raises:
            HTTPException: of `require_products`, and if the index has no titles as vectors (404) or the words cannot be
                compared (422).
        """
        products, index, texts = self.require_products(query), self.engine.index, self.engine.texts
        if texts is None:
            detail = "the index has no titles as vectors, so words cannot be compared with it"
            raise HTTPException(404, f"{detail}; `rice index --text_model` makes them")
        try:
            by = choose_space(index, texts, query.by)
        except DataError as error:
            raise HTTPException(422, str(error)) from error
        [vector] = texts([query.q])
        if not vector.any():
            raise HTTPException(422, "q: found no words")
        found = search_words(index, vector, by, products, query.top)
        return WordsResponse(products=list(map(self.product, found)), by=by, index=self.fingerprint)

    def _listed(self, images: Sequence[int]) -> ListedProduct:
        index, first = self.engine.index, images[0]
        gallery = index.gallery_ids[first]
        ids = [index.image_ids[image] for image in images]
        return ListedProduct(
            id=index.product_ids[first],
            gallery=gallery,
            title=next(filter(None, (index.titles[image] for image in images)), ""),
            images=[ListedImage(id=name, image=self._image(gallery, name)) for name in ids],
            fields=fields_of(index, images),
        )

    def _image(self, gallery: str, image_id: str) -> str:
        return f"images/{self._digests[gallery, image_id]}"

    def health(self, interval_seconds: float, stale: bool) -> HealthResponse:
        """Describes the index and its model."""
        index = self.engine.index
        return HealthResponse(
            images=len(index.image_ids),
            products=self.num_products,
            galleries=len(self.engine.galleries),
            num_frames=self.engine.num_frames,
            interval_seconds=interval_seconds,
            fingerprint=self.model,
            index=self.fingerprint,
            written=self._written,
            loaded=self.loaded,
            stale=stale,
        )


class Shops:
    """The current shop of each index. Only one thread may replace them; any number may use them.

    Attributes:
        names: of the indexes.
        stale: names of the indexes whose newest file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path], load: Callable[[Path, Sequence[Engine]], Engine]):
        """Loads the indexes.

        Args:
            files: {name of an index: its file; if there is none, its shards are in the same directory}.
            load: loads the index of a file; may share the models of the engines that are given to it.

        Raises:
            Exception: whatever `load` raises.
        """
        self._files, self._load = files, load
        self._shops: dict[str, Shop] = {}
        self._seen: dict[str, tuple[Version | None, float]] = {}  # {name: (version, when it was tried)}
        self.stale: set[str] = set()
        for name in files:
            self._take(name, self._version(name))

    @property
    def names(self) -> Collection[str]:
        """Names of the indexes."""
        return self._files.keys()

    def __getitem__(self, name: str) -> Shop:
        """The shop that answers requests from now on.

        Raises:
            HTTPException: there is no such index (404).
        """
        if name not in self._shops:
            raise HTTPException(404, f"found no index {name[:80]!r}, expected one of {', '.join(self._shops)}")
        return self._shops[name]

    def refresh(self, name: str) -> bool:
        """Replaces a shop if a file of it has been replaced; returns whether it was.

        If the new index cannot be used, the log says why, and it is tried again after `RETRY_SECONDS`.
        """
        version, (seen, tried) = self._version(name), self._seen[name]
        if version == seen and not (name in self.stale and time.monotonic() > tried + RETRY_SECONDS):
            return False
        file = self._files[name]
        try:
            self._take(name, version)
        except Exception as error:  # whatever it is, the server goes on with the index that it has
            self.stale.add(name)
            logger.warning(
                "%s: the new index cannot be used, so the previous one stays (%s: %s)",
                file,
                type(error).__name__,
                error,
            )
            return False
        self.stale.discard(name)
        shop = self._shops[name]
        logger.info(
            "%s: replaced; %d pictures of %d products", file, len(shop.engine.index.image_ids), shop.num_products
        )
        return True

    def _take(self, name: str, version: Version | None) -> None:
        self._seen[name] = version, time.monotonic()
        engine = self._load(self._files[name], [shop.engine for shop in self._shops.values()])
        shop = Shop(name, engine, version.written if version else 0)
        self._shops = self._shops | {name: shop}  # at once: a reader has the old ones or the new ones

    def _version(self, name: str) -> Version | None:
        with contextlib.suppress(OSError):
            file = self._files[name]
            shards = sorted(file.parent.glob(f"*{file.suffix}"))
            found = [os.stat(own) for own in ([file] if file.exists() else shards)]
            if found:
                written, size = max(own.st_mtime_ns for own in found), sum(own.st_size for own in found)
                return Version(written, size, tuple(own.st_ino for own in found))
        return None


def _thumbnail(paths: Mapping[str, str], digest: str) -> bytes:
    if digest not in paths:
        raise HTTPException(404, "found no such image in the index")
    with contextlib.suppress(OSError):
        encoded = Path(paths[digest]).read_bytes()
        if hashlib.sha256(encoded).hexdigest() == digest:
            return thumbnail(encoded)[0]
    raise HTTPException(404, "the image's file is missing, or has changed since indexing")


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(round(seconds), datetime.UTC)
