"""Draws clips of a raw data directory: the shop's image, then every third frame with its boxes.

python data/sample/contact_sheet.py RAW sheet.png --clips 12
"""

import argparse
import json
import pathlib
import random

from PIL import Image, ImageDraw

COLUMNS, WIDTH, HEIGHT = 9, 135, 240


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("raw", type=pathlib.Path, metavar="RAW", help="directory that simulate.py wrote")
    add("sheet", metavar="SHEET", help="picture to write, such as sheet.png")
    add("--clips", type=int, default=12, metavar="N", help="number of clips to draw (default 12)")
    add("--split", choices=("train", "test"), default="test", help="clips to choose from (default test)")
    add("--seed", type=int, default=0, metavar="N", help="equal seeds choose the same clips (default 0)")
    flags = parser.parse_args(argv)
    clips = _test_clips(flags.raw) if flags.split == "test" else _training_clips(flags.raw)
    clips = random.Random(flags.seed).sample(clips, min(flags.clips, len(clips)))
    sheet = Image.new("RGB", (COLUMNS * WIDTH, len(clips) * HEIGHT), "white")
    for row, (image_id, frames) in enumerate(clips):
        image = Image.open(flags.raw / "images" / f"{image_id}.jpg").resize((WIDTH, WIDTH))
        sheet.paste(image, (0, row * HEIGHT + (HEIGHT - WIDTH) // 2))
        for column, (frame_id, boxes) in enumerate(frames[: COLUMNS - 1], start=1):
            path = flags.raw / "frames" / frame_id.rsplit("-", 1)[0] / f"{frame_id}.jpg"
            sheet.paste(_annotated(Image.open(path), boxes).resize((WIDTH, HEIGHT)), (column * WIDTH, row * HEIGHT))
    sheet.save(flags.sheet)


def _annotated(frame, boxes):
    """Draws relative boxes on a frame: the intended product's in green, the others in gray."""
    draw = ImageDraw.Draw(frame)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        corners = (x1 * frame.width, y1 * frame.height, x2 * frame.width - 1, y2 * frame.height - 1)
        draw.rectangle(corners, outline="#808080" if i else "#00ff00", width=2)
    return frame


def _test_clips(raw):
    truth = json.loads(_only(raw, "test_videoid_to_gtimage_*.json").read_text())
    frames = {}
    for frame_id, boxes in json.loads(_only(raw, "test_frameid2gtbox_*.json").read_text()).items():
        frames.setdefault(frame_id.rsplit("-", 1)[0], []).append((frame_id, boxes))
    return [(truth[clip_id][0], clip) for clip_id, clip in frames.items()]


def _training_clips(raw):
    clips = []
    for path in sorted(raw.glob("training_videoinfo_full_part_*.txt")):
        for line in path.read_text().splitlines():
            columns = line.split("\t")
            boxes = [
                [[b[0] / 270, b[1] / 480, b[2] / 270, b[3] / 480]] if any(b) else [] for b in json.loads(columns[2])
            ]
            clips.append((columns[3], list(zip(json.loads(columns[1]), boxes, strict=True))[::3]))
    return clips


def _only(raw, pattern):
    found = list(raw.glob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"error: {raw}: found {len(found)} files {pattern}, expected one; name a directory that simulate.py wrote"
        )
    return found[0]


if __name__ == "__main__":
    main()
