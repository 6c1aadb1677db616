"""Digests of data sets, which tell whether a run that continues still has the data it was started on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rice_jax.config import TEXT_MODEL, InputConfig
from rice_jax.input.source import version_directory
from rice_jax.input.teacher import read_teacher
from rice_jax.input.text_embeddings import read_embeddings
from rice_jax.input.texts import KINDS
from rice_jax.input.tokenizer import Tokenizer

BLOCK = 2**14  # bytes
NUM_BLOCKS = 8  # of a file


def training_digests(config: InputConfig) -> dict[str, str]:
    """{name: digest} of what a run trains on: data sets, files of boxes and products, texts, tokenizer, and teacher.

    Raises:
        FileNotFoundError: a data set or the file is missing.
    """
    if config.domains:
        digests = {name: data_digest(config.data_dir, name, "train") for name in config.domain_names}
    else:
        digests = {config.train: data_digest(config.data_dir, config.train)}
    if config.train_boxes:
        digests["config.data.train_boxes"] = hashlib.sha256(Path(config.train_boxes).read_bytes()).hexdigest()
    if config.products:
        digests["config.data.products"] = hashlib.sha256(Path(config.products).read_bytes()).hexdigest()
    for kind in KINDS if config.texts else ():
        if embeddings := read_embeddings(config.texts, kind):
            digests[f"{kind} of config.data.texts"] = embeddings.digest
            digests[TEXT_MODEL] = embeddings.fingerprint
    if config.text == "tower":
        tokenizer = Tokenizer(config.tokenizer, config.text_context)
        digests["the tokenizer in config.model.text_init_from"] = tokenizer.digest.hex()
    if config.teacher:
        for kind, embeddings in read_teacher(config.teacher).items():
            digests[f"{kind} of config.data.teacher"] = embeddings.digest
    return digests


def data_digest(data_dir: str, name: str, split: str = "*") -> str:
    """A digest of the examples of a data set in their order, from a sample of each file.

    Reading all of a data set would take hours. The digest covers the features, the files' names and sizes, and
    `NUM_BLOCKS` blocks of each file, spread evenly. The last one holds the places of the file's records. So other
    shards, shards in another order, and changed, added or removed examples are noticed. A byte that flips within a
    record is noticed when the record is read, by its own checksum.

    Args:
        data_dir: directory that `rice build --data_dir` wrote.
        name: data set below it; its newest version counts.
        split: "*" = all.

    Returns:
        SHA-256 as hexadecimal digits.

    Raises:
        FileNotFoundError: the data set is missing.
    """
    directory = Path(version_directory(data_dir, name))
    patterns = "features.json", f"*-{split}.array_record*", f"{split}_index.npy"
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    """All of a small file, or blocks of a large one, from its first to its last."""
    spare = path.stat().st_size - NUM_BLOCKS * BLOCK
    with path.open("rb") as file:
        if spare <= 0:
            yield file.read()
            return
        for number in range(NUM_BLOCKS):
            file.seek(number * BLOCK + spare * number // (NUM_BLOCKS - 1))
            yield file.read(BLOCK)
