"""Measures recognition on the long videos of `data/sample/film.py`, over time and in their gaps.

    python scripts/long_videos.py --films FILMS --run INDEX CLIPS [--run INDEX CLIPS …] [--max_gaps PERCENT]

FILMS is what film.py wrote, INDEX an index of its shops made with a trained run, and CLIPS what simulate.py wrote, with
clips of the same products. The videos of each shop are recognized with a calibration fitted on the clips of all other
shops, so nothing is chosen or fitted on the products that are measured. `scripts/long_videos.sh` makes all of these.
With several runs, the tables have means and sample standard deviations. `--score=mean` ranks products by the cosines of
clips instead of by frames. `--max_gaps` adds a table with a least confidence, `--min_confidence` of `rice recognize`:
for each shop the lowest with which a product is named in at most this share of the gaps in the other shops' films, each
of these recognized with a calibration that is fitted on neither its own shop's clips nor those of the measured one.
"""

import argparse
import bisect
import collections
import csv
import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rice_jax.eval.calibration import Calibration, fit_calibration
from rice_jax.eval.pooling import SHARPNESS
from rice_jax.eval.ranking import GalleryImages, Queries
from rice_jax.index.store import read_index
from rice_jax.input.transforms import sample_frames
from rice_jax.recognition.engine import Engine, Frames
from rice_jax.recognition.matches import Recognition
from rice_jax.recognition.naming import Naming
from rice_jax.recognition.recognizer import encode_video, products_over_time
from rice_jax.recognition.stream import Window
from rice_jax.recognition.timeline import timeline
from rice_jax.recognition.video import Frame, read_video

BATCH_SIZE = 32
CONFIDENCES = tuple(round(0.05 * step, 2) for step in range(1, 20))  # that `--max_gaps` chooses from
WAYS = {
    "timeline": "the whole video at once (rice recognize)",
    "live": "each second by the last frames (Recognizer)",
    "known": "each part as one clip, with known borders",
}
GAPS = {
    "empty": "the set is empty",
    "around": "products of other shops stand around",
    "other": "another shop's product is presented",
}


class Film(NamedTuple):
    """A video with its encoded frames, one a second."""

    video: dict  # a line of truth.jsonl
    truth: list[dict]  # its segment at each of the times
    times: list[float]
    frames: Frames


