"""Reads embeddings of texts from Parquet files: `rice embed-text` writes them, or another program.

A folder holds `titles` and `speech`, each a file `titles.parquet` or a folder of parts `titles/*.parquet`; either may
be missing. A file has two columns: `id`, the string by which data sets name an image or a clip, and `embedding`, a list
of floats, as many in all rows. Vectors of any length will do; they are read at unit length. The metadata of the schema
may have the key `rice_text` with a JSON object whose `fingerprint` names the model: files of two models are refused.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32

from rice_jax.types import DataError

METADATA = b"rice_text"


class TextEmbeddings(NamedTuple):
    """Embeddings of texts by the id of what they belong to."""

    rows: dict[str, int]
    vectors: Float32[np.ndarray, "N E"]  # unit length
    fingerprint: str  # of the model; "" = unknown

    def get(self, key: str) -> Float32[np.ndarray, " E"] | None:
        """The embedding of an id; None = its text is missing."""
        row = self.rows.get(key)
        return None if row is None else self.vectors[row]

    @property
    def digest(self) -> str:
        """SHA-256 of all ids and vectors, as hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(list(self.rows)).encode())
        digest.update(np.ascontiguousarray(self.vectors).data)
        return digest.hexdigest()


@functools.cache  # once in each process
def read_embeddings(directory: str, kind: str) -> TextEmbeddings | None:
    """Reads the embeddings of one kind.

    Args:
        directory: what `rice embed-text` wrote, or a folder of the same form.
        kind: "titles" or "speech".

    Returns:
        The embeddings; None if there are none of this kind.

    Raises:
        FileNotFoundError: there is no such directory, or it has no embeddings of any kind.
        DataError: a file is damaged, has another form, or is of another model than the others; or a part is missing.
    """
    folder = Path(directory)
    if not any(part_files(folder, each) for each in ("titles", "speech")):
        raise FileNotFoundError(
            f"{folder}: found no embeddings of texts (titles/*.parquet, speech/*.parquet, or a titles.parquet or "
            "speech.parquet); write them: rice embed-text MODEL OUT"
        )
    return read_kind(folder, kind)


def read_kind(folder: Path, kind: str) -> TextEmbeddings | None:
    """Reads the file `KIND.parquet` of a folder, or the parts `KIND/*.parquet`; None if there are none.

    Raises:
        DataError: see `read_embeddings`.
    """
    found = part_files(folder, kind)
    if not found:
        return None
    parts = [read_part(path) for path in found]
    _require_all_parts(folder / kind, found, parts)
    size, first = max((part.vectors.shape[1], path.name) for path, part in zip(found, parts, strict=True))
    for path, part in zip(found, parts, strict=True):
        if part.keys and part.vectors.shape[1] != size:
            raise DataError(
                f"{path}: found embeddings of {part.vectors.shape[1]} numbers, expected {size} as in {first}"
            )
        if part.fingerprint != parts[0].fingerprint:
            raise DataError(
                f"{path}: is of another model ({part.fingerprint[:12] or 'unknown'}) than {found[0].name} "
                f"({parts[0].fingerprint[:12] or 'unknown'}); embed all with one model"
            )
    keys = [key for part in parts for key in part.keys]
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) < len(keys):
        repeated = next(key for row, key in enumerate(keys) if rows[key] != row)
        raise DataError(f"{folder / kind}: found the id {repeated!r} twice, expected each once")
    vectors = [part.vectors for part in parts if part.vectors.shape[1] == size]  # an empty file may not tell the size
    return TextEmbeddings(rows, np.concatenate(vectors), parts[0].fingerprint)


def known_fingerprint(directory: str) -> str:
    """The fingerprint of the model that embedded the texts; "" = unknown."""
    found = (read_embeddings(directory, kind) for kind in ("titles", "speech"))
    return next((embeddings.fingerprint for embeddings in found if embeddings), "")


def known_model(directory: str) -> str:
    """The directory of the model that embedded the texts; "" = unknown."""
    for kind in ("titles", "speech"):
        for path in part_files(Path(directory), kind)[:1]:
            about = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
            return str(about.get("model", ""))
    return ""


def part_files(folder: Path, kind: str) -> list[Path]:
    """The files of one kind, in order."""
    alone = folder / f"{kind}.parquet"
    return [alone] if alone.is_file() else sorted((folder / kind).glob("*.parquet"))


class EmbeddedPart(NamedTuple):
    """The content of a file."""

    keys: list[str]
    vectors: Float32[np.ndarray, "N E"]  # unit length
    about: dict[str, Any]  # its metadata

    @property
    def fingerprint(self) -> str:
        return str(self.about.get("fingerprint", ""))


def read_part(path: Path) -> EmbeddedPart:
    """Reads a file of embeddings.

    Raises:
        DataError: it is damaged, or has another form.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(["id", "embedding"])
        about = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        keys = table["id"].cast(pa.string()).to_pylist()
        lists = table["embedding"].combine_chunks()
        if lists.null_count or None in keys:
            raise ValueError("a value is missing")
        sizes = pc.unique(pc.list_value_length(lists)).to_pylist() or [getattr(lists.type, "list_size", 0)]
        if len(sizes) > 1:
            raise ValueError(f"embeddings have {min(sizes)} to {max(sizes)} numbers")
        vectors = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(keys), sizes[0])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise ValueError(f"embedding {int(np.argmin(np.nan_to_num(lengths, nan=0, posinf=0)))} has no direction")
        return EmbeddedPart(keys, vectors / lengths, dict(about))
    except Exception as error:  # a flipped bit may raise anything
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: is damaged, or no file of embeddings with the columns id and embedding, all of one length "
            f"({type(error).__name__}: {reason}); write it again"
        ) from error


def _require_all_parts(place: Path, found: list[Path], parts: list[EmbeddedPart]) -> None:
    """Refuses a folder of which a process was stopped before it had written all."""
    expected = {int(part.about["num_parts"]) for part in parts if "num_parts" in part.about}
    if expected and expected != {len(found)}:
        raise DataError(
            f"{place}: found {len(found)} parts, expected {' or '.join(map(str, sorted(expected)))}; run "
            "`rice embed-text` again, which writes those that are missing"
        )
