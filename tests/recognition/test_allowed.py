"""Which sources may be followed, and what they may refer to."""

import contextlib
import threading
from fractions import Fraction
from pathlib import Path

import pytest

from rice_jax.recognition import source as source_module
from rice_jax.recognition.allowed import Allowed, SourceRefused, Web, parse_allowed
from rice_jax.recognition.source import LiveSource, Seen, SourceLost, live_pictures
from rice_jax.types import DataError
from tests.recognition.streams import free_port, number, sender, serve, write

HALF = Fraction(1, 2)
PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n"
END = "#EXT-X-ENDLIST\n"
SEGMENT = "#EXTINF:1.0,\n{}\n"


def test_only_named_hosts_and_ports_are_allowed(tmp_path):
    allowed = parse_allowed(["cdn.example.com", "Cam.lan:8554", "[::1]:80", str(tmp_path), "/dev/null"])
    for address in (
        "https://cdn.example.com/a.m3u8?token=1", "rtmp://cdn.example.com/live", "http://CDN.example.com.:80/",
        "https://me:x@cdn.example.com/", "rtsp://cam.lan:8554/x", "http://[::1]/x", f"{tmp_path}/a.ts", "/dev/null",
    ):  # fmt: skip
        allowed.require(address)
    for address, message in {
        "https://cdn.example.com:8443/": r"cdn\.example\.com:8443 is no source of this server; --allow_sources adds it",
        "http://cdn.example.com:443/": "cdn.example.com:443 is no",
        "rtsp://cam.lan/x": "cam.lan:554 is no",
        "http://169.254.169.254/": "169.254.169.254:80 is no",
        "http://cdn.example.com@evil.com/": "evil.com:80 is no",
        "http://a@cdn.example.com@evil.com/": "several @",
        "http://evil.com\\@cdn.example.com/": "a backslash",
        "rtmp://cdn.example.com/a live=1": "a space",
        "http://cdn.example.com/\n": "a space",
        "file:///etc/passwd": "scheme 'file', expected http://, https://, rtmp://",
        "tcp://cdn.example.com:1?listen": "scheme 'tcp'",
        "concat:https://cdn.example.com/a": None,
        "subfile,,start,0,end,9,,:https://cdn.example.com/": None,
        "http://[::1": "malformed",
        "http:///x": ":80 is no",
        "/etc/passwd": "'/etc/passwd' is no source of this server",
        "a.ts": "'a.ts' is no source",
        f"{tmp_path}/../a.ts": "is no source",
        f"{tmp_path}/\0": "is no source",
        f"{tmp_path}/{'a' * 300}": "is no source",
        "/dev/zero": "is no source",
    }.items():
        with pytest.raises(SourceRefused, match=message):
            allowed.require(address)
    (tmp_path / "link.ts").symlink_to("/etc/passwd")
    with pytest.raises(SourceRefused, match=r"link\.ts' is no source"):
        allowed.require(f"{tmp_path}/link.ts")
    with pytest.raises(SourceRefused):
        Allowed().require("http://localhost/")


@pytest.mark.parametrize("text", ["", "*", "https://a", "a:0", "a:65536", "a/b", "a b", "relative/path"])
def test_what_cannot_be_allowed(text):
    with pytest.raises(DataError, match="expected HOST, HOST:PORT, or an absolute path"):
        parse_allowed([text])


@pytest.fixture
def web(tmp_path):
    """Follows a path of a server; its redirects; another server; and what is asked of the other one and of it."""
    own, asked, redirects = [], [], {}
    first, other = serve(tmp_path, asked=own.append, redirects=redirects), serve(tmp_path, asked=asked.append)
    write(tmp_path / "0.ts", [3], 1)
    write(tmp_path / "1.ts", [4], 1, start=1.0)

    def follow(path):
        allowed = parse_allowed([f"127.0.0.1:{first.server_port}"])
        source = LiveSource(f"http://127.0.0.1:{first.server_port}/{path}", allowed=allowed)
        return [number(picture) for _, picture in live_pictures(source, HALF, threading.Event(), Seen())]

    yield follow, redirects, f"http://127.0.0.1:{other.server_port}", asked, own
    for server in (first, other):
        server.shutdown()
        server.server_close()


def test_playlists_and_redirects_within_the_allowed_host(tmp_path, web):
    follow, redirects, _, asked, own = web
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "live.m3u8").write_text(PLAYLIST + SEGMENT.format("../0.ts"))
    redirects |= {"/a.m3u8": "/b.m3u8?x=1", "/b.m3u8?x=1": "/deep/live.m3u8", "/0.ts": "/1.ts"}
    with (tmp_path / "deep" / "live.m3u8").open("a") as file:
        timer = threading.Timer(0.5, lambda: print("#EXT-X-ENDLIST", file=file, flush=True))
        timer.start()
        assert set(follow("a.m3u8")) == {4}, "what is relative is relative to where it is"
        timer.join()
    assert set(follow("1.ts")) == {4} and not asked
    assert own.count("/1.ts") == 2, "what is opened to see where it is is not opened again"