def main(arguments: list[str] | None = None) -> None:
    """Recognizes all videos with each run and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=pathlib.Path, required=True)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("INDEX", "CLIPS"))
    parser.add_argument("--score", choices=("frames", "mean"), default="frames")
    parser.add_argument("--max_gaps", type=float, metavar="PERCENT")
    flags = parser.parse_args(arguments)
    videos = read_truth(flags.films, 2 if flags.max_gaps is None else 3)
    runs = [measure(open_engine(index, flags.score), pathlib.Path(clips), flags.films, videos, flags.max_gaps)
            for index, clips in flags.run]  # fmt: skip
    print(summary(videos))
    for number, of_table in enumerate(zip(*runs, strict=True)):
        if number:
            print(f"\nwith a least confidence, by which at most {flags.max_gaps:g} % of other shops' gaps are named")
        print(f"\n{table(of_table)}")


def open_engine(index: str, score: str) -> Engine:
    """The engine of an index, which ranks by one of the scores.

    Raises:
        SystemExit: the index cannot be ranked by frames.
    """
    calibration = read_index(index).about.calibration
    if score == "frames" and (calibration is None or calibration.scale_by_frames is None):
        sys.exit(f"error: {index} has no calibration by frames: evaluate the run and index again, or pass --score=mean")
    return Engine(index, batch_sizes=(BATCH_SIZE,), naming=Naming(score=score))


def read_truth(films: pathlib.Path, least_shops: int = 2) -> list[dict]:
    """The lines of film.py's truth.jsonl.

    Raises:
        SystemExit: the file does not exist, or the videos are of too few shops to calibrate each on others.
    """
    path = films / "truth.jsonl"
    if not path.is_file():
        sys.exit(f"error: {path} does not exist; expected what data/sample/film.py writes")
    videos = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = len({video["gallery"] for video in videos})
    if found < least_shops:
        sys.exit(f"error: {path}: found videos of {found} shops, expected {least_shops}: others serve to calibrate one")
    return videos


def measure(
    engine: Engine,
    clips: pathlib.Path,
    films: pathlib.Path,
    videos: Sequence[dict],
    max_gaps: float | None = None,
) -> list[dict[str, float]]:
    """Percentages over all videos, with the names that `table` uses: by default, and those with `max_gaps`."""
    galleries = {video["gallery"] for video in videos}
    known = read_clips(clips)
    encoded = [encode_video(engine, pictures, BATCH_SIZE)[1] for pictures in frames_of(clips, known, engine)]
    filmed = [encode_film(engine, films, video) for video in videos]
    by_default: collections.Counter = collections.Counter()
    chosen: collections.Counter = collections.Counter()
    for gallery in sorted(galleries):
        rest = galleries - {gallery}
        own = [film for film in filmed if film.video["gallery"] == gallery]
        others = [film for film in filmed if film.video["gallery"] != gallery]
        namings = [engine.naming]
        if max_gaps is not None:
            of_others = {other: calibrate(engine, known, encoded, rest - {other}) for other in rest}
            least = least_confidences(engine, others, of_others, max_gaps)
            namings += [dataclasses.replace(engine.naming, min_confidence=value) for value in least.values()]
        first, *with_least = count(engine, own, {gallery: calibrate(engine, known, encoded, rest)}, namings)
        by_default.update(first)
        if max_gaps is not None:
            for way, found in zip(WAYS, with_least, strict=True):
                chosen.update({name: number for name, number in found.items() if name.startswith(way)})
                chosen[f"{way} least"] += 100 * least[way] / len(galleries)
            chosen["chance"] = by_default["chance"]
    return [percentages(total) for total in (by_default, chosen) if total]


def encode_film(engine: Engine, films: pathlib.Path, video: dict) -> Film:
    """Reads and encodes a video."""
    times, frames = encode_video(engine, read_video(films / video["video"]), BATCH_SIZE)
    starts = [segment["start"] for segment in video["segments"]]
    return Film(video, [at(video["segments"], starts, time) for time in times], times, frames)


def least_confidences(
    engine: Engine, films: Sequence[Film], calibrations: Mapping[str, Calibration], max_gaps: float
) -> dict[str, float]:
    """For each of `WAYS`, the lowest of `CONFIDENCES` that names a product in at most so many percent of the gaps."""
    namings = [dataclasses.replace(engine.naming, min_confidence=value) for value in CONFIDENCES]
    alarms = [percentages(total) for total in count(engine, films, calibrations, namings)]
    return {
        way: next(
            (value for value, found in zip(CONFIDENCES, alarms, strict=True) if found[f"{way} alarm"] <= max_gaps),
            CONFIDENCES[-1],
        )
        for way in WAYS
    }


def count(
    engine: Engine, films: Sequence[Film], calibrations: Mapping[str, Calibration], namings: Sequence[Naming]
) -> list[collections.Counter]:
    """What `percentages` takes, of all films, for each of the namings."""
    totals: list[collections.Counter] = [collections.Counter() for _ in namings]
    for film in films:
        gallery = film.video["gallery"]
        engine.calibration = calibrations[gallery]
        shown = sum(segment["product"] is not None for segment in film.truth)
        for total, found in zip(totals, recognize(engine, film, namings), strict=True):
            total["chance"] += shown / len(engine.rows(gallery))
            for way, (named, forced) in found.items():
                total.update({f"{way} {name}": number for name, number in tally(film.truth, named, forced).items()})
    return totals


def recognize(
    engine: Engine, film: Film, namings: Sequence[Naming]
) -> list[dict[str, tuple[list[str | None], list[str]]]]:
    """For each of the namings and each of `WAYS`, the product in each frame: with "none" allowed, and without."""
    video, truth, times, frames = film
    gallery = video["gallery"]
    searched, calibration = engine.products(gallery), engine.calibration
    vectors = engine.index.vectors[searched.rows]
    segments = timeline(
        frames.features, np.asarray(times), vectors, calibration.scale, None,
        num_frames=engine.num_frames, end=times[-1] + 1.0, pooling=engine.pooling(searched),
    )  # fmt: skip
    first = [engine.rank(frames.take(segment.frames), gallery, 1).products[0].id for segment in segments]
    forced = [name for segment, name in zip(segments, first, strict=True) for _ in range(len(times))[segment.frames]]
    window, live = Window(engine.num_frames), []
    for place, time in enumerate(times):
        window.put(time, frames.take(slice(place, place + 1)))
        live.append(engine.rank(window.frames()[1], gallery, 1))

    parts = [[place for place, own in enumerate(truth) if own is segment] for segment in video["segments"]]
    clips = [engine.rank(frames.take(np.array(part)), gallery, 1) for part in parts]
    known = [clip for part, clip in zip(parts, clips, strict=True) for _ in part]

    results, before = [], engine.naming
    for naming in namings:
        engine.naming = naming
        shown = products_over_time(engine, times, frames, gallery=gallery)
        found = [at(shown, [segment.start for segment in shown], time).product for time in times]
        results.append(
            {
                "timeline": ([match and match.id for match in found], forced),
                "live": names(naming, live),
                "known": names(naming, known),
            }
        )
    engine.naming = before
    return results


def names(naming: Naming, ranked: Sequence[Recognition]) -> tuple[list[str | None], list[str]]:
    """The best product of each clip where it is named, None elsewhere; and everywhere."""
    first = [found.products[0] for found in ranked]
    are_named = [naming.names(match.confidence, found.none) for match, found in zip(first, ranked, strict=True)]
    every = [match.id for match in first]
    return [name if named else None for name, named in zip(every, are_named, strict=True)], every


def tally(truth: Sequence[dict], named: Sequence[str | None], forced: Sequence[str]) -> dict[str, int]:
    """Counts frames, one a second, and false segments: runs of one product with most frames in gaps."""
    counts: collections.Counter[str] = collections.Counter()
    for segment, name, first in zip(truth, named, forced, strict=True):
        if segment["product"]:
            counts["shown"] += 1
            counts["right" if name == segment["product"] else "none" if name is None else "wrong"] += 1
            counts["forced"] += first == segment["product"]
        else:
            counts["gap"] += 1
            counts["alarm"] += name is not None
            counts[f"gap {segment['gap']}"] += 1
            counts[f"alarm {segment['gap']}"] += name is not None
    for name, places in runs_of(named):
        in_gaps = sum(truth[place]["product"] is None for place in places)
        counts["false segments"] += name is not None and 2 * in_gaps > len(places)
    return dict(counts)


def runs_of(named: Sequence[str | None]) -> list[tuple[str | None, list[int]]]:
    """Maximal runs of one name, with their places."""
    found: list[tuple[str | None, list[int]]] = []
    for place, name in enumerate(named):
        if place and named[place - 1] == name:
            found[-1][1].append(place)
        else:
            found.append((name, [place]))
    return found


def percentages(total: dict[str, float]) -> dict[str, float]:
    """Percentages of the time with or without a product, and false segments per minute of gap."""
    found = {}
    for way in WAYS:
        of = {name: total.get(f"{way} {name}", 0) for name in ("shown", "gap", *(f"gap {kind}" for kind in GAPS))}
        for name in ("right", "wrong", "none", "forced"):
            found[f"{way} {name}"] = 100 * total.get(f"{way} {name}", 0) / of["shown"]
        for kind in ("", *(f" {kind}" for kind in GAPS)):
            found[f"{way} alarm{kind}"] = 100 * total.get(f"{way} alarm{kind}", 0) / max(of[f"gap{kind}"], 1)
        found[f"{way} chance"] = 100 * total.get("chance", 0) / of["shown"]
        if f"{way} least" in total:
            found[f"{way} least"] = total[f"{way} least"]
        found[f"{way} false segments"] = 60 * total.get(f"{way} false segments", 0) / of["gap"]
    return found


def read_clips(raw: pathlib.Path) -> dict[str, str]:
    """{clip: product} of the test clips of a directory of simulate.py."""
    paths = list(raw.glob("test_videoid_to_gtimage_*.json"))
    if len(paths) != 1 or not (raw / "attribution.csv").is_file():
        sys.exit(f"error: {raw}: found {len(paths)} test_videoid_to_gtimage_*.json, expected what simulate.py writes")
    with (raw / "attribution.csv").open(newline="", encoding="utf-8") as file:
        products = {row["image_id"]: row["product_id"] for row in csv.DictReader(file)}
    return {clip: products[images[0]] for clip, images in json.loads(paths[0].read_text(encoding="utf-8")).items()}


def frames_of(raw: pathlib.Path, clips: Sequence[str], engine: Engine):
    """Yields the frames of each clip that evaluation looks at."""
    for clip in clips:
        paths = sorted((raw / "frames" / clip).iterdir())
        chosen = sample_frames(len(paths), engine.num_frames)
        yield [Frame(float(place), paths[place].read_bytes()) for place in chosen]


def unit(features: np.ndarray) -> np.ndarray:
    """Features at unit length, as embeddings have it."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def embed_clips(engine: Engine, clips: Sequence[Frames]) -> np.ndarray:
    """The embeddings of clips [Q, E], into which the model aggregates their frames as the engine does."""
    model = nnx.merge(engine.model.graphdef, engine.model.params)
    each = [jnp.asarray(clip.features)[None] for clip in clips]
    return np.concatenate(jax.device_get([model.aggregate(own, jnp.ones(own.shape[:2], bool)) for own in each]))


