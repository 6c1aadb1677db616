"""Embeds texts once, into files that data pipelines read.

The texts are divided into parts. Each is written whole or not at all and says of what texts and of which model it is.
So a program that was stopped goes on where it was, and several programs can share the parts.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32, PyTree

from rice_jax.config import MeshConfig, TextTowerConfig
from rice_jax.eval.embed import compile_rows, compute_rows, padded_batch_size
from rice_jax.files import replacing
from rice_jax.input.text_embeddings import METADATA, part_files, read_part
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.models.aggregation.mean import embed
from rice_jax.models.text import create_tower
from rice_jax.models.text_weights import load_text, text_fingerprint, tokenizer_folder
from rice_jax.parallel.mesh import create_mesh, parameter_shardings
from rice_jax.types import DataError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A text tower with its weights, as `load_text_model` reads it."""

    source: Path
    config: TextTowerConfig
    params: PyTree
    tokenizer: Tokenizer
    fingerprint: str


def load_text_model(source: Path) -> TextModel:
    """Reads a text tower.

    Args:
        source: what `rice convert text` wrote, or a run that has trained a tower.

    Raises:
        CheckpointError: there are no weights, they are damaged, or they are of no text tower.
        DataError: there is no tokenizer, or it is not that of the tower.
    """
    params, config = load_text(source)
    folder = tokenizer_folder(source)
    tokenizer = Tokenizer(folder, config.context)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{folder}: found {tokenizer.vocab_size} tokens, expected at most {config.vocab_size}, "
            "the tower's vocabulary; convert the tower again with its own tokenizer"
        )
    fingerprint = text_fingerprint(params, config, tokenizer.digest)
    return TextModel(source, config, params, tokenizer, fingerprint)


class TextEmbedder:
    """Embeds texts on this process's devices."""

    def __init__(self, model: TextModel, batch_size: int = 256, mesh: Mesh | None = None):
        """Compiles the tower.

        Args:
            model: the tower.
            batch_size: texts at a time; rounded up to a multiple of the number of devices.
            mesh: None = all devices of this process.
        """
        self.model = model
        self._mesh = mesh or create_mesh(MeshConfig(), jax.local_devices())
        self._batch_size = padded_batch_size(batch_size, self._mesh)
        self._params = jax.device_put(model.params, parameter_shardings(self._mesh, model.params))
        graphdef = create_tower(model.config, self._mesh)

        def features(params: PyTree, batch: dict) -> jax.Array:
            return embed(nnx.merge(graphdef, params)(batch["ids"], batch["token_mask"]).features)

        self._function = compile_rows(features, self._params, self._mesh)

    def __call__(self, texts: list[str]) -> tuple[Float32[np.ndarray, "N E"], int]:
        """The texts' embeddings, unit length, and how many were cut."""
        ids, token_mask, num_cut = self.model.tokenizer(texts)
        found = compute_rows(self._function, self._params, self._batches(ids, token_mask), len(texts), self._mesh)
        return found, num_cut

    def _batches(self, ids: np.ndarray, token_mask: np.ndarray) -> Iterator[dict]:
        for start in range(0, len(ids), self._batch_size):
            index = np.arange(start, start + self._batch_size, dtype=np.int32)
            rows = np.minimum(index, len(ids) - 1)  # the last text fills up the last batch
            yield {"ids": ids[rows], "token_mask": token_mask[rows], "index": index, "mask": index < len(ids)}


def write_embeddings(
    out: Path,
    texts: Mapping[str, str],
    embedder: TextEmbedder,
    part_size: int = 8192,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Writes the embeddings of texts that are not written yet.

    Args:
        out: folder of the parts.
        texts: by id, cleaned.
        embedder: embeds them.
        part_size: texts of a part.
        share: (i, n): this program writes parts i, i + n, i + 2n, …

    Returns:
        The number of texts that were cut, of those in the written parts.

    Raises:
        DataError: the folder holds embeddings of another model or of other texts.
    """
    plan = _Plan(out, list(texts.items()), part_size, embedder.model)
    plan.require_empty_or_same()
    cut = 0
    for number in range(share[0], plan.num_parts, share[1]):
        if (about := plan.written(number)) is None:
            items = plan.items(number)
            vectors, num_cut = embedder([text for _, text in items])
            about = plan.about(number) | {"num_cut": num_cut}
            _write(plan.path(number), [key for key, _ in items], vectors, about)
            logger.info("%s: part %d of %d", out, number + 1, plan.num_parts)
        cut += about["num_cut"]
    return cut


@dataclasses.dataclass(frozen=True)
class _Plan:
    out: Path
    texts: list[tuple[str, str]]
    part_size: int
    model: TextModel

    @property
    def num_parts(self) -> int:
        return -(-len(self.texts) // self.part_size)

    def path(self, number: int) -> Path:
        return self.out / f"part-{number:05}-of-{self.num_parts:05}.parquet"

    def items(self, number: int) -> list[tuple[str, str]]:
        return self.texts[number * self.part_size : (number + 1) * self.part_size]

    def about(self, number: int) -> dict:
        digest = hashlib.sha256(json.dumps(self.items(number)).encode()).hexdigest()
        names = {"fingerprint": self.model.fingerprint, "model": str(self.model.source.absolute())}
        return names | {"texts": digest, "part": number, "num_parts": self.num_parts}

    def written(self, number: int) -> dict | None:
        """What a part says of itself; None if it is not there.

        Raises:
            DataError: it is of another model or of other texts, or damaged.
        """
        if not self.path(number).exists():
            return None
        found, expected = read_part(self.path(number)).about, self.about(number)
        for name, what in (("fingerprint", "another model"), ("texts", "other texts")):
            if found.get(name) != expected[name]:
                raise DataError(
                    f"{self.path(number)}: holds embeddings of {what}; choose another directory or delete {self.out}"
                )
        return found

    def require_empty_or_same(self) -> None:
        planned = {self.path(number) for number in range(self.num_parts)}
        if others := [path for path in part_files(self.out.parent, self.out.name) if path not in planned]:
            raise DataError(
                f"{others[0]}: holds embeddings of other texts; choose another directory or delete {self.out}"
            )


def _write(path: Path, keys: list[str], vectors: Float32[np.ndarray, "N E"], about: dict) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
    table = pa.table({"id": pa.array(keys, pa.string()), "embedding": column})
    table = table.replace_schema_metadata({METADATA: json.dumps(about).encode()})
    with replacing(path) as partial, partial.open("wb") as file:
        pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)
