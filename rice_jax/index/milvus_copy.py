"""Copies an index on disk to Milvus; `milvus` describes its collections."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from rice_jax.eval.scores import center
from rice_jax.index.export import (
    BUILD_EFFORT,
    FIRST,
    NEIGHBORS,
    describe_recall,
    nearest,
    num_lists,
    recall,
    some_pictures,
)
from rice_jax.index.milvus import (
    ALL,
    BATCH,
    KEY_LENGTH,
    NAME,
    PICTURE,
    MilvusIndex,
    batches,
    connect,
    galleries_of,
    key_of,
    naming_errors,
    read_about,
    read_rows,
    row_name,
)
from rice_jax.index.store import Index, fields_of
from rice_jax.types import DataError, normal_form

MAX_CONDITIONS = 4096  # of a product
TYPES = {"flat": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT"}

logger = logging.getLogger(__name__)


def write_milvus(index: Index, uri: str, *, name: str = NAME, kind: str = "flat") -> MilvusIndex:
    """Makes an index in Milvus equal to an index on disk; only what has changed is written.

    An index of another model, projection, text tower, or kind is replaced. The recall of an approximate index is
    measured and logged. Only one program may write to a collection at a time.

    Args:
        index: at least one picture.
        uri: see `MilvusIndex`.
        name: of the collection.
        kind: "flat" is exact; "hnsw" and "ivf" are approximate.

    Raises:
        ConfigError: pymilvus is not installed.
        DataError: the index is empty.
        OSError: Milvus refuses.
    """
    if not index.image_ids:
        raise DataError(f"{uri}: found no pictures in the index, expected at least one to write to Milvus")
    client = connect(uri)
    with naming_errors(uri):
        lists = _require_collections(client, name, index, kind)
        *galleries, everything = _gallery_rows(index, {"kind": kind, "lists": lists})
        _upsert(client, galleries_of(name), galleries)  # before the first picture of a new one can be found
        _write_pictures(client, uri, name, index)
        _upsert(client, galleries_of(name), [everything])  # last, as an index that has no such row is not whole
        kept = {row["key"] for row in (*galleries, everything)}
        stored = [row["key"] for row in read_rows(client, galleries_of(name), "", ["key"])]
        _delete(client, galleries_of(name), [key for key in stored if key not in kept])
    written = MilvusIndex(uri, name)
    if kind != "flat":
        vectors = index.rows
        queries = some_pictures(vectors)
        rows = {key: row for row, key in enumerate(keys_of(index))}
        found = [[rows[hit.key] for hit in hits] for hits in written.search(queries, min(FIRST, len(rows)))]
        share = recall(found, nearest(vectors, queries))
        logger.info("%s", describe_recall(uri, kind, share, len(queries)))
    return written


def _require_collections(client: Any, name: str, index: Index, kind: str) -> int:
    """Creates the collections, in place of others that are of another model, projection, text tower, or kind.

    Returns:
        The number of lists of kind "ivf", which stays as it was when the collection was created.
    """
    from pymilvus import DataType

    stored = read_about(client, name)
    text = index.text and index.text.about.decode()
    keys = "kind", "projection_sha256", "text"
    found = stored and (stored["about"]["fingerprint"], *map(stored.get, keys))
    if stored and found == (index.about.fingerprint, kind, _digest(index), text):
        return stored["lists"]
    lists = num_lists(len(index.image_ids))
    pictures = client.create_schema(auto_id=False, enable_dynamic_field=False)
    galleries = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for schema in (pictures, galleries):
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=KEY_LENGTH)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.rows.shape[1])
    pictures.add_field("gallery", DataType.VARCHAR, max_length=KEY_LENGTH)
    pictures.add_field("product", DataType.VARCHAR, max_length=KEY_LENGTH)
    pictures.add_field(
        "conditions",
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_capacity=MAX_CONDITIONS,
        max_length=KEY_LENGTH,
    )
    pictures.add_field("picture", DataType.JSON)
    pictures.add_field("stamp", DataType.VARCHAR, max_length=64)
    galleries.add_field("about", DataType.JSON)
    building = {
        "flat": {},
        "hnsw": {"M": NEIGHBORS, "efConstruction": BUILD_EFFORT},
        "ivf": {"nlist": lists},
    }
    for collection, schema, of in ((name, pictures, kind), (galleries_of(name), galleries, "flat")):
        client.drop_collection(collection)
        params = client.prepare_index_params()
        params.add_index("vector", index_type=TYPES[of], metric_type="IP", params=building[of])
        client.create_collection(collection, schema=schema, consistency_level="Strong")
        client.create_index(collection, params, sync=False)  # there is nothing to wait for in an empty collection
        client.load_collection(collection)
    return lists


def _write_pictures(client: Any, uri: str, name: str, index: Index) -> None:
    """Writes new and changed pictures, and deletes those that are gone."""
    stored = {row["key"]: row["stamp"] for row in read_rows(client, name, "", ["key", "stamp"])}
    keys, changed, pending = set(), 0, list[dict[str, Any]]()
    for row in _picture_rows(index):
        keys.add(row["key"])
        if stored.get(row["key"]) != row["stamp"]:
            changed += 1
            pending.append(row)
        if len(pending) == BATCH:
            _upsert(client, name, pending)
            pending = []
    _upsert(client, name, pending)
    gone = sorted(stored.keys() - keys)
    _delete(client, name, gone)
    logger.info("%s: %d pictures, of which %d are written, and %d removed", uri, len(keys), changed, len(gone))


def _picture_rows(index: Index) -> Iterator[dict[str, Any]]:
    products: dict[tuple[str, str], list[int]] = {}
    for row, names in enumerate(zip(index.gallery_ids, index.product_ids, strict=True)):
        products.setdefault(names, []).append(row)
    conditions = {
        names: sorted(
            {
                key_of(normal_form(column.casefold()), normal_form(value))
                for column, value in fields_of(index, rows).items()
            }
        )
        for names, rows in products.items()
    }
    vectors = index.rows
    for row, key in enumerate(keys_of(index)):
        gallery, product = names = index.gallery_ids[row], index.product_ids[row]
        values = {
            "key": key,
            "gallery": key_of(gallery),
            "product": key_of(gallery, product),
            "conditions": conditions[names],
            "picture": {column: getattr(index, of)[row] for of, column in PICTURE.items()},
        }
        stamp = hashlib.sha256(json.dumps(values, sort_keys=True).encode() + vectors[row].tobytes()).hexdigest()
        yield values | {"stamp": stamp, "vector": vectors[row].tolist()}


def _upsert(client: Any, collection: str, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), BATCH):
        client.upsert(collection, rows[start : start + BATCH])


def _delete(client: Any, collection: str, keys: list[str]) -> None:
    for batch in batches(keys):
        client.delete(collection, ids=batch)


def _gallery_rows(index: Index, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The means of the galleries, the last one of all pictures, with what there is to know about the index."""
    rows: dict[str, list[int]] = {}
    for row, gallery in enumerate(index.gallery_ids):
        rows.setdefault(key_of(gallery), []).append(row)
    columns = {column for fields in index.fields for column in fields}
    about = settings | {
        "about": dataclasses.asdict(index.about),
        "pictures": len(index.image_ids),
        "columns": sorted(columns),
        "projection": 0 if index.projection is None else len(index.projection),
        "projection_sha256": _digest(index),
        "text": index.text and index.text.about.decode(),
        "dimensions": index.vectors.shape[1],
    }
    everything = range(len(index.image_ids))
    compared = index.rows
    vectors = {}
    if index.projection is not None:  # without speech
        padded = np.pad(index.projection, ((0, 0), (0, compared.shape[1] - index.projection.shape[1])))
        vectors = {row_name(row): own for row, own in enumerate(padded)}
    vectors |= {key: _center(compared, own) for key, own in [*rows.items(), (ALL, everything)]}
    return [
        {"key": key, "vector": vector.tolist(), "about": about if key == ALL else {}} for key, vector in vectors.items()
    ]


def _center(vectors: Float32[np.ndarray, "G M"], rows: Sequence[int]) -> Float32[np.ndarray, " M"]:
    return center(vectors, np.asarray(rows, np.int64)).astype(np.float32)


def _digest(index: Index) -> str | None:
    return None if index.projection is None else hashlib.sha256(index.projection.tobytes()).hexdigest()


def keys_of(index: Index) -> Iterator[str]:
    """The keys of an index's pictures."""
    return map(key_of, index.gallery_ids, index.image_ids)
