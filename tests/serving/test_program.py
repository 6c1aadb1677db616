"""The server as a program: how it starts and stops."""

import contextlib
import dataclasses
import json
import logging
import re
import socket
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from rice_jax import recognize, serve
from rice_jax.config import ConfigError
from rice_jax.serving.limits import Limits
from tests import programs
from tests.fixtures import ROOT
from tests.serving.serving import clip, until

SERVE = [sys.executable, "-m", "rice_jax.serve"]


def test_sigterm_finishes_requests_in_flight(shop, tmp_path):
    process = programs.start([*SERVE, f"--index={shop.directory}", "--port=0"], TMPDIR=str(tmp_path))
    try:
        address = next(process.stdout, "").strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address), process.communicate()
        pictures = clip(shop, *[0, 1] * 40)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=20) as client:
            answer = pool.submit(httpx.post, f"{address}/recognize", files=pictures, timeout=20)
            until(lambda: "rice_requests_in_progress 1.0" in client.get("/metrics").text or answer.done())
            process.terminate()
            assert answer.result().status_code == 200
        _, errors = process.communicate(20)
        assert (process.returncode, errors) == (0, "")
        assert not list(tmp_path.glob("rice_jax-*"))
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_cannot_start_says_why(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = programs.run([*SERVE, f"--index={tmp_path}", f"--port={taken.getsockname()[1]}"])
    assert done.returncode == 1 and done.stderr.startswith("OSError: ") and "in use" in done.stderr, done.stderr
    code = "import sys; sys.modules['fastapi'] = None; sys.argv[0] = 'serve'; "
    code += "from rice_jax.serve import main; main()"
    done = programs.run([sys.executable, "-c", code, f"--index={tmp_path}"])
    assert done.returncode == 1 and "pip install 'rice-jax[serve]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_log_is_json_on_request(tmp_path, capsys, monkeypatch):
    """A warning, an error with its traceback, and the reason why the server does not start; never a token."""
    token = "0123456789abcdef"
    (tmp_path / "token").write_text(f"{token}\nshort\n")
    (tmp_path / "token").chmod(0o600)
    flags = [f"--index={tmp_path}", f"--token_file={tmp_path / 'token'}", "--log_format=json"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the server sets its own
    monkeypatch.setattr(logging, "_warnings_showwarning", None)  # as in a program of its own
    for name in ("uvicorn", "uvicorn.error"):  # which servers of other tests have configured
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    try:
        with pytest.raises(SystemExit, match="1"):
            serve.main(flags)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("x\ny", stacklevel=1)
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception("failed %s", "ü")
        serve._start_log("text")
        logging.getLogger("a").warning("plain")
    finally:
        logging.basicConfig(handlers=[], force=True)
        logging.captureWarnings(False)
    *lines, plain = capsys.readouterr().err.splitlines()
    refused, warned, failed = map(json.loads, lines)
    assert refused["level"] == "critical" and "token:2: found a token of 5 characters" in refused["message"]
    assert token not in str(lines) and "short" not in refused["message"]
    assert warned["logger"] == "py.warnings" and "x\ny" in warned["message"]
    assert (failed["level"], failed["logger"], failed["message"]) == ("error", "uvicorn.error", "failed ü")
    assert failed["error"].startswith("Traceback") and failed["error"].endswith("RuntimeError: broken")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", failed["time"])
    assert re.fullmatch(r"\d\d:\d\d:\d\d plain", plain)


def test_a_package_that_is_missing_is_told_in_a_line(shop, monkeypatch):
    def load(*_, **__):
        raise ConfigError("texts need the package tokenizers")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the server sets its own
    monkeypatch.setattr(serve, "_start_log", lambda form: None)
    monkeypatch.setattr(serve, "_listen", lambda host, port: contextlib.nullcontext())
    monkeypatch.setattr(serve, "Shops", load)
    with pytest.raises(SystemExit, match="^ConfigError: texts need the package tokenizers$"):
        serve.main([f"--index={shop.directory}"])


@pytest.mark.parametrize("command", [recognize, serve])
def test_help_fits_on_a_screen(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"], prog="rice command")
    lines = capsys.readouterr().out.splitlines()
    of_recognize = "(VIDEO | --follow=URL) (--index=DIR | --store … --uri …) …"
    shown = of_recognize if command is recognize else "--index=DIR [options]"
    assert lines[0] == f"usage: rice command {shown}"
    assert len(lines) <= 50 and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        *(("port", value, "a whole number, 0 to 65535") for value in ("x", "-1", "1.5", "65536", "99999")),
        *(("batch_size", value, "a whole number, 1 to 512") for value in ("0", "513", "100000")),
        *(("megapixels", value, "a number, 0.001 or more") for value in ("nan", "inf", "0", "-1")),
        ("frames", "1.5", "a whole number, 1 or more"),
        ("host", "", "a name or an IP address"),
        ("store", "milvus", "--index=DIR, the directory that rice index --store has written too"),
        *(
            ("cors_origin", value, "a scheme and a host")
            for value in ("*", "null", "a.com", "https://a.com/", "HTTPS://a")
        ),
        *(("allow_hosts", value, "names without scheme") for value in ("http://a", "a:80", "*.a")),
    ],
)
def test_impossible_flags(flag, value, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        serve.main(["--index=x", f"--{flag}={value}"])
    assert f"--{flag}: found '{value}', expected {expected}" in capsys.readouterr().err


def test_the_usual_port_of_an_origin_is_left_out_as_by_browsers():
    origins = ("https://a.com:443", "http://a.com:80", "https://a.com:80", "https://[::1]:443", "https://a.com:4443")
    expected = ["https://a.com", "http://a.com", "https://a.com:80", "https://[::1]", "https://a.com:4443"]
    parser = serve._parser("rice serve")
    assert parser.parse_args(["--index=x", *(f"--cors_origin={one}" for one in origins)]).cors_origin == expected


def test_flags_are_documented(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit, match="0"):
        serve.main(["--help"])
    defaults = re.findall(r"--(\w+) N\s[^(]*\(default: ([\d.]+)\)", capsys.readouterr().out)
    documented = (ROOT / "docs" / "serving.md").read_text()
    assert len(defaults) > 15
    missing = [f"--{name}={default}" for name, default in defaults if f"`--{name}={default}`" not in documented]
    assert missing == ["--rerank=0"], "an example of it stands there"
    assert {field.metadata["flag"] or field.name for field in dataclasses.fields(Limits)} <= dict(defaults).keys()
