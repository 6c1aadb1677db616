"""Contact sheets: the frames of a clip with the boxes that a detector found and the true ones."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rice_jax.config import InputConfig
from rice_jax.input.pictures import as_shown, open_picture
from rice_jax.input.product_boxes import frame_boxes
from rice_jax.input.source import Source

logger = logging.getLogger(__name__)

TRUE, BEST, OTHER = (60, 220, 60), (255, 40, 40), (255, 170, 0)
MIN_DRAWN = 0.2  # least score of a drawn box other than the best one
HEIGHT = 320  # of a frame on a sheet, pixels
COLUMNS = 6


def draw_clips(config: InputConfig, detections: Path, num_clips: int, num_boxes: int) -> None:
    """Draws some clips of `config.detect` as contact sheets, `NAME-sheets/CLIP.png` beside `NAME.jsonl`.

    True boxes are green, the best box of a frame is red, others are orange; the number is the score.

    Args:
        config: where the data set is.
        detections: file written by `write_detections`.
        num_clips: spread evenly over the data set; 0 = none.
        num_boxes: true boxes of a frame that are drawn, the first ones.
    """
    if not num_clips:
        return
    source = Source(config.data_dir, config.detect, ("clip_id", "frames", "frame_ids"), ("boxes", "box_frame"))
    numbers = np.unique(np.linspace(0, len(source) - 1, num_clips).astype(int))
    rows = [source[int(number)] for number in numbers]
    found = _read(detections, {frame.decode() for row in rows for frame in row["frame_ids"]})
    directory = detections.parent / f"{detections.stem}-sheets"
    directory.mkdir(exist_ok=True)
    for row in rows:
        frames = [
            draw_frame(encoded, found[frame.decode()], boxes[:num_boxes])
            for encoded, frame, boxes in zip(row["frames"], row["frame_ids"], frame_boxes(row), strict=True)
        ]
        contact_sheet(frames).save(directory / f"{row['clip_id'].decode()}.png")
    logger.info("%s: %d clips drawn", directory, len(rows))


def draw_frame(encoded: bytes, found: dict, truths: Sequence[Sequence[float]]) -> Image.Image:
    """Draws a frame with its boxes.

    Args:
        encoded: content of the frame's file.
        found: the frame's line of the detections.
        truths: true boxes: left, top, right, bottom as shares of the frame.
    """
    picture = as_shown(open_picture(encoded))
    picture = picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)

    def box(edges: Sequence[float], color: tuple[int, int, int], width: int) -> list[float]:
        corners = [edge * side for edge, side in zip(edges, picture.size * 2, strict=True)]
        draw.rectangle(corners, outline=color, width=width)
        return corners

    for truth in truths:
        box(truth, TRUE, 4)
    pairs = list(zip(found["boxes"], found["scores"], strict=True))  # highest score first
    for place, (edges, score) in reversed(list(enumerate(pairs))):
        if place and score < MIN_DRAWN:
            continue
        color = OTHER if place else BEST
        left, top, *_ = box(edges, color, 2)
        label, at = f"{score:.2f}", (left + 2, min(top + 2, HEIGHT - 18))
        draw.rectangle(draw.textbbox(at, label, font=font), fill=(0, 0, 0))
        draw.text(at, label, fill=color, font=font)
    return picture


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Arranges pictures of equal height in rows."""
    columns, width = min(COLUMNS, len(pictures)), max(picture.width for picture in pictures) + 4
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * (HEIGHT + 4)), (40, 40, 40))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * (HEIGHT + 4)))
    return sheet


def _read(detections: Path, frame_ids: set[str]) -> dict[str, dict]:
    with detections.open(encoding="utf-8") as file:
        lines = map(json.loads, file)
        return {line["frame_id"]: line for line in lines if line["frame_id"] in frame_ids}
