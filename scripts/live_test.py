"""Measures the events of a live stream with cuts, and what memory it takes, by a clock that runs as fast as it can.

    python scripts/live_test.py FILM --truth=truth.jsonl --index=DIR [--hours=1]

FILM is shown over and over again, and `truth.jsonl` says what it shows (`data/sample/film.py`). The connection is cut
every 1 to 10 minutes for 1 second to 2 minutes, and its clock begins anew after each cut.
"""

import argparse
import json
import logging
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rice_jax.recognition import follow
from rice_jax.recognition.changes import LOST_SECONDS, changes
from rice_jax.recognition.engine import Engine
from rice_jax.recognition.source import LiveSource, SourceLost
from rice_jax.recognition.video import read_video

STATM = Path("/proc/self/statm")  # of Linux
PAGE = 4096 / 2**20  # MiB
Run = tuple[str, float, float]  # a product, and from when to when it is shown


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0)
    options = parser.parse_args(arguments)
    logging.getLogger("rice_jax").setLevel(logging.ERROR)  # it names each cut
    truth = next(
        film["segments"]
        for film in map(json.loads, options.truth.read_text().splitlines())
        if film["video"].endswith(options.film.name)
    )
    engine = Engine(options.index, batch_sizes=(1, follow.MAX_TAKEN))
    stream = Stream(engine, options.film, truth, 3600 * options.hours)
    begin, memory, found, open_run = time.time(), [], [], None
    for event in changes(stream.batches(), stream.engine, now=lambda: stream.now, date=lambda: stream.now):
        memory.append(int(STATM.read_text().split()[1]) * PAGE)
        if event.event == "shown":
            open_run = event
        elif open_run:
            found.append((event.product.id, open_run.date, event.date))
    true = stream.true_runs()
    right = [(run, own) for run in true for own in found if own[0] == run[0] and own[1] < run[2] and own[2] > run[1]]
    told, known = {own for _, own in right}, {run for run, _ in right}
    print(f"{stream.now:.0f} seconds in {time.time() - begin:.0f}; {len(stream.shown)} frames, {stream.cuts} cuts")
    print(f"{len(known)} of {len(true)} products reported, {len(found) - len(told)} that are not shown")
    print(
        "not reported, and for how many seconds each is seen:", [(run[0], run[2] - run[1]) for run in set(true) - known]
    )
    print(f"begin off by {statistics.median(abs(run[1] - own[1]) for run, own in right):.2f} seconds in the median")
    print(f"memory in MiB: {memory[len(memory) // 10]:.1f} after a tenth, {memory[-1]:.1f} at the end")


class Stream:
    """A film as a live stream.

    Attributes:
        engine: knows the film's frames.
        now: seconds since the stream began.
        shown: what was shown when.
        cuts: number of cuts.
    """

    def __init__(self, engine: Engine, film: Path, truth: list[dict], seconds: float):
        """Encodes the film's frames once."""
        self.engine, self.now, self.cuts, self._seconds, self._truth = engine, 0.0, 0, seconds, truth
        self.shown: list[tuple[float, str | None]] = []
        self._pictures = [engine.prepare(frame.picture) for frame in read_video(film)]
        encoded, self._random = engine.encode(np.stack(self._pictures)), random.Random(0)
        places = {picture.tobytes(): place for place, picture in enumerate(self._pictures)}
        engine.encode = lambda pictures: encoded.take(np.array([places[own.tobytes()] for own in pictures]))  # type: ignore[method-assign]
        self._taken, self._stop = threading.Semaphore(0), threading.Event()
        follow.TICK, follow.BACK_OFF = 0.01, (0.0,)

    def batches(self) -> Iterator[list[follow.LiveFrame]]:
        """Each frame is taken before the next one comes."""
        source = LiveSource("rtmp://localhost/film")
        followed = follow.follow(source, lambda own: own, self._stop, connect=self._connect, now=lambda: self.now)
        for batch in followed:
            yield batch
            for _ in batch:
                self._taken.release()

    def true_runs(self) -> list[Run]:
        """What was shown."""
        runs: list[Run] = []
        last: tuple[float, str | None] = (-LOST_SECONDS, None)
        for now, product in self.shown:
            goes_on = product == last[1] and now - last[0] <= LOST_SECONDS
            if product:
                runs[len(runs) - goes_on :] = [(product, runs[-1][1] if goes_on else now, now + 1)]
            last = now, product
        return runs

    def _connect(self, *_: object) -> Iterator[tuple[float, np.ndarray]]:
        begin, seconds = self.now, self._random.uniform(60, 600)
        while self.now - begin < seconds:
            if self.now > self._seconds:
                self._stop.set()
                return
            place = int(self.now) % len(self._pictures)
            product = next((own["product"] for own in self._truth if own["start"] <= place < own["end"]), None)
            self.shown.append((self.now, product))
            yield self.now - begin, self._pictures[place]
            self._taken.acquire()
            self.now += 1.0
        self.cuts += 1
        self.now += self._random.choice([1, 3, 8, 20, 45, 120])
        raise SourceLost("cut")


if __name__ == "__main__":
    main()
