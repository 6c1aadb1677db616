"""The index of a shop in Milvus: a file (Milvus Lite), a server, or a distributed cluster.

Milvus holds a copy of an index on disk, without what the decoder needs to re-rank. A collection has a row for each
picture:

    key         of the gallery and the picture's id
    gallery     key of the gallery
    product     key of the gallery and the product
    conditions  keys of the columns and values of the product's further columns
    picture     ids, title, path, and further columns, as JSON
    vector      the embedding, unit length, and behind it √weight · the title's, if the index has any (`Index.rows`)
    stamp       SHA-256 of the others

A key is made of texts (`key_of`), which may be of any length and need no escapes in a filter. A second collection,
`NAME_galleries`, has a row for each gallery, whose vector is the mean of its embeddings, and one for all; the latter
describes the model. If the index has a projection, each of its rows is one too.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rice_jax.config import ConfigError
from rice_jax.index.export import EFFORT
from rice_jax.index.store import TEXTS, About, Index
from rice_jax.index.text import IndexText
from rice_jax.types import DataError, normal_form

NAME = "rice"  # of the collection
TOKEN = "MILVUS_TOKEN"  # environment variable with the token, or USER:PASSWORD, of a server
KEY_LENGTH = 32
ALL = "0" * KEY_LENGTH  # key of the row of all galleries
MAX_LIMIT = 16384  # pictures that a search returns
BATCH = 1000  # rows that are written together
PAGE = 4096  # rows that are read together
GROUP = 100  # products whose pictures are read together
PICTURE = {name: column for name, column in TEXTS.items() if name != "digests"}


class Hit(NamedTuple):
    """A picture that a search found."""

    key: str
    product: str  # its key
    score: float  # cosine


class MilvusIndex:
    """An index in Milvus that is searched.

    Attributes:
        about: the model, as of an index on disk.
        kind: one of `export.KINDS`.
        num_pictures: number of pictures.
        projection: what queries are multiplied by, as of an index on disk.
    """

    def __init__(self, uri: str, name: str = NAME):
        """Connects to Milvus.

        Args:
            uri: a file whose name ends in .db (Milvus Lite), or the address of a server or cluster, such as
                `http://localhost:19530`; its token is taken from the environment variable MILVUS_TOKEN.
            name: of the collection.

        Raises:
            ConfigError: pymilvus is not installed.
            FileNotFoundError: there is no such index.
            OSError: Milvus refuses.
        """
        self._uri, self._name = uri, name
        self._client = connect(uri)
        with naming_errors(uri):
            stored = read_about(self._client, name)
            if stored is None:
                raise FileNotFoundError(
                    f"{uri}: found no index {name!r} in Milvus; make one: rice index PICTURES --out=DIR "
                    f"--store=milvus --uri={uri}"
                )
            for collection in (name, galleries_of(name)):
                self._client.load_collection(collection)
        self.about = About.from_dict(stored["about"])
        self.kind: str = stored["kind"]
        self.num_pictures: int = stored["pictures"]
        self._columns: list[str] = stored["columns"]
        self._lists: int = stored["lists"]
        self._text: str | None = stored.get("text")
        self._dimensions: int | None = stored.get("dimensions")  # of the pictures' part of a vector; None = all
        self.projection = self._read_projection(stored.get("projection", 0))

    def search(
        self,
        queries: Float32[np.ndarray, "Q N"],
        limit: int,
        *,
        gallery: str | None = None,
        where: Mapping[str, str | Collection[str]] | None = None,
        effort: int = EFFORT,
    ) -> list[list[Hit]]:
        """The pictures most similar to each of some vectors, best first.

        Args:
            queries: embeddings, multiplied by `projection` if there is one; if titles are searched, too, and behind
                them √weight · the embedding of speech, or 0.
            limit: number of pictures, 1 to 16,384.
            gallery: id of the gallery that is searched; None = all.
            where: searches only products of which the further columns of the shop's CSV say this, as in recognition.
            effort: of an approximate search: candidates of "hnsw", of which there are at least `limit`, or lists of
                "ivf" that are searched.

        Raises:
            DataError: there is no such gallery or column, or `limit` is out of range.
            OSError: Milvus refuses.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise DataError(f"limit: found {limit}, expected 1 to {MAX_LIMIT} pictures")
        params = {"flat": {}, "hnsw": {"ef": max(effort, limit)}}.get(self.kind, {"nprobe": min(effort, self._lists)})
        with naming_errors(self._uri):
            condition = self._filter(gallery, where)
            found = [
                hits
                for start in range(0, len(queries), GROUP)
                for hits in self._client.search(
                    self._name,
                    data=queries[start : start + GROUP].tolist(),
                    filter=condition,
                    limit=limit,
                    output_fields=["product"],
                    search_params={"metric_type": "IP", "params": params},
                    anns_field="vector",
                )
            ]
        return [[Hit(hit["key"], hit["entity"]["product"], float(hit["distance"])) for hit in hits] for hits in found]

    def take(self, products: Iterable[str]) -> Index:
        """An index of some products with all their pictures, by the products' keys (`Hit.product`)."""
        keys = list(dict.fromkeys(products))
        groups = [keys[start : start + GROUP] for start in range(0, len(keys), GROUP)]
        return self._read(f"product in {json.dumps(group)}" for group in groups)

    def first(self) -> Index:
        """An index of any one product: enough for an engine that only encodes."""
        with naming_errors(self._uri):
            rows = self._client.query(self._name, filter="", limit=1, output_fields=["product"])
        return self.take([row["product"] for row in rows])

    def read(self, gallery: str | None = None) -> Index:
        """An index of all pictures of a gallery; None = of all galleries.

        Raises:
            DataError: there is no such gallery.
            OSError: Milvus refuses.
        """
        with naming_errors(self._uri):
            condition = self._filter(gallery, None)
        return self._read([condition])

    def _read_projection(self, num_rows: int) -> Float32[np.ndarray, "E N"] | None:
        if not num_rows:
            return None
        names = [row_name(row) for row in range(num_rows)]
        with naming_errors(self._uri):
            rows = {
                row["key"]: row["vector"]
                for keys in batches(names)
                for row in self._client.get(galleries_of(self._name), ids=keys, output_fields=["key", "vector"])
            }
        return np.array([rows[name] for name in names], np.float32)[:, : self._dimensions]

    def _read(self, filters: Iterable[str]) -> Index:
        with naming_errors(self._uri):
            rows = [row for each in filters for row in read_rows(self._client, self._name, each, ["picture", "vector"])]
            texts: dict[str, Any] = {
                name: [row["picture"].get(column, "") for row in rows]
                for name, column in PICTURE.items()
                if name != "fields"
            }
            galleries: dict[str, str | None] = {ALL: None}
            galleries |= {key_of(gallery): normal_form(gallery) for gallery in texts["gallery_ids"]}
            for name in ("gallery_ids", "image_ids", "product_ids"):  # as `store.read_file` does
                texts[name] = list(map(normal_form, texts[name]))
            centers: dict[str | None, np.ndarray] = {}
            for keys in batches(list(galleries)):
                for row in self._client.get(galleries_of(self._name), ids=keys, output_fields=["key", "vector"]):
                    centers[galleries[row["key"]]] = np.array(row["vector"], np.float32)
        vectors = np.array([row["vector"] for row in rows], np.float32).reshape(len(rows), len(centers[None]))
        own, text = slice(self._dimensions), None
        if self._text:
            behind = slice(self._dimensions, None)
            text = IndexText.unscale(self._text.encode(), vectors[:, behind])
            means = {gallery: text.unscaled(mean[behind]) for gallery, mean in centers.items()}
            text = dataclasses.replace(text, centers=means)
        index = Index(
            **texts,
            digests=[""] * len(rows),
            fields=[row["picture"].get("fields", {}) for row in rows],
            vectors=vectors[:, own],
            queries=None,
            about=self.about,
            centers={gallery: mean[own] for gallery, mean in centers.items()},
            text=text,
            projection=self.projection,
        )
        names = list(zip(index.gallery_ids, index.image_ids, strict=True))
        return index.take(sorted(range(len(names)), key=names.__getitem__))  # as on disk

    def _filter(self, gallery: str | None, where: Mapping[str, str | Collection[str]] | None) -> str:
        """What Milvus calls a boolean expression; "" = everything."""
        conditions = []
        if gallery is not None:
            # Earlier versions kept the accents as files have them.
            forms = {key_of(unicodedata.normalize(form, gallery)) for form in ("NFC", "NFD")}
            found = self._client.get(galleries_of(self._name), ids=sorted(forms), output_fields=["key"])
            if not found:
                raise DataError(f"{self._uri}: found no gallery {gallery!r}")
            conditions.append(f'gallery == "{found[0]["key"]}"')
        known = {normal_form(column.casefold()) for column in self._columns}
        keys: dict[str, list[str]] = {}
        for column, values in (where or {}).items():
            folded = normal_form(column.casefold())
            if folded not in known:
                found = ", ".join(map(repr, self._columns)) or "none"
                raise DataError(f"where: found no column {column!r} in the index; its further columns are: {found}")
            wanted = [values] if isinstance(values, str) else values
            keys.setdefault(folded, []).extend(key_of(folded, normal_form(value)) for value in wanted)
        conditions.extend(f"array_contains_any(conditions, {json.dumps(own)})" for own in keys.values())
        return " and ".join(conditions)


