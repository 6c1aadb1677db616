"""Turns picture files into what img2dataset would have made of their URLs, for tests."""

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FIELDS = ("url", "key", "status", "error_message", "width", "height", "original_width", "original_height")
TYPES = pa.schema([(field, pa.string() if place < 4 else pa.int32()) for place, field in enumerate(FIELDS)])


def download(
    raw_dir: Path,
    folder: str,
    *,
    is_tar: bool,
    rows_per_shard: int = 10,
    failures: Sequence[str] = (),
    resize: int | None = None,
    output: str | None = None,
) -> Path:
    """Moves the pictures below a folder into img2dataset's output directory.

    Args:
        raw_dir: raw directory, holding `folder`; the folder is removed.
        folder: "frames" or "images".
        is_tar: output format webdataset, otherwise files.
        rows_per_shard: pictures of a shard, failures included.
        failures: names of pictures that cannot be downloaded.
        resize: short side in pixels to give them, None = as they are.
        output: name of the directory to write below `raw_dir`, `<folder>_img2dataset` by default.

    Returns:
        The output directory.
    """
    target = raw_dir / (output or f"{folder}_img2dataset")
    target.mkdir()
    pictures = sorted((raw_dir / folder).rglob("*.jpg"))
    for shard, start in enumerate(range(0, len(pictures), rows_per_shard)):
        rows = [
            _row(f"{shard:05}{place:05}", path, path.stem in failures, resize)
            for place, path in enumerate(pictures[start : start + rows_per_shard])
        ]
        _write_shard(target / f"{shard:05}", rows, is_tar)
    shutil.rmtree(raw_dir / folder)
    return target


def _row(key: str, path: Path, fails: bool, resize: int | None) -> tuple[dict, bytes]:
    url = f"https://example.org/pictures/{path.name}?size=full"
    if fails:
        row = dict.fromkeys(FIELDS) | {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
        return row | {"url": url, "key": key}, b""
    encoded = path.read_bytes()
    image = Image.open(io.BytesIO(encoded))
    original = image.size
    if resize:
        scale = resize / min(image.size)
        image = image.resize([round(side * scale) for side in image.size])
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        encoded = buffer.getvalue()
    values = (url, key, "success", None, *image.size, *original)
    return dict(zip(FIELDS, values, strict=True)), encoded


def _write_shard(path: Path, rows: list[tuple[dict, bytes]], is_tar: bool) -> None:
    files = {}
    for row, encoded in rows:
        if encoded:
            files |= {f"{row['key']}.jpg": encoded, f"{row['key']}.json": json.dumps(row).encode()}
    if is_tar:
        with tarfile.open(f"{path}.tar", "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), 1.5  # a time that is no whole number: in an extended header
                tar.addfile(member, io.BytesIO(content))
    else:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    by_completion = [row for row, _ in reversed(rows)]
    pq.write_table(pa.Table.from_pylist(by_completion, TYPES), f"{path}.parquet")
    Path(f"{path}_stats.json").write_text(json.dumps({"count": len(rows)}))