def test_what_points_elsewhere_is_not_asked(tmp_path, web, monkeypatch):
    follow, redirects, other, asked, _ = web
    secret = write(tmp_path / "secret.ts", [1], 1)
    redirects |= {"/away.ts": f"{other}/0.ts", "/loop": "/loop", "/file": f"file://{secret}"}
    for path, content, message in (
        ("away.ts", None, "is no source of this server"),
        ("loop", None, "redirects more than 5 times"),
        ("none", None, "server returned 404"),
        ("file", None, "found the scheme 'file'"),
        ("a.m3u8", SEGMENT.format(f"{other}/0.ts"), "is no source of this server"),
        ("b.m3u8", SEGMENT.format("/away.ts"), "is no source of this server"),
        ("c.m3u8", SEGMENT.format(f"file://{secret}"), None),
        ("d.m3u8", SEGMENT.format(secret), None),
        ("e.m3u8", SEGMENT.format(f"concat:{secret}|{secret}"), None),
        ("f.m3u8", SEGMENT.format(f"tcp://{other[7:]}"), None),
        ("g.m3u8", SEGMENT.format("data:video/mp2t;base64,AAAA"), None),
        ("h.m3u8", f'#EXT-X-KEY:METHOD=AES-128,URI="{other}/key"\n' + SEGMENT.format("0.ts"), "is no source"),
        ("i.m3u8", '#EXT-X-KEY:METHOD=AES-128,URI="0.ts"\n' + SEGMENT.format("0.ts"), "are encrypted"),
        ("j.mpd", f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{other}</BaseURL></MPD>', None),
        ("k.ffconcat", f"ffconcat version 1.0\nfile '{secret}'\n", None),
        ("l.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 33\n", None),
    ):  # fmt: skip
        if content:
            (tmp_path / path).write_text(f"{PLAYLIST}{content}{END}" if path.endswith("m3u8") else content)
        with pytest.raises(SourceLost, match=message):
            follow(path)
    (tmp_path / "live.m3u8").write_text(PLAYLIST + SEGMENT.format(f"{other}/0.ts"))
    monkeypatch.setattr(source_module, "OPEN_SECONDS", 0.5)
    with pytest.raises(SourceLost, match="is no source of this server"):
        follow("live.m3u8")
    assert not asked


def test_a_file_refers_to_nothing(tmp_path, web, monkeypatch):
    _, _, other, asked, _ = web
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.01)
    path, stop = tmp_path / "live.m3u8", threading.Event()
    path.write_text(PLAYLIST + SEGMENT.format(f"{other}/0.ts"))
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(SourceLost):
        list(live_pictures(LiveSource(str(path), allowed=parse_allowed([str(tmp_path)])), HALF, stop, Seen()))
    assert not asked
    with pytest.raises(SourceLost, match=r"is no source of this server"):
        list(live_pictures(LiveSource("/etc/hostname", allowed=Allowed()), HALF, stop, Seen()))


def test_the_web_gets_credentials_and_ranges(tmp_path, web):
    _, _, other, *_ = web
    address = other.replace("http://", "http://me:secret@") + "/0.ts"
    seen = []
    opener = Web(parse_allowed([other[7:]]))
    opener._pool = type(
        "Pool", (), {"request": lambda self, *given, **own: seen.append((given, own["headers"])) or 1 / 0}
    )()
    with pytest.raises(ZeroDivisionError):
        opener.open(address, 1, {"offset": "10", "end_offset": "30"})
    assert seen == [(("GET", f"{other}/0.ts"), {"authorization": "Basic bWU6c2VjcmV0", "Range": "bytes=10-29"})]


@pytest.mark.parametrize(("scheme", "form"), [("rtmp", "flv"), ("rtsp", "rtsp")])
def test_what_is_allowed_is_enough(tmp_path, scheme, form):
    port = free_port()
    allowed = parse_allowed([f"127.0.0.1:{port}"])
    source = LiveSource(f"{scheme}://127.0.0.1:{port}/live/x", listen=True, max_delay=1000.0, allowed=allowed)
    film = write(Path(tmp_path) / "film.mp4", [1], 3, form="mp4")
    with sender(film, source.address, form):
        found = []
        with contextlib.suppress(SourceLost):
            for _, picture in live_pictures(source, HALF, threading.Event(), Seen()):
                found.append(number(picture))
    assert set(found) == {1}