def calibrate(engine: Engine, clips: dict[str, str], encoded: Sequence[Frames], galleries: set[str]) -> Calibration:
    """A calibration fitted on the clips of these galleries' products, each scored by all its pictures.

    Raises:
        SystemExit: there are no such clips.
    """
    index = engine.index
    gallery_of = {
        name: gallery
        for name, gallery in zip(index.product_ids, index.gallery_ids, strict=True)
        if gallery in galleries
    }
    chosen = [place for place, product in enumerate(clips.values()) if product in gallery_of]
    if not chosen:
        sys.exit(f"error: no clip shows a product of {sorted(galleries)}: do clips and films share a --split_seed?")
    products = [list(clips.values())[place] for place in chosen]
    queries = Queries(
        embeddings=embed_clips(engine, [encoded[place] for place in chosen]),
        ids=[list(clips)[place] for place in chosen],
        gallery_ids=[gallery_of[product] for product in products],
        truths=[[product] for product in products],
    )
    mask = np.arange(engine.num_frames) < np.array([[len(encoded[place].features)] for place in chosen])
    frames = np.zeros((*mask.shape, queries.embeddings.shape[1]), np.float32)
    frames[mask] = unit(np.concatenate([encoded[place].features for place in chosen]))
    by_frames = dataclasses.replace(queries, embeddings=frames, frame_mask=mask)
    sharpness = SHARPNESS * engine.logit_scale
    images = GalleryImages(index.vectors, index.gallery_ids, index.image_ids, (), index.product_ids, sharpness)
    calibration = fit_calibration(
        queries,
        images,
        num_frames=engine.num_frames,
        fingerprint=index.about.fingerprint,
        by_frames=by_frames,
    )
    assert calibration, "every chosen clip shows a product of its gallery"
    return calibration


