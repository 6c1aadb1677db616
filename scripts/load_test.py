"""Sends a server 1,000 requests from 16 clients, good and bad mixed, and checks every response.

    python scripts/load_test.py --index=DIR [--requests=1000] [--clients=16] [--cores=N]

The script starts `python -m rice_jax.serve` with that index. Three of five requests are good: clips of one to ten
pictures of the index, and streams that get one picture after another. The others are bad, in several ways.

A good response must equal that of a recognizer in this process that encodes each picture alone, without HTTP: the same
images with the same scores up to rounding, and the same timeline. A bad request must get its status and a reason.

The script prints the server's memory before, at most, and after, and then compares the speed of the server with that of
the recognizer, called by one thread and by as many threads as there are clients; for this, the clips alone are sent
again. Of these it prints how long a clip is in each stage, on average; `other` is the parsing of the request, the
response, and waiting for the event loop. `core_ms_each` is the CPU time of the server or recognizer per request; other
columns include the time of the clients and of other programs. The last line is the numbers as JSON. The exit code is 1
if any response was wrong. The script needs Linux and `pip install 'rice-jax[test]'`.
"""

import argparse
import collections
import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `scripts`

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from rice_jax.models.weights import CheckpointError
from rice_jax.recognition.engine import Engine, Match, join_frames
from rice_jax.recognition.recognizer import Segment, products_over_time
from rice_jax.types import DataError
from scripts.benchmarks.timing import on_cores, print_rows

ROUNDING = 2e-5  # largest difference of a score
TOP = 5
NUM_FRAMES = 10  # largest number of frames in a clip
COLUMNS = {"by": "30", "requests": ",", "a_second": ".1f", "median_ms": ".1f", "p99_ms": ".1f", "core_ms_each": ".1f"}


class Clip(NamedTuple):
    """A clip: the pictures of some rows of the index, searched in one gallery or in all."""

    rows: tuple[int, ...]
    gallery: str | None


class Truth(NamedTuple):
    """The result of the recognizer that encodes pictures one by one."""

    ranking: Sequence[Match]  # all images of the gallery
    timeline: Sequence[Segment]


class Request(NamedTuple):
    """A request and its expected status."""

    kind: str
    send: Callable[[httpx.Client], httpx.Response]
    status: int
    clip: Clip | None = None  # None = a bad request


class Outcome(NamedTuple):
    """A request's duration and the problem with its response."""

    kind: str
    seconds: float
    problem: str  # "" = the response is right


