"""The index of a shop on disk: its pictures, and the model that embedded them, in one Parquet file or in shards."""

import base64
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import BFloat16, Float32, Int

from rice_jax.files import replacing
from rice_jax.index.about import About
from rice_jax.index.columns import DTYPES, from_column, from_int8, to_column, to_int8
from rice_jax.index.text import IndexText
from rice_jax.types import DataError, normal_form

FILE = "index.parquet"
SETTINGS = b"rice_jax"  # key of the file's metadata that holds `About` as JSON
CHECKSUM = b"rice_jax_sha256"  # key that holds `_checksum`; absent in indexes of version 0.2 and before
SOURCES = b"rice_jax_sources"  # key that holds `Index.sources` as JSON; absent in earlier indexes
PROJECTION = b"rice_jax_projection"  # key that holds `Index.projection` in base64; absent if there is none
TEXT = b"rice_jax_text"  # key that holds `Index.text` without its vectors as JSON; absent if there is none
TITLE_VECTOR = "title_vector"  # column of `Index.text`
SHARD = b"rice_jax_shard"  # key that holds `Shard` as JSON; absent in a file that is a whole index
SHARDS = "part-*.parquet"  # names of their files
LENGTH_TOLERANCE = 1e-3
TEXTS = {
    "gallery_ids": "gallery",
    "image_ids": "id",
    "titles": "title",
    "paths": "path",
    "digests": "sha256",
    "product_ids": "product",  # absent in indexes of version 0.2 and before
    "fields": "fields",  # absent if no picture has any
}
LATER = ("product_ids", "fields")


@dataclasses.dataclass(frozen=True)
class Index:
    """The pictures of a shop, ordered by gallery and id, which together identify a picture.

    Attributes:
        gallery_ids: gallery of each picture; "" = the shop has no galleries.
        image_ids: id of each picture.
        product_ids: id of each picture's product in its gallery; that of the picture if it is the only one.
        titles: "" = unknown.
        paths: the pictures' files.
        digests: SHA-256 of the files' contents, as hexadecimal digits.
        fields: {name: value} of the further columns of the CSV that listed each picture, such as its price.
        vectors: embeddings, or their projections; unit length.
        queries: what the decoder needs of each picture (`Pmd.image_queries`); None if there is no trained decoder.
        about: the model.
        sources: the directories and CSVs that the pictures are from; () = unknown.
        centers: {gallery: the mean of its embeddings}, under None that of all; only if the index is a part of a larger
            one (`milvus.MilvusIndex`), and never on disk.
        projection: what a clip's embedding is multiplied by before it is compared with the vectors; columns are at
            right angles and of unit length (`smaller`). None = `vectors` are embeddings.
        dtype: of the vectors on disk, one of `DTYPES`.
        text: the titles as vectors, what embeds them, and their weight in the score; None = pictures alone are
            searched.
    """

    gallery_ids: list[str]
    image_ids: list[str]
    product_ids: list[str]
    titles: list[str]
    paths: list[str]
    digests: list[str]
    fields: list[dict[str, str]]
    vectors: Float32[np.ndarray, "G N"]
    queries: BFloat16[np.ndarray, "G R D"] | None
    about: About
    sources: tuple[str, ...] = ()
    centers: Mapping[str | None, Float32[np.ndarray, " N"]] | None = None
    projection: Float32[np.ndarray, "E N"] | None = None
    dtype: str = "float32"
    text: IndexText | None = None

    @property
    def num_products(self) -> int:
        """Number of products; ids of two galleries are of two products."""
        return len(set(zip(self.gallery_ids, self.product_ids, strict=True)))

    @property
    def checksum(self) -> str:
        """SHA-256 of the contents, as hexadecimal digits."""
        settings, numbers = _settings(self.about), [_stored(self), self.queries, self.projection]
        if self.text:
            settings, numbers = settings + self.text.about, [*numbers, self.text.stored(self.dtype)]
        return _checksum(settings, _texts(self), *numbers).decode()

    def embeddings(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n E"]:
        """The vectors of some pictures in the model's space."""
        return self.vectors[rows] if self.projection is None else self.vectors[rows] @ self.projection.T

    @property
    def rows(self) -> Float32[np.ndarray, "G M"]:
        """What a clip's row is compared with, by inner products: the vectors, and behind them the titles (`text`)."""
        return self.vectors if self.text is None else np.concatenate([self.vectors, self.text.scaled], axis=1)

    @property
    def known_titles(self) -> dict[str, Float32[np.ndarray, " D"]]:
        """{title: its vector}."""
        return dict(zip(self.titles, self.text.vectors, strict=True)) if self.text else {}

    def take(self, rows: Sequence[int]) -> "Index":
        """Selects some of the pictures."""
        texts: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in TEXTS}
        chosen = np.asarray(rows, np.int64)
        queries = None if self.queries is None else self.queries[chosen]
        text = self.text and self.text.take(chosen)
        return dataclasses.replace(self, **texts, vectors=self.vectors[chosen], queries=queries, text=text)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of an index that is in several files.

    Attributes:
        number: from 0.
        of: how many there are.
        made_of: tells the pictures that it is made of, and their files, apart from others.
        num_unusable: pictures that are left out, since they cannot be read.
        num_missing: pictures that could not be downloaded.
    """

    number: int
    of: int
    made_of: str = ""
    num_unusable: int = 0
    num_missing: int = 0

    @property
    def file(self) -> str:
        """Its name."""
        return f"part-{self.number:05}.parquet"


def fields_of(index: Index, images: Sequence[int]) -> dict[str, str]:
    """What the shop's CSV says about a product: of each further column, the first cell of its images with a text."""
    fields: dict[str, str] = {}
    for image in images:
        fields |= {name: value for name, value in index.fields[image].items() if not fields.get(name)}
    return fields