def at(segments: Sequence, starts: Sequence[float], time: float):
    """The segment at a time."""
    return segments[max(bisect.bisect_right(starts, time) - 1, 0)]


def summary(videos: Sequence[dict]) -> str:
    """What the films hold, and what the tables' columns mean."""
    segments = [segment for video in videos for segment in video["segments"]]
    shown = sum(segment["end"] - segment["start"] for segment in segments if segment["product"])
    total = sum(video["seconds"] for video in videos)
    lines = [
        f"{len(videos)} videos of {len({video['gallery'] for video in videos})} shops, {total / 60:.0f} minutes; "
        f"one of {sum(segment['product'] is not None for segment in segments)} products is shown for {shown / 60:.0f}, "
        f"none of the shop's for {(total - shown) / 60:.0f}",
        "",
        *(f"{way:<10}{meaning}" for way, meaning in WAYS.items()),
    ]
    return "\n".join(lines)


def table(runs: Sequence[dict[str, float]]) -> str:
    """The table of some runs as text."""
    lines = [
        f"{'':<44}" + "".join(f"{way:>16}" for way in WAYS),
        "percent of the time with a product",
        _line("  the right one is named", "right", runs),
        _line("  another one is named", "wrong", runs),
        _line("  none is named", "none", runs),
        _line('  the right one, with "none" not allowed', "forced", runs),
        _line("    by chance", "chance", runs),
        "percent of the time without a product",
        _line("  one is named", "alarm", runs),
        *(_line(f"    while {meaning}", f"alarm {kind}", runs) for kind, meaning in GAPS.items()),
        _line("false segments per minute of gap", "false segments", runs),
    ]
    if "timeline least" in runs[0]:
        lines.append(_line("least confidence of a name, percent", "least", runs))
    return "\n".join(lines)


def _line(label: str, name: str, runs: Sequence[dict[str, float]]) -> str:
    cells = []
    for way in WAYS:
        values = [run[f"{way} {name}"] for run in runs]
        spread = f" ±{statistics.stdev(values):>4.1f}" if len(values) > 1 else ""
        cells.append(f"{f'{statistics.mean(values):.1f}{spread}':>16}")
    return f"{label:<44}" + "".join(cells)


if __name__ == "__main__":
    main()
