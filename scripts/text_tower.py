"""Makes what `scripts/text_table.sh` needs of texts: a small fresh text tower, and embeddings with fewer titles.

    python scripts/text_tower.py make data/built/sample-0 weights/text_start
    python scripts/text_tower.py drop data/built/sample-0 data/texts data/texts-50 --percent=50

`make` takes the word pieces of the titles and the speech of a data set's training split, and writes a BERT of two
blocks with random weights, as `rice convert text` writes a converted one. `drop` leaves out the titles of a share of
the gallery's images, always the same ones.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.config import TextTowerConfig
from rice_jax.input.text_embeddings import METADATA, known_fingerprint, known_model, part_files, read_embeddings
from rice_jax.input.texts import KINDS, collect, stored_texts
from rice_jax.types import DataError
from scripts.sample_text import write_tower

TOWER = TextTowerConfig(positions=96, context=96, width=128, layers=2, heads=4, mlp_width=256, embed_dim=128)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the two jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    making = jobs.add_parser("make", help="write a fresh text tower")
    making.add_argument("data_dir", help="directory that rice build wrote")
    making.add_argument("out", type=Path)
    making.add_argument("--seed", type=int, default=0)
    dropping = jobs.add_parser("drop", help="leave out titles")
    dropping.add_argument("data_dir", help="directory that rice build wrote, with the gallery")
    dropping.add_argument("texts", type=Path, help="what rice embed-text wrote")
    dropping.add_argument("out", type=Path)
    dropping.add_argument("--percent", type=int, required=True, help="of the images, whose titles are left out")
    options = parser.parse_args(arguments)
    try:
        if options.job == "make":
            make(options.data_dir, options.out, options.seed)
        else:
            drop(options.data_dir, options.texts, options.out, options.percent)
    except (DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def make(data_dir: str, out: Path, seed: int) -> None:
    """Writes a fresh text tower with a vocabulary of the training split's texts, whole or not at all."""
    texts = [text for kind in KINDS for text in collect(stored_texts(data_dir, ["lpr4m/train"], kind)).texts.values()]
    if not texts:
        raise DataError(f"{data_dir}: found no titles and no speech in lpr4m/train, expected some")
    write_tower(out, texts, TOWER, seed)
    print(out)


def drop(data_dir: str, texts: Path, out: Path, percent: int) -> None:
    """Copies embeddings of texts, without the titles of a share of the gallery's images, whole or not at all."""
    titles = read_embeddings(str(texts), "titles")
    if titles is None:
        raise DataError(f"{texts}: found no titles, expected some to leave out")
    gallery = sorted({key for key, _ in stored_texts(data_dir, ["lpr4m/gallery"], "titles")}, key=_digest)
    dropped = set(gallery[: round(len(gallery) * percent / 100)])
    kept = [key for key in titles.rows if key not in dropped]
    vectors = [titles.vectors[titles.rows[key]] for key in kept]
    about = {"fingerprint": known_fingerprint(str(texts)), "model": known_model(str(texts))}
    table = pa.table({"id": pa.array(kept, pa.string()), "embedding": pa.array(vectors, pa.list_(pa.float32()))})
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed program may have left it
    partial.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(about).encode()}), partial / "titles.parquet")
    for path in part_files(texts, "speech"):
        target = partial / path.relative_to(texts)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    partial.rename(out)
    print(f"{out}: without the titles of {len(dropped)} of the gallery's {len(gallery)} images")


def _digest(key: str) -> bytes:
    """The same for an id wherever it is."""
    return hashlib.sha256(key.encode()).digest()


if __name__ == "__main__":
    main()
