"""Forms are read whole or not at all."""

import asyncio
import tempfile

import pytest
from fastapi import HTTPException
from python_multipart.multipart import parse_options_header

from rice_jax.serving.forms import read_form
from tests.serving.serving import frames
from tests.shop import png

TYPE = 'multipart/form-data; boundary="-x-"'


def part(name, content, filename=None, kind=None):
    header = b'Content-Disposition: form-data; name="' + name + b'"'
    header += b'; filename="' + filename + b'"' if filename is not None else b""
    header += b"\r\nContent-Type: " + kind if kind is not None else b""
    return b"---x-\r\n" + header + b"\r\n\r\n" + content + b"\r\n"


END = b"---x---\r\n"
PICTURES = [b"", b"\r\n---x", b"abc" * 1000, bytes(range(256))]
FORM = b"".join(part(b"frames", picture, b"x.png", b"image/png") for picture in PICTURES)
FORM = part(b"top", b"3") + FORM + part(b"gallery", "ä b".encode()) + part(b"frames", b"typeless", b"") + END


def read(body, kind=TYPE, size=7, max_files=10):
    async def pieces():
        for start in range(0, len(body), size):
            yield body[start : start + size]

    with tempfile.TemporaryFile() as stored:
        form = asyncio.run(read_form(kind, pieces(), stored, max_files))
        return form.fields, [(name, file.content_type, file.size, file.read()) for name, file in form.files]


def refusal(*args, status=400, **kwargs):
    with pytest.raises(HTTPException) as refused:
        read(*args, **kwargs)
    assert refused.value.status_code == status
    return refused.value.detail


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1 << 20])
def test_a_form_arrives_in_any_pieces(size):
    for body in (FORM, FORM[:-2], b"\r\n" + FORM, FORM + b"an epilogue"):
        fields, files = read(body, size=size)
        assert fields == [("top", "3"), ("gallery", "ä b")]
        assert files == [
            *(("frames", "image/png", len(picture), picture) for picture in PICTURES),
            ("frames", "", 8, b"typeless"),
        ]


def test_a_form_that_ends_early_is_refused():
    for end in [*range(0, len(FORM), 197), *range(len(FORM) - 80, len(FORM) - 2)]:
        assert "ends before its closing boundary" in refusal(FORM[:end], size=1 << 20)


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "us-ascii", "iso-8859-1", "latin1"])
def test_charsets_of_text_are_taken(charset):
    assert read(part(b"gallery", b"a") + END, f"{TYPE}; charset={charset}")[0] == [("gallery", "a")]


@pytest.mark.parametrize(
    "charset",
    [
        "unicode_escape",
        "raw_unicode_escape",
        "idna",
        "punycode",
        "undefined",
        "base64",
        "hex",
        "rot13",
        "utf-7",
        "utf-16",
    ]
    + ["mbcs", "nothing", "", "\0", "ä", "x" * 10_000, "zlib", "uu", "quopri", "bz2", "string_escape", "utf-8-sig"],
)
def test_others_are_refused(client, charset):
    assert "charset" in refusal(FORM, f"{TYPE}; charset={charset}")
    if charset.isprintable() and charset.isascii():
        headers = {"content-type": f"{TYPE}; charset={charset}"}
        assert client.post("/recognize", content=FORM, headers=headers).status_code in (400, 431)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "ends before"),
        (b"hello", 400, "malformed"),
        (part(b"gallery", b"\xff") + END, 400, "gallery: found text in the form that is not utf-8"),
        (part(b"frames", b"\xff") + END, 400, "a file's part needs a filename"),
        (part(b"\xff", b"x") + END, 400, "not utf-8"),
        (part(b"gallery", b"x" * 4001) + END, 413, "4,000 bytes"),
        (part(b"a", b"x") * 10 + END, 400, "more fields than the limit of 9"),
        (part(b"frames", b"x", b"x") * 11 + END, 413, "more files than the limit of 10"),
        (b"---x-\r\nContent-Type: image/png\r\n\r\nx\r\n" + END, 400, "without a name"),
        (b"---x-\r\nContent Type\r\n\r\nx\r\n" + END, 400, "malformed"),
    ],
)
def test_bad_forms_are_refused(body, status, reason):
    assert reason in refusal(body, status=status)
    assert reason in refusal(body, status=status, size=1 << 20)


def test_a_form_needs_a_boundary():
    for kind in ("multipart/form-data", "multipart/form-data; boundary", "multipart/form-data; boundary="):
        assert "boundary" in refusal(FORM, kind) or "malformed" in refusal(FORM, kind)
    assert parse_options_header(TYPE)[1] == {b"boundary": b"-x-"}


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", "image/x-png", "IMAGE/PNG", "binary/octet-stream", None])
def test_types_of_pictures_have_many_names(client, shop, kind):
    content = png(shop.pictures[0])
    file = ("x", content) if kind is None else ("x", content, kind)
    assert client.post("/recognize", files=[("frames", file)]).status_code == 200
    headers = {} if kind is None else {"content-type": kind}
    assert client.post("/streams/kinds/frames?time=1", content=content, headers=headers).status_code == 200
    for other in ("text/html", "application/json", "video/mp4", "application/x-www-form-urlencoded"):
        answer = client.post("/streams/kinds/frames?time=1", content=content, headers={"content-type": other})
        assert answer.status_code == 415 and "image/png" in answer.json()["detail"]
    assert client.post("/recognize", files=frames(content)).status_code == 200
