"""An index of a shop on disk: what is known of each picture, and the model that made it, in one Parquet file."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import BFloat16, Float32

from rice_jax.config import PmdConfig, VitConfig
from rice_jax.eval.calibration import Calibration
from rice_jax.files import replacing, write_lines
from rice_jax.models.rice import RiceConfig
from rice_jax.types import DataError

FILE = "index.parquet"
SETTINGS = b"rice_jax"  # under this name the file's metadata have `About` as JSON
TEXTS = {"gallery_ids": "gallery", "image_ids": "id", "titles": "title", "paths": "path", "digests": "sha256"}


@dataclasses.dataclass(frozen=True)
class About:
    """The model that made an index, and how pictures are shown to it.

    Attributes:
        model: its parts; `pmd` is None if it has no trained decoder.
        resize: side to which a picture is squashed before the crop, pixels.
        num_frames: of a clip, to which the run was evaluated.
        fingerprint: of the encoder (`models.weights.embedding_fingerprint`).
        checkpoint: a run's workdir or a converted model, where its weights were.
        calibration: of its similarities; None = none was there.
        ipd: `config.model.ipd` of its training.
        match_fingerprint: of the decoder (`models.weights.match_fingerprint`); None if it has none, and in an index
            from before version 0.2, which does not tell.
    """

    model: RiceConfig
    resize: int
    num_frames: int
    fingerprint: str
    checkpoint: str
    calibration: Calibration | None
    ipd: str = "off"
    match_fingerprint: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "About":
        """From what `dataclasses.asdict` gives."""
        model, calibration = values["model"], values["calibration"]
        sizes = model.get("encoder", model)  # version 0.1 had the encoder's settings beside the others
        encoder = VitConfig(**{name: sizes[name] for name in (field.name for field in dataclasses.fields(VitConfig))})
        pmd = model["pmd"] and PmdConfig(**model["pmd"])
        return cls(
            **values
            | {
                "model": RiceConfig(encoder, model["logit_scale"], pmd),
                "calibration": calibration and Calibration(**calibration),
                "ipd": values.get("ipd") or model.get("ipd", "off"),
            }
        )


@dataclasses.dataclass(frozen=True)
class Index:
    """A shop's pictures, in order of gallery and id, which together are a picture's own.

    Attributes:
        gallery_ids, image_ids: of each picture.
        titles: "" = unknown.
        paths: of the files.
        digests: of the files' content, SHA-256 as hexadecimal digits.
        vectors: their embeddings, unit length.
        queries: the decoder's side of them (`Pmd.image_queries`), R rows each; None if there is no trained decoder.
        about: what made them.
    """

    gallery_ids: list[str]
    image_ids: list[str]
    titles: list[str]
    paths: list[str]
    digests: list[str]
    vectors: Float32[np.ndarray, "G E"]
    queries: BFloat16[np.ndarray, "G R D"] | None
    about: About

    def take(self, rows: Sequence[int]) -> "Index":
        """An index of some of its pictures."""
        texts = {name: [getattr(self, name)[row] for row in rows] for name in TEXTS}
        rows = np.asarray(rows, np.int64)
        queries = None if self.queries is None else self.queries[rows]
        return dataclasses.replace(self, **texts, vectors=self.vectors[rows], queries=queries)


def read_index(directory: str | os.PathLike) -> Index:
    """Reads what `write_index` wrote.

    Raises:
        FileNotFoundError: there is no index.
        DataError: its file is damaged, or of another version of this program.
    """
    path = Path(directory) / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: found no index; make one: python -m rice_jax.main --config=… --workdir=RUN --mode=index "
            f"--config.index.images=DIR_OR_CSV --config.index.directory={directory}"
        )
    try:
        with path.open("rb") as file:  # once: by its name, Arrow opens it twice, and may meet another one in between
            table = pq.ParquetFile(file).read()
        about = About.from_dict(json.loads(table.schema.metadata[SETTINGS]))
        texts = {name: table[column].to_pylist() for name, column in TEXTS.items()}
        vectors = _read_rows(table["vector"], np.float32)
        queries = None
        if about.model.pmd:
            rows = _read_rows(table["queries"], np.uint16).view(ml_dtypes.bfloat16)
            queries = rows.reshape(len(rows), rows.shape[1] // about.model.encoder.width, about.model.encoder.width)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is damaged, or of another version of this program ({type(error).__name__}: {error}); delete it "
            "and index the shop again"
        ) from error
    return Index(**texts, vectors=vectors, queries=queries, about=about)


def write_index(directory: str | os.PathLike, index: Index) -> None:
    """Writes an index, whole or not at all; one that is there is replaced."""
    path = Path(directory) / FILE
    columns = {column: pa.array(getattr(index, name), pa.string()) for name, column in TEXTS.items()}
    columns["vector"] = _rows(index.vectors)
    if index.queries is not None:
        columns["queries"] = _rows(index.queries.view(np.uint16))  # Arrow has no bfloat16
    about = json.dumps(dataclasses.asdict(index.about), allow_nan=False)
    table = pa.table(columns).replace_schema_metadata({SETTINGS: about.encode()})
    with replacing(path) as partial, partial.open("wb") as file:
        pq.write_table(table, file, compression="none", use_dictionary=["gallery"])


def export_faiss(directory: str | os.PathLike, index: Index) -> Path:
    """Writes the vectors as a FAISS file, for inner products, and what its rows are beside it.

    Returns:
        The file, `index.faiss`; `index.faiss.json` names the galleries, ids and titles of its rows, and the encoder.

    Raises:
        ImportError: faiss is not installed.
    """
    import faiss

    flat = faiss.IndexFlatIP(index.vectors.shape[1])
    flat.add(index.vectors)
    path = Path(directory) / "index.faiss"
    rows = {column: getattr(index, name) for name, column in TEXTS.items() if name != "digests"}
    ids = json.dumps({"fingerprint": index.about.fingerprint} | rows, ensure_ascii=False)
    with replacing(path) as partial:
        faiss.write_index(flat, str(partial))
    write_lines(path.with_name(path.name + ".json"), [ids])
    return path


def _rows(array: np.ndarray) -> pa.FixedSizeListArray:
    """A column with the numbers of each row as a list."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), math.prod(array.shape[1:]))


def _read_rows(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
    numbers = np.concatenate([np.empty(0, dtype), *chunks], dtype=dtype, casting="no")
    return numbers.reshape(len(column), column.type.list_size)