def require_milvus() -> None:
    """Checks that Milvus's client is installed.

    Raises:
        ConfigError: it is not.
    """
    if not importlib.util.find_spec("pymilvus"):
        raise ConfigError("--store=milvus: pymilvus is not installed; pip install 'rice-jax[milvus]'")


def connect(uri: str) -> Any:
    """A client of Milvus.

    Raises:
        ConfigError: pymilvus is not installed.
        OSError: Milvus cannot be reached.
    """
    require_milvus()
    from pymilvus import MilvusClient

    with naming_errors(uri):
        return MilvusClient(uri, token=os.environ.get(TOKEN, ""))


@contextlib.contextmanager
def naming_errors(uri: str) -> Iterator[None]:
    """Raises Milvus's errors as `OSError`, in one line."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise OSError(f"{uri}: Milvus refuses: {' '.join(str(error.message or error).split())}") from error


def read_about(client: Any, name: str) -> dict[str, Any] | None:
    """What the row of all galleries says; None = there is no index, or its writing was interrupted."""
    if not (client.has_collection(name) and client.has_collection(galleries_of(name))):
        return None
    client.load_collection(galleries_of(name))
    rows = client.get(galleries_of(name), ids=[ALL], output_fields=["about"])
    return rows[0]["about"] if rows else None


def read_rows(client: Any, name: str, condition: str, columns: list[str], prefix: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a collection that meet a condition ("" = all) and whose keys begin with a prefix."""
    conditions = [condition] * bool(condition) + [f'key like "{prefix}%"'] * bool(prefix)
    found = client.query(name, filter=" and ".join(conditions), output_fields=columns, limit=PAGE)
    if len(found) < PAGE:
        yield from found
        return
    for digit in "0123456789abcdef":  # keys are spread evenly over prefixes
        yield from read_rows(client, name, condition, columns, prefix + digit)


def galleries_of(name: str) -> str:
    """The collection with the galleries of a collection of pictures."""
    return f"{name}_galleries"


def key_of(*texts: str) -> str:
    """The key of some texts: hexadecimal digits of a digest."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:KEY_LENGTH]


def row_name(row: int) -> str:
    """The key of a row of the projection; no gallery has it, as it is not hexadecimal."""
    return f"projection-{row}"


def batches(keys: list[str]) -> Iterator[list[str]]:
    """Keys in lists that are short enough for one call."""
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]
