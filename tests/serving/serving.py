"""A server of the tiny shop, in a thread or in a process of its own."""

import contextlib
import dataclasses
import hashlib
import socket
import threading
import time
from pathlib import Path

import httpx
import uvicorn

from rice_jax.index.store import write_index
from rice_jax.serving.connections import Config
from rice_jax.serving.limits import Limits
from rice_jax.serving.server import create_app
from rice_jax.serving.shops import Shops
from tests.shop import Shop, make_shop, png

BATCH_SIZES = (1, 2, 4)
LIMITS = Limits(
    upload_bytes=300_000, picture_bytes=150_000, frames=12, pixels=40_000, video_seconds=9.0, streams=3, requests=20
)


def make_named_shop(directory: Path, **titles: str) -> Shop:
    """The tiny shop with its files' digests, and with other titles for some images."""
    shop = make_shop(directory)
    index = dataclasses.replace(
        shop.index,
        digests=[hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in shop.index.paths],
        titles=[titles.get(name, title) for name, title in zip(shop.index.image_ids, shop.index.titles, strict=True)],
    )
    write_index(shop.directory, index)
    return shop._replace(index=index)


@contextlib.contextmanager
def serving(app, limits, stop_seconds=None):
    """Serves an app; yields its address."""
    server = uvicorn.Server(Config(app, limits, log_level="warning", timeout_graceful_shutdown=stop_seconds))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive(), "it stops when asked to"


def only(engine):
    """The shops of a server that searches one index, which stays as it is."""
    return Shops({"": Path(__file__)}, lambda file, others: engine)


@contextlib.contextmanager
def asking(engine, limits=LIMITS, stop_seconds=None, **settings):
    shops = engine if isinstance(engine, Shops) else only(engine)
    app = create_app(shops, limits, batch_sizes=BATCH_SIZES, **settings)
    with serving(app, limits, stop_seconds) as address, httpx.Client(base_url=address, timeout=20) as client:
        yield client


def frames(*pictures):
    return [("frames", (f"{place}.png", picture, "image/png")) for place, picture in enumerate(pictures)]


def video(content, kind="video/mp4"):
    return [("video", ("clip", content, kind))]


def clip(shop, *rows):
    return frames(*(png(shop.pictures[row]) for row in rows))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