def main(arguments: list[str] | None = None) -> None:
    """Prints the numbers.

    Args:
        arguments: the command line; None = `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True, type=Path, help="directory of the index")
    parser.add_argument("--requests", type=int, default=1000, help="number of requests (default: 1000)")
    parser.add_argument("--clients", type=int, default=16, help="number of clients (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clips and their order (default: 0)")
    parser.add_argument("--cores", type=int, help="cores that server and clients share (default: all)")
    options = parser.parse_args(arguments)
    try:
        with on_cores(options.cores) as cores:
            result = measure(options.index, options.requests, options.clients, options.seed)
    except (CheckpointError, DataError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    problems = result.pop("problems")
    print("responses:", ", ".join(f"{count} {kind}" for kind, count in result["responses"].items()))
    print("MiB of the server:", ", ".join(f"{size:.0f} {when}" for when, size in result["memory_MiB"].items()))
    print("ms of a clip in the server:", ", ".join(f"{ms:.1f} {stage}" for stage, ms in result["stages_ms"].items()))
    print_rows(COLUMNS, result.pop("rows"), cores=cores, clients=options.clients, wrong=len(problems), **result)
    if problems:
        sys.exit("\n".join(problems[:10]))


def measure(index: Path, num_requests: int, num_clients: int, seed: int) -> dict:
    """Measures the recognizer in this process, then the server.

    Returns:
        `problems`: a line for each wrong response; `responses`: their number by kind; `memory_MiB`; `stages_ms`; and
        `rows` of the table.
    """
    alone = Alone(index)
    first, asked = (
        [
            make_requests(alone, f"{name}-{client}", len(range(client, total, num_clients)), [seed, client, total])
            for client in range(num_clients)
        ]
        for name, total in (("first", max(num_requests // 5, num_clients)), ("asked", num_requests))
    )
    about = {request.clip for some in (*first, *asked) for request in some if request.clip}
    truths = {clip: alone.recognize(clip) for clip in about}
    clips = [[request for request in some if request.kind == "clip"] for some in asked]
    own = [request.clip for some in clips for request in some]
    rows = [unbatched(alone, own, threads) for threads in (1, num_clients)]
    with serve(index) as (address, process):
        problems = [outcome.problem for outcome in ask(address, first, truths)]  # also fills the server's caches
        with watch_memory(process.pid) as memory:
            watch = Watch(process.pid)
            outcomes = ask(address, asked, truths)
            mixed = watch.row("server, all kinds", [outcome.seconds for outcome in outcomes])
        before, watch = stage_seconds(address), Watch(process.pid)
        again = ask(address, clips, truths)
        rows += [watch.row("server", [outcome.seconds for outcome in again]), mixed]
        stages = {
            stage: (seconds - before[stage]) / len(again) * 1000 for stage, seconds in stage_seconds(address).items()
        }
        problems += [outcome.problem for outcome in (*outcomes, *again)]
        if process.poll() is not None:
            problems.append(f"the server has ended with code {process.returncode}")
    kinds = dict(collections.Counter(outcome.kind for outcome in outcomes).most_common())
    return {
        "problems": list(filter(None, problems)),
        "responses": kinds,
        "memory_MiB": memory,
        "stages_ms": stages,
        "rows": rows,
    }


class Alone:
    """The recognizer that encodes pictures one by one."""

    def __init__(self, index: Path):
        """Loads the engine, and the pictures of the index."""
        self.engine = Engine(index)
        self.pictures = [Path(path).read_bytes() for path in self.engine.index.paths]

    def recognize(self, clip: Clip) -> Truth:
        """Ranks all images, and recognizes the products over time."""
        engine = self.engine
        frames = join_frames([engine.encode(engine.prepare(self.pictures[row])[None]) for row in clip.rows])
        ranking = engine.rank(frames, clip.gallery, len(self.pictures)).products
        times = np.arange(len(clip.rows), dtype=float).tolist()
        return Truth(ranking, products_over_time(engine, times, frames, gallery=clip.gallery, top=TOP))


def make_requests(alone: Alone, stream: str, number: int, seed: list[int]) -> list[Request]:
    """The requests of one client in order; `stream` is the id of its stream."""
    rng = np.random.default_rng(seed)
    engine, pictures = alone.engine, alone.pictures
    pushed: list[int] = []
    bad = make_bad(pictures[0], stream)

    def clip() -> Request:
        gallery = [*engine.galleries, None][rng.integers(len(engine.galleries) + 1)]
        rows = tuple(rng.choice(engine.rows(gallery), rng.integers(1, NUM_FRAMES + 1)).tolist())
        files = [("frames", (f"{row}", pictures[row], "image/jpeg")) for row in rows]
        fields = {"top": str(TOP)} | ({} if gallery is None else {"gallery": gallery})
        send = lambda client: client.post("/recognize", files=files, data=fields)  # noqa: E731
        return Request("clip", send, 200, Clip(rows, gallery))

    def push() -> Request:
        row, query = int(rng.integers(len(pictures))), {"time": len(pushed), "top": TOP}
        pushed.append(row)
        headers = {"content-type": "application/octet-stream"}
        path = f"/streams/{stream}/frames"
        send = lambda client: client.post(path, params=query, content=pictures[row], headers=headers)  # noqa: E731
        return Request("stream", send, 200, Clip(tuple(pushed[-engine.num_frames :]), None))

    return [
        bad[int(rng.integers(len(bad)))] if kind >= 0.6 else push() if kind < 0.15 else clip()
        for kind in rng.random(number)
    ]


def make_bad(picture: bytes, stream: str) -> list[Request]:
    """Requests that must be refused."""
    bomb = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(bomb, "PNG")

    def frames(kind: str, status: int, *contents: bytes, mime: str = "image/jpeg", **fields: str) -> Request:
        files = [("frames", (str(place), content, mime)) for place, content in enumerate(contents)]
        files += [(name, (None, value)) for name, value in fields.items()]
        return Request(kind, lambda client: client.post("/recognize", files=files), status)

    def body(kind: str, status: int, path: str, content: bytes, mime: str) -> Request:
        headers = {"content-type": mime}
        return Request(kind, lambda client: client.post(path, content=content, headers=headers), status)

    path = f"/streams/{stream}/frames?time=1"
    return [
        frames("not an image", 400, picture, b"<p>This is a page.</p>" * 99),
        body("not an image", 400, path, b"hello", "image/png"),
        frames("truncated", 400, picture, picture[: len(picture) // 2]),
        body("truncated", 400, path, picture[: len(picture) // 3], "image/jpeg"),
        frames("50 megapixels", 413, bomb.getvalue()),
        body("50 megapixels", 413, path, bomb.getvalue(), "image/png"),
        frames("zero frames", 400, top="3"),
        body("zero frames", 400, path, b"", "image/jpeg"),
        frames("wrong content type", 415, picture, mime="text/html"),
        body("wrong content type", 415, "/recognize", picture, "image/jpeg"),
        frames("unknown gallery", 404, picture, gallery="nobody's"),
        body("unknown gallery", 404, f"{path}&gallery=nobody's", picture, "image/jpeg"),
    ]


def ask(address: str, requests: Sequence[Sequence[Request]], truths: dict[Clip, Truth]) -> list[Outcome]:
    """Sends the requests of all clients at the same time; each client waits for one response after another."""

    def run(own: Sequence[Request]) -> list[Outcome]:
        with httpx.Client(base_url=address, timeout=60) as client:
            return [_ask(client, request, truths) for request in own]

    with ThreadPoolExecutor(len(requests)) as pool:
        return [outcome for outcomes in pool.map(run, requests) for outcome in outcomes]


def find_problem(request: Request, status: int, answer: dict, truths: dict[Clip, Truth]) -> str:
    """The problem with a response; "" = none."""
    if status != request.status:
        return f"found status {status}, expected {request.status}: {answer}"
    if request.clip is None:
        return "" if isinstance(answer.get("detail"), str) else f"found no reason: {answer}"
    ranking, timeline = truths[request.clip]
    scores = {(match.gallery, match.id): match.score for match in ranking}
    products = answer["products"]
    if len(products) != min(TOP, len(ranking)):
        return f"found {len(products)} products, expected {min(TOP, len(ranking))}"
    for product, match in zip(products, ranking, strict=False):  # images with equal scores may swap places
        expected = scores.get((product["gallery"], product["id"]), np.inf)
        if max(abs(product["score"] - expected), abs(product["score"] - match.score)) > ROUNDING:
            return f"found {product}, expected {match}"
    if request.kind == "clip":
        found = [(part["start"], part["end"], part["product"] and part["product"]["id"]) for part in answer["timeline"]]
        expected = [(part.start, part.end, part.product and part.product.id) for part in timeline]
        return "" if found == expected else f"found the timeline {found}, expected {expected}"
    return ""


def stage_seconds(address: str) -> dict[str, float]:
    """The seconds that all clips together have been in each stage so far, as the server's metrics have them."""
    seconds, whole = {}, 0.0
    for family in text_string_to_metric_families(httpx.get(f"{address}/metrics").text):
        for sample in family.samples:
            if sample.name == "rice_stage_seconds_sum":
                seconds[sample.labels["stage"]] = sample.value
            elif sample.name == "rice_request_seconds_sum" and sample.labels["route"] == "/recognize":
                whole = sample.value
    return seconds | {"other": whole - sum(seconds.values()), "in all": whole}