def read_index(directory: str | os.PathLike) -> Index:
    """Reads an index.

    Example:
        >>> import rice_jax
        >>> index = rice_jax.read_index("shop")
        >>> index.image_ids, index.vectors.dtype
        (['mug', 'sofa'], dtype('float32'))

    Args:
        directory: what `build_index` wrote, or all shards that `shards.build_shards` writes.

    Raises:
        FileNotFoundError: there is no index.
        OSError: it cannot be opened.
        DataError: the index is damaged, or of another version of rice_jax, a vector is not of unit length, or a shard
            is missing.
    """
    path = Path(directory) / FILE
    if path.exists():
        return read_file(path)
    if shards := sorted(Path(directory).glob(SHARDS)):
        _require_all(Path(directory), shards)
        return _join([read_file(shard) for shard in shards])
    raise FileNotFoundError(
        f"{path}: found no index; make one: rice index PICTURES --model=RUN --out={directory} (or, with a config "
        "file, python -m rice_jax.main --mode=index)"
    )


def read_shard(path: Path) -> tuple[About, Shard] | None:
    """The model and description of a shard, without its pictures; None if it is damaged, or no shard."""
    try:
        stored = pq.read_schema(path).metadata
        return About.from_dict(json.loads(stored[SETTINGS])), Shard(**json.loads(stored[SHARD]))
    except Exception:  # see `read_file`
        return None


