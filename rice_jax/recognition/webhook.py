"""Posts events to a URL, in a thread of its own: whoever sends never waits."""

import json
import logging
import threading
import time
from queue import Empty, Full, Queue

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from rice_jax.types import DataError

MAX_QUEUED = 1000  # events; then the oldest are dropped
# About five minutes for an event, whatever its receiver asks for: later ones wait for it.
TRIES, BACK_OFF, LONGEST_BACK_OFF = 11, 1.0, 60.0
TIMEOUT_SECONDS = 10.0  # without an answer, after which a try has failed
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which another try may succeed

logger = logging.getLogger(__name__)


class Webhook:
    """Posts each event as JSON, in order.

    An event that is refused, or that has failed `TRIES` times, is dropped and named in the log. An event may arrive
    twice if its answer is lost.
    """

    def __init__(self, url: str, back_off: float = BACK_OFF):
        """Starts the thread.

        Args:
            url: http or https.
            back_off: seconds before the second try, doubled for each further one.

        Raises:
            DataError: it is no such URL.
        """
        try:
            parts = parse_url(url)
        except LocationParseError as error:
            raise DataError(f"webhook: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise DataError(f"webhook: found {url!r}, expected a URL that begins with http:// or https://")
        self._url, self._name = url, f"{parts.scheme}://{parts.host}"  # the rest may hold secrets
        self._back_off = back_off
        self._queue: Queue[dict] = Queue(MAX_QUEUED)
        self._dropped = 0
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings name the URL
        threading.Thread(target=self._run, name="webhook", daemon=True).start()

    def send(self, event: dict) -> None:
        """Puts an event into the queue, if need be in place of the oldest one; from one thread at a time."""
        while True:
            try:
                return self._queue.put_nowait(event)
            except Full:
                self._drop_oldest()

    def close(self, seconds: float) -> None:
        """Waits until all events are posted, but not for longer than that, and reports how many are not."""
        end = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)
        if left := self._queue.unfinished_tasks:
            logger.warning("webhook: %s has not taken the last %d events", self._name, left)

    def _drop_oldest(self) -> None:
        try:
            self._queue.get_nowait()
        except Empty:
            return
        self._queue.task_done()
        self._dropped += 1
        if self._dropped & (self._dropped - 1) == 0:  # 1, 2, 4, … events
            logger.warning("webhook: %s is too slow; %d events have been dropped", self._name, self._dropped)

    def _run(self) -> None:
        pool = urllib3.PoolManager(timeout=TIMEOUT_SECONDS, retries=False)
        while True:
            event = self._queue.get()
            try:
                status = self._post(pool, event)
                if not 200 <= status < 300:
                    logger.warning("webhook: %s has answered %d; the event is dropped", self._name, status)
            except Exception as error:  # whatever it is, the next event gets its turn
                logger.warning("webhook: %s: %s; the event is dropped", self._name, type(error).__name__)
            finally:
                self._queue.task_done()

    def _post(self, pool: urllib3.PoolManager, event: dict) -> int:
        """Posts an event, again while another try may succeed; returns the last status.

        Only the header of an answer is read, as its body may never end. urllib3's own retries read the whole body.
        """
        body = json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
        headers, number = {"Content-Type": "application/json"}, 1
        while True:
            try:
                answer = pool.request(
                    "POST", self._url, body=body, headers=headers, redirect=False, preload_content=False
                )
                answer.close()
                if answer.status not in PASSING or number == TRIES:
                    return answer.status
            except HTTPError as error:
                if number == TRIES or isinstance(error, LocationParseError):  # no host has such a name
                    raise
            time.sleep(min(self._back_off * 2 ** (number - 1), LONGEST_BACK_OFF))
            number += 1
