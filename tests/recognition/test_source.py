"""Connections to live sources on this machine."""

import contextlib
import socket
import threading
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pytest

from rice_jax import recognize
from rice_jax.recognition import source as source_module
from rice_jax.recognition.allowed import parse_allowed
from rice_jax.recognition.source import Backlog, LiveSource, Seen, SourceEnded, SourceLost, live_pictures
from rice_jax.types import DataError
from tests.recognition.streams import free_port, number, sender, serve, serve_rtsp, write, write_sound

HALF = Fraction(1, 2)  # second between pictures
PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"


def numbers(pictures):
    """The numbers of pictures, each once as long as it stays, with their sides."""
    found = []
    for _, picture in pictures:
        if not found or found[-1] != (number(picture), len(picture)):
            found.append((number(picture), len(picture)))
    return found


def until_lost(source, seen=None, stop=None):
    """The pictures until the connection is lost or ends."""
    try:
        yield from live_pictures(source, HALF, stop or threading.Event(), seen or Seen())
    except SourceLost as error:
        assert str(source) in str(error)


class Recorder(threading.Event):
    """Writes the next piece of a file when its reader has waited at its end for a while."""

    def __init__(self, path, pieces):
        super().__init__()
        self.path, self.pieces, self.waits = path, pieces, 0

    def wait(self, timeout=None):
        self.waits += 1
        if self.waits % 10 == 0:
            if not self.pieces:
                self.set()
            elif isinstance(piece := self.pieces.pop(0), bytes):
                with self.path.open("ab") as file:
                    file.write(piece)
            else:
                piece()
        return self.is_set()


def test_a_file_that_does_not_grow_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(source_module, "SILENT_SECONDS", 0.5)
    path = tmp_path / "live.ts"
    path.touch()
    assert list(until_lost(LiveSource(str(path)), stop=Recorder(path, []))) == []
    assert caplog.messages == [f"{path}: has not grown for 0 seconds"], "once"


MKV, MP4 = "matroska", "mp4"


@pytest.mark.parametrize(
    ("form", "options"), [(MKV, {}), (MP4, {"movflags": "faststart"}), (MP4, {"movflags": "frag_keyframe"}), (MP4, {})]
)
def test_a_complete_file_is_not_followed(tmp_path, form, options):
    path = write(tmp_path / "film", [0, 1], form=form, **options)
    fragmented = "frag_keyframe" in options.values()
    recorder = Recorder(path, [b""] * 10)
    pictures = live_pictures(LiveSource(str(path)), HALF, recorder, Seen())
    if fragmented:
        assert list(pictures) == [] and recorder.is_set(), "it may grow"
    else:
        with pytest.raises(SourceEnded, match="film: is a complete recording, which does not grow; recognize it as"):
            list(pictures)
        assert recorder.waits < 60