@contextlib.contextmanager
def serve(index: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Starts the server; yields its address and process."""
    command = [sys.executable, "-m", "rice_jax.serve", f"--index={index}", "--port=0"]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            if not (address := next(process.stdout, "").strip()):
                sys.exit("the server was not started")
            yield address, process
        finally:
            process.terminate()


@contextlib.contextmanager
def watch_memory(process_id: int) -> Iterator[dict[str, float]]:
    """Samples a process's memory ten times a second: MiB `before`, `at most`, and, on exit, `after`."""
    sizes, done = {"before": _memory(process_id)}, threading.Event()
    sizes["at most"] = sizes["before"]

    def sample() -> None:
        while not done.wait(0.1):
            sizes["at most"] = max(sizes["at most"], _memory(process_id))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()
        sizes["after"] = _memory(process_id)


def unbatched(alone: Alone, clips: Sequence[Clip], threads: int) -> dict:
    """Measures the recognizer: a row of the table."""

    def run(clip: Clip) -> float:
        start = time.perf_counter()
        alone.recognize(clip)
        return time.perf_counter() - start

    watch = Watch(os.getpid())
    with ThreadPoolExecutor(threads) as pool:
        seconds = list(pool.map(run, clips))
    return watch.row(f"unbatched, {threads} {'thread' if threads == 1 else 'threads'}", seconds)


class Watch:
    """Measures time since its creation."""

    def __init__(self, process_id: int):
        """Starts the clock and the CPU time of a process."""
        self._process_id = process_id
        self._start, self._core_start = time.perf_counter(), _core_seconds(process_id)

    def row(self, by: str, seconds: Sequence[float]) -> dict:
        """A row of the table, from the duration of each request."""
        elapsed, core_seconds = time.perf_counter() - self._start, _core_seconds(self._process_id) - self._core_start
        median, p99 = np.percentile(seconds, [50, 99]) * 1000
        return {
            "by": by,
            "requests": len(seconds),
            "a_second": len(seconds) / elapsed,
            "median_ms": float(median),
            "p99_ms": float(p99),
            "core_ms_each": core_seconds / len(seconds) * 1000,
        }


def _ask(client: httpx.Client, request: Request, truths: dict[Clip, Truth]) -> Outcome:
    start = time.perf_counter()
    try:
        answer = request.send(client)
        seconds = time.perf_counter() - start
        problem = find_problem(request, answer.status_code, answer.json(), truths)
    except (httpx.HTTPError, ValueError) as error:
        seconds, problem = time.perf_counter() - start, f"{type(error).__name__}: {error}"
    return Outcome(request.kind, seconds, problem and f"{request.kind}: {problem}")


def _core_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(process_id: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


if __name__ == "__main__":
    main()
