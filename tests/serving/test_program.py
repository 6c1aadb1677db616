"""The server as a program: how it starts and stops."""

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rice_jax import recognize, serve
from tests.fixtures import ROOT
from tests.serving.serving import clip, start_program, until


def test_sigterm_finishes_requests_in_flight(shop, tmp_path):
    process, address = start_program(shop, TMPDIR=str(tmp_path))
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address), process.stderr.read()
        pictures = clip(shop, *[0, 1] * 40)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=20) as client:
            answer = pool.submit(httpx.post, f"{address}/recognize", files=pictures, timeout=20)
            until(lambda: "rice_requests_in_progress 1.0" in client.get("/metrics").text or answer.done())
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert process.wait(20) == -signal.SIGTERM
        assert process.stderr.read() == ""
        assert not list(tmp_path.glob("rice_jax-*"))
    finally:
        process.kill()
        process.communicate()


def run_program(*arguments, code="import runpy; runpy.run_module('rice_jax.serve', run_name='__main__')"):
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_server_that_cannot_start_says_why(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_program(f"--index={tmp_path}", f"--port={taken.getsockname()[1]}")
    assert done.returncode == 1 and done.stderr.startswith("OSError: ") and "in use" in done.stderr, done.stderr
    code = "import sys; sys.modules['fastapi'] = None; sys.argv[0] = 'serve'; "
    code += "from rice_jax.serve import main; main()"
    done = run_program(f"--index={tmp_path}", code=code)
    assert done.returncode == 1 and "pip install 'rice-jax[serve]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [recognize, serve])
def test_help_fits_on_a_screen(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"], prog="rice command")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: rice command " + ("VIDEO " if command is recognize else "") + "--index=DIR [options]"
    assert len(lines) <= 50 and max(map(len, lines)) <= 80


@pytest.mark.parametrize(("value", "expected"), [("x", "a whole number, 0"), ("-1", "a whole number, 0"), ("1.5", "a")])
def test_impossible_flags(value, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        serve.main(["--index=x", f"--port={value}"])
    assert f"--port: found '{value}', expected {expected}" in capsys.readouterr().err