def read_file(path: Path) -> Index:
    """Reads an index of one file, or a shard; the errors are those of `read_index`."""
    file = path.open("rb")  # by name, Arrow would open it twice, and it may be replaced in between
    try:
        with file:
            table = pq.ParquetFile(file).read()
        stored = table.schema.metadata
        about = About.from_dict(json.loads(stored[SETTINGS]))
        names = [name for name in TEXTS if name not in LATER or TEXTS[name] in table.column_names]
        texts = {name: table[TEXTS[name]].to_pylist() for name in names}
        if "fields" in texts:
            texts["fields"] = list(map(dict, texts["fields"]))
        found = from_column(table["vector"], *DTYPES)
        dtype = found.dtype.name
        vectors, projection = from_int8(found) if dtype == "int8" else found, None
        if PROJECTION in stored:
            numbers = np.frombuffer(base64.b64decode(stored[PROJECTION], validate=True), "<f4")
            projection = numbers.reshape(-1, vectors.shape[1])
        queries = None
        if about.model.pmd:
            rows = from_column(table["queries"], "uint16").view(ml_dtypes.bfloat16)
            queries = rows.reshape(len(rows), rows.shape[1] // about.model.encoder.width, about.model.encoder.width)
        text, title_vectors = None, None
        if TEXT in stored:
            title_vectors = from_column(table[TITLE_VECTOR], dtype)
            text = IndexText.restore(stored[TEXT], title_vectors)
        settings = stored[SETTINGS] + stored.get(TEXT, b"")
        expected = _checksum(settings, texts, found, queries, projection, title_vectors)
        if stored.get(CHECKSUM, expected) != expected:
            raise ValueError("its contents do not have the checksum that it was written with")
        sources = tuple(map(str, json.loads(stored.get(SOURCES, b"[]"))))
    except Exception as error:  # a single flipped bit may raise anything, even a column that is no list of numbers
        reason = " ".join(str(error).split())  # Arrow's may have several lines
        raise DataError(
            f"{path}: is damaged, or of another version of rice_jax ({type(error).__name__}: {reason}); delete it and "
            "index the shop again"
        ) from error
    texts.setdefault("product_ids", list(texts["image_ids"]))
    for name in ("gallery_ids", "image_ids", "product_ids"):  # earlier versions kept the accents as files have them
        texts[name] = list(map(normal_form, texts[name]))
    texts.setdefault("fields", [{} for _ in texts["image_ids"]])
    index = Index(
        **texts,
        vectors=vectors,
        queries=queries,
        about=about,
        sources=sources,
        projection=projection,
        dtype=dtype,
        text=text,
    )
    _require_unit_vectors(path, index)
    return index


def _require_all(directory: Path, shards: Sequence[Path]) -> None:
    """Checks that each shard of an index is there, and no other.

    Raises:
        DataError: it is not so.
    """
    found = {path.name: read_shard(path) for path in shards}
    counts = sorted({told[1].of for told in found.values() if told})
    expected = {Shard(number, counts[0]).file for number in range(counts[0])} if counts else set()
    if len(counts) > 1:
        raise DataError(
            f"{directory}: found shards of several jobs, which have {' and '.join(map(str, counts))} shards; delete "
            "those of the older one, and run the job again"
        )
    broken = [name for name, told in found.items() if told is None]
    if broken:
        raise DataError(f"{directory / broken[0]}: is damaged, or no shard; delete it, and run the job again")
    if lost := sorted(expected - found.keys()):
        raise DataError(
            f"{directory}: found {len(found)} of {counts[0]} shards, the first that is missing is {lost[0]}; run the "
            "same command (rice index … --worker=I/N) again, which embeds only what is missing"
        )


def _join(shards: Sequence[Index]) -> Index:
    """One index of several, in the order of one that was never divided.

    Raises:
        DataError: they are of several models or types, or have a picture in common.
    """
    shards = [shard for shard in shards if shard.image_ids] or shards[:1]
    kinds = {(shard.about.fingerprints, shard.dtype, shard.text and shard.text.about) for shard in shards}
    if len(kinds) > 1:
        raise DataError(f"found shards of {len(kinds)} models or types of vectors, expected those of one job")
    texts: dict[str, Any] = {name: [text for shard in shards for text in getattr(shard, name)] for name in TEXTS}
    names = list(zip(texts["gallery_ids"], texts["image_ids"], strict=True))
    order = sorted(range(len(names)), key=names.__getitem__)
    for one, other in itertools.pairwise(order):
        if names[one] == names[other]:
            paths = texts["paths"][one], texts["paths"][other]
            raise DataError(
                f"{paths[1]}: found the id {names[one][1]!r} of gallery {names[one][0]!r}, which {paths[0]} has too; "
                "expected every id once in its gallery"
            )
    queries = [shard.queries for shard in shards if shard.queries is not None]
    titles = [shard.text.vectors for shard in shards if shard.text]
    joined = dataclasses.replace(
        shards[0],
        **texts,
        vectors=np.concatenate([shard.vectors for shard in shards]),
        queries=np.concatenate(queries) if queries else None,
        text=shards[0].text and dataclasses.replace(shards[0].text, vectors=np.concatenate(titles)),
        sources=tuple(dict.fromkeys(source for shard in shards for source in shard.sources)),
    )
    return joined.take(order)


def require_one_file(directory: Path) -> None:
    """Checks that an index is not in shards, which can be read but not changed.

    Raises:
        DataError: it is.
    """
    if any(directory.glob(SHARDS)):
        raise DataError(
            f"{directory}: holds shards, expected an index in one file; make one: rice index merge {directory} "
            "--out=DIR"
        )


def write_index(directory: str | os.PathLike, index: Index, shard: Shard | None = None) -> None:
    """Writes an index, or a shard of one, atomically; an existing one is replaced.

    Raises:
        DataError: a vector is not of unit length, or the directory holds shards of another index.
    """
    path = Path(directory) / (shard.file if shard else FILE)
    if not shard:
        require_one_file(path.parent)
    _require_unit_vectors(path, index)
    texts = _texts(index)
    columns = {TEXTS[name]: pa.array(own, pa.string()) for name, own in texts.items() if name != "fields"}
    if "fields" in texts:
        columns["fields"] = pa.array([list(own.items()) for own in index.fields], pa.map_(pa.string(), pa.string()))
    columns["vector"] = to_column(_stored(index))
    if index.queries is not None:
        columns["queries"] = to_column(index.queries.view(np.uint16))  # Arrow has no bfloat16
    metadata = {SETTINGS: _settings(index.about), CHECKSUM: index.checksum.encode()}
    if index.text:
        columns[TITLE_VECTOR] = to_column(index.text.stored(index.dtype))
        metadata[TEXT] = index.text.about
    if index.sources:
        metadata[SOURCES] = json.dumps(index.sources).encode()
    if index.projection is not None:
        metadata[PROJECTION] = base64.b64encode(index.projection.astype("<f4").tobytes())
    if shard:
        metadata[SHARD] = json.dumps(dataclasses.asdict(shard)).encode()
    table = pa.table(columns).replace_schema_metadata(metadata)
    with replacing(path) as partial, partial.open("wb") as file:
        pq.write_table(table, file, compression="none", use_dictionary=["gallery"])


def _settings(about: About) -> bytes:
    return json.dumps(dataclasses.asdict(about), allow_nan=False).encode()


def _texts(index: Index) -> dict[str, list]:
    """The columns besides the numbers; without fields, a file is what it was before there were any."""
    return {name: getattr(index, name) for name in TEXTS if name != "fields" or any(index.fields)}


def _stored(index: Index) -> np.ndarray:
    """The vectors as they are on disk."""
    return to_int8(index.vectors) if index.dtype == "int8" else index.vectors


def _checksum(about: bytes, texts: Mapping[str, list], *numbers: np.ndarray | None) -> bytes:
    """SHA-256 of an index's contents, however Parquet lays them out."""
    digest = hashlib.sha256(about)
    digest.update(json.dumps(texts).encode())
    for array in numbers:
        if array is not None:
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest().encode()


def _require_unit_vectors(path: Path, index: Index) -> None:
    lengths = np.linalg.norm(index.vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < LENGTH_TOLERANCE))  # also NaN
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{path}: {len(wrong)} of {len(lengths)} vectors are not of unit length, the first is that of "
            f"{index.image_ids[row]!r} (length {lengths[row]:g}); delete the index and index the shop again"
        )
