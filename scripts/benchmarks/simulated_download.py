"""Writes raw files of any number of clips, in the layout of a downloaded LPR4M, from a few simulated clips."""

import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FRAMES_PER_CLIP = 118  # 473,402,226 of 4,013,617 clips
SHORT_SIDE, QUALITY, ROWS_PER_SHARD = 256, 95, 10_000  # what scripts/download_lpr4m.sh asks of img2dataset
PARTS = 10


def simulate_download(raw_dir: Path, clips: int, products: int, kept: Sequence[int]) -> None:
    """Writes training rows, the frames that a builder keeps (in img2dataset's tars), and shop images.

    Args:
        raw_dir: directory to create.
        clips: number of training clips; their rows have 118 frames each.
        products: number of simulated clips, which are repeated under other ids to reach `clips`.
        kept: numbers of the frames that have pictures; the builder reads no others.
    """
    simulated = raw_dir.with_name(f"{raw_dir.name}_simulated")
    flags = f"--train_products {products} --clips_per_product 1 --min_frames {len(kept)} --max_frames {len(kept)}"
    flags += " --test_products 20 --test_clips_per_product 1"  # the fewest
    simulator = [sys.executable, ROOT / "data/sample/simulate.py", "--products", ROOT / "data/sample"]
    subprocess.run([*simulator, "--out", simulated, *flags.split()], check=True, stderr=subprocess.DEVNULL)
    raw_dir.mkdir()
    (raw_dir / "images").mkdir()
    for image in (simulated / "images").iterdir():
        (raw_dir / "images" / image.name).write_bytes(_downloaded(image)[0])
    sources = sorted(simulated.glob("training_videoinfo_full_part_*.txt"))
    rows = [line.split("\t") for part in sources for line in part.read_text("utf-8").splitlines()]
    pictures = [_frames(row, simulated, kept) for row in rows]
    numbers = [(clip % len(rows), clip // len(rows)) for clip in range(clips)]
    parts = [raw_dir / f"training_videoinfo_full_part_{part:02}.txt" for part in range(PARTS)]
    for part, path in enumerate(parts):
        lines = ["\t".join(_row(rows[row], copy, kept)) for row, copy in numbers[part::PARTS]]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    frames = (
        (f"{_clip_id(rows[row][0], copy)}-{frame:04}", *picture)
        for row, copy in numbers
        for frame, picture in zip(kept, pictures[row], strict=True)
    )
    _write_shards(raw_dir / "frames_img2dataset", frames)
    shutil.rmtree(simulated)


def some_clips(raw_dir: Path, few: Path) -> int:
    """Makes a raw directory with the first row of each part and the same pictures; returns its number of clips."""
    few.mkdir()
    for path in sorted(raw_dir.iterdir()):
        if path.is_dir():
            (few / path.name).symlink_to(path)
        else:
            (few / path.name).write_text(path.read_text("utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    return PARTS


def _row(columns: Sequence[str], copy: int, kept: Sequence[int]) -> list[str]:
    """A simulated row with a copy's ids, and with as many frames as a row of LPR4M."""
    clip_id = _clip_id(columns[0], copy)
    boxes = [[0, 0, 0, 0]] * FRAMES_PER_CLIP
    for frame, box in zip(kept, json.loads(columns[2]), strict=True):
        boxes[frame] = box
    frames = [f"{clip_id}-{frame:04}" for frame in range(FRAMES_PER_CLIP)]
    return [clip_id, json.dumps(frames), json.dumps(boxes), *columns[3:]]


def _clip_id(clip_id: str, copy: int) -> str:
    live_id, start, end = clip_id.rsplit("-", 2)
    return f"{live_id}-{int(start) + copy}-{int(end) + copy}"


def _frames(columns: Sequence[str], simulated: Path, kept: Sequence[int]) -> list[tuple[bytes, tuple[int, int]]]:
    """The frames of a simulated row, each with its original size, to which its box refers."""
    names = json.loads(columns[1])
    assert len(names) == len(kept)
    return [_downloaded(simulated / "frames" / columns[0] / f"{name}.jpg") for name in names]


def _downloaded(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as a download stores it, with its original size; LPR4M's are larger than the simulator's images."""
    picture = Image.open(path).convert("RGB")
    scale = SHORT_SIDE / min(picture.size)
    buffer = io.BytesIO()
    smaller = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    smaller.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), picture.size


def _write_shards(output: Path, pictures: Iterator[tuple[str, bytes, tuple[int, int]]]) -> None:
    """Writes (name, encoded, original size) in img2dataset's format."""
    output.mkdir()
    for shard in itertools.count():
        rows = []
        with tarfile.open(output / f"{shard:05}.tar", "w") as tar:
            for place, (name, encoded, size) in enumerate(itertools.islice(pictures, ROWS_PER_SHARD)):
                key = f"{shard:05}{place:05}"
                url = f"https://example.org/frames/{name}.jpg"
                rows.append({"url": url, "key": key, "status": "success"})
                rows[-1] |= {"original_width": size[0], "original_height": size[1]}
                for suffix, content in ((".jpg", encoded), (".json", json.dumps(rows[-1]).encode())):
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        if not rows:
            (output / f"{shard:05}.tar").unlink()
            return
        pq.write_table(pa.Table.from_pylist(rows), output / f"{shard:05}.parquet")
        (output / f"{shard:05}_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows)}))