def test_a_file_that_grows_until_it_is_complete_ends(tmp_path):
    """Matroska's header gets the length when the recorder stops."""
    whole = write(tmp_path / "whole.mkv", range(7), 2, form=MKV).read_bytes()
    path, place = tmp_path / "live.mkv", whole.index(b"\x44\x89\x88")  # the element Duration
    edges = [len(whole) * part // 4 for part in range(1, 5)]
    path.write_bytes(whole[:place] + b"\xec\x89".ljust(11, b"\x00") + whole[place + 11 : edges[0]])
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    recorder = Recorder(path, [*pieces, lambda: path.open("r+b").write(whole), *[b""] * 8])
    with pytest.raises(SourceEnded):
        for _, picture in live_pictures(LiveSource(str(path)), HALF, recorder, Seen()):
            last = picture
    assert number(last) == 6 and not recorder.is_set()


def test_an_mp4_that_cannot_be_read_yet_is_refused(tmp_path):
    path = write(tmp_path / "film.mp4", [0], form=MP4)
    path.write_bytes(path.read_bytes().partition(b"moov")[0][:-4])
    with pytest.raises(DataError, match="film.mp4: is an MP4 whose index is written at its end, expected one that can"):
        list(live_pictures(LiveSource(str(path)), HALF, threading.Event(), Seen()))


@pytest.fixture
def pieces(tmp_path):
    """Parts of a recording whose clock restarts, and whose pictures become larger."""
    parts = [([0], 6, 64, 10), ([1, 2], 2, 64, 16), ([3], 2, 96, 0), ([4], 2, 96, 2)]
    made = []
    for place, (shown, seconds, side, start) in enumerate(parts):
        made.append(write(tmp_path / f"piece-{place}", shown, seconds, side, start).read_bytes())
    return made


def test_a_file_that_grows_is_followed_from_its_end(tmp_path, pieces, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "live.ts"
    path.write_bytes(pieces[0])
    found = list(live_pictures(LiveSource(str(path)), HALF, Recorder(path, pieces[1:]), Seen()))
    assert numbers(found) == [(1, 64), (2, 64), (3, 96), (4, 96)], "what it held before is left out"
    times = [time for time, _ in found]
    assert times == sorted(times) and 6 < times[-1] < 9, "no time is made up, and none is lost"
    assert "its clock has jumped by -" in caplog.text and "now 96 × 96 pixels" in caplog.text


def test_a_file_that_grows_rarely_is_not_lost(tmp_path, pieces, monkeypatch):
    path = tmp_path / "live.ts"
    path.write_bytes(pieces[0])
    recorder = Recorder(path, pieces[1:])
    monkeypatch.setattr(source_module, "SILENT_SECONDS", 0.5)  # half of the time between two pieces
    elapsed = SimpleNamespace(monotonic=lambda: recorder.waits * source_module.LOOK_SECONDS)
    monkeypatch.setattr(source_module, "time", elapsed)
    found = numbers(live_pictures(LiveSource(str(path)), HALF, recorder, Seen()))
    assert found == [(1, 64), (2, 64), (3, 96), (4, 96)]


@pytest.mark.parametrize("change", ["replaced", "cut", "removed"])
def test_a_file_that_a_new_one_replaces_ends(tmp_path, pieces, change):
    path, new = tmp_path / "live.ts", tmp_path / "new.ts"
    path.write_bytes(pieces[0])
    new.write_bytes(pieces[3])
    changes = {"replaced": lambda: new.replace(path), "cut": lambda: path.write_bytes(b""), "removed": path.unlink}
    recorder = Recorder(path, [pieces[1], changes[change]])
    assert numbers(live_pictures(LiveSource(str(path)), HALF, recorder, Seen()))[0] == (1, 64)
    assert not recorder.is_set() and not recorder.pieces


@pytest.fixture
def playlist(tmp_path):
    """Lists the first segments of an HLS stream whose clock restarts, and whose pictures become larger."""
    for place, (side, start) in enumerate([(64, 0), (64, 2), (64, 4), (96, 0), (96, 2)]):
        write(tmp_path / f"{place}.ts", [place], 2, side, start)
    segments = [f"#EXTINF:2.0,\n{place}.ts\n" for place in range(5)]
    segments[3] = "#EXT-X-DISCONTINUITY\n" + segments[3]

    def list_segments(num, end=False):
        (tmp_path / "new").write_text(PLAYLIST + "".join(segments[:num]) + ("#EXT-X-ENDLIST\n" if end else ""))
        (tmp_path / "new").replace(tmp_path / "live.m3u8")

    return list_segments


@contextlib.contextmanager
def served(directory, **options):
    """The address of a directory that is served."""
    server = serve(directory, **options)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hls_is_followed_from_its_newest_segment(tmp_path, playlist, caplog):
    playlist(2)
    with served(tmp_path, asked=lambda path: path == "/1.ts" and playlist(4, end=True)) as address:
        source = LiveSource(f"{address}/live.m3u8?token=1")
        assert numbers(until_lost(source)) == [(1, 64), (2, 64), (3, 96)]
        assert "token" not in caplog.text and "its clock has jumped by -" in caplog.text
        with pytest.raises(SourceLost, match="live.m3u8: has ended, and is a recording now"):
            list(live_pictures(source, HALF, threading.Event(), Seen()))
        missing = LiveSource(f"{address}/none.m3u8?token=1")
        with pytest.raises(SourceLost, match="127.0.0.1:[0-9]+/none.m3u8: Server returned 404 Not Found$"):
            list(live_pictures(missing, HALF, threading.Event(), Seen()))


def test_a_new_connection_to_hls_shows_nothing_again(tmp_path, playlist):
    seen = Seen()
    playlist(4)
    with served(tmp_path, asked=lambda path: path == "/3.ts" and playlist(num, end=True)) as address:
        num = 4
        assert numbers(until_lost(LiveSource(f"{address}/live.m3u8"), seen)) == [(3, 96)]
        playlist(4)
        num = 5
        assert numbers(until_lost(LiveSource(f"{address}/live.m3u8"), seen)) == [(4, 96)]


@pytest.mark.parametrize(("scheme", "form"), [("rtmp", "flv"), ("rtsp", "rtsp")])
def test_who_listens_gets_what_is_sent_time_and_again(tmp_path, scheme, form):
    source = LiveSource(f"{scheme}://127.0.0.1:{free_port()}/live/x", listen=True, max_delay=1000.0)
    for shown in ([1, 2], [3, 4]):
        film = write(tmp_path / f"{shown[0]}.mp4", shown, 3, form="mp4")
        with sender(film, source.address, form):
            assert numbers(until_lost(source)) == [(place, 64) for place in shown]


@pytest.mark.parametrize("checked", [False, True])
def test_a_server_that_is_asked_sends_time_and_again(tmp_path, checked):
    film = write(tmp_path / "film.ts", [1, 2], 3)
    with serve_rtsp(film) as port:
        allowed = parse_allowed([f"127.0.0.1:{port}"]) if checked else None
        source = LiveSource(f"rtsp://user:secret@127.0.0.1:{port}/live", max_delay=1000.0, allowed=allowed)
        for _ in range(2):
            assert numbers(until_lost(source)) == [(1, 64), (2, 64)]


@pytest.mark.parametrize("checked", [False, True])
def test_an_rtmp_server_is_asked(checked):
    """Whether it sends depends on FFmpeg alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, asked = server.getsockname()[1], []

        def answer():
            with server.accept()[0] as connection:
                asked.append(connection.recv(1))

        thread = threading.Thread(target=answer)
        thread.start()
        allowed = parse_allowed([f"127.0.0.1:{port}"]) if checked else None
        with pytest.raises(SourceLost, match=f"rtmp://127.0.0.1:{port}/live/x: "):
            list(
                live_pictures(
                    LiveSource(f"rtmp://127.0.0.1:{port}/live/x", allowed=allowed), HALF, threading.Event(), Seen()
                )
            )
        thread.join()
    assert asked == [b"\x03"], "the version of RTMP"


def test_what_does_not_answer_is_lost(tmp_path, monkeypatch):
    port = free_port()
    cases = {f"rtmp://user:secret@127.0.0.1:{port}/live": "rtmp://127.0.0.1:[0-9]+/live: .*refused",
             f"http://127.0.0.1:{port}/live.m3u8": "Connection refused",
             str(tmp_path / "none.ts"): "none.ts: No such file or directory",
             str(tmp_path): "Is a directory"}  # fmt: skip
    for address, message in cases.items():
        with pytest.raises(SourceLost, match=message) as lost:
            list(live_pictures(LiveSource(address), HALF, threading.Event(), Seen()))
        assert "secret" not in str(lost.value)
    monkeypatch.setattr(source_module, "LISTEN_SECONDS", 1.0)
    with pytest.raises(SourceLost, match="does not answer"):
        list(
            live_pictures(
                LiveSource(f"rtmp://127.0.0.1:{free_port()}/live", listen=True), HALF, threading.Event(), Seen()
            )
        )


def test_sound_alone_is_lost(tmp_path):
    path = write_sound(tmp_path / "sound.ts")
    server = serve(tmp_path)
    with pytest.raises(SourceLost, match="sound.ts: has no video"):
        list(
            live_pictures(
                LiveSource(f"http://127.0.0.1:{server.server_port}/{path.name}"), HALF, threading.Event(), Seen()
            )
        )
    server.shutdown()
    server.server_close()


def test_what_can_never_be_followed_is_an_error(tmp_path):
    with pytest.raises(DataError, match="rtpm://example.com: cannot be followed: Protocol not found") as error:
        list(live_pictures(LiveSource("rtpm://example.com"), HALF, threading.Event(), Seen()))
    assert not isinstance(error.value, SourceLost)
    with pytest.raises(DataError, match="expected an rtmp:// or rtsp:// address to listen at"):
        LiveSource("https://example.com/live.m3u8", listen=True)
    with pytest.raises(DataError, match="'': found no address, expected a URL, a file that grows, or a camera"):
        LiveSource("")
    with pytest.raises(SystemExit, match="found a directory, expected a URL, a file that grows, or a camera"):
        recognize.main([f"--follow={tmp_path}", "--index=x"])
    with pytest.raises(DataError, match="Invalid IPv6 URL"):
        LiveSource("rtsp://[::1/live")
    for delay in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(DataError, match="max_delay"):
            LiveSource("rtmp://example.com", max_delay=delay)


def test_a_camera_is_opened_as_one(monkeypatch):
    opened = []
    monkeypatch.setattr(source_module.av, "open", lambda *given, **options: opened.append((given, options)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(live_pictures(LiveSource("/dev/null"), HALF, threading.Event(), Seen()))
    assert opened[0][0][0] == "/dev/null" and opened[0][1]["format"] == "v4l2"


def test_names_hold_no_secrets():
    assert str(LiveSource("rtsp://user:pass@example.com:554/a?token=1#b")) == "rtsp://example.com:554/a"
    assert str(LiveSource("films/live?.ts")) == "films/live?.ts"


def test_a_backlog_is_noticed_and_worked_off():
    backlog = Backlog(4.0)
    for _ in range(10):
        backlog.note(0.01, 0.3)
        assert not backlog.late
    for _ in range(4):
        backlog.note(0.01, 0.3)
    assert backlog.late
    backlog.note(0.1, 0.1)
    assert backlog.late, "one short wait may be chance"
    backlog.note(0.15, 0.15)
    assert not backlog.late
    for _ in range(100):
        backlog.note(0.3, 0.5)
    assert not backlog.late, "it waits again and again"
