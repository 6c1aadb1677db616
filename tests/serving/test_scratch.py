"""Full disks and removed directories get a reason, and do no lasting harm."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rice_jax.serving import scratch
from rice_jax.serving.limits import Limits
from tests.serving.serving import asking, clip
from tests.shop import png


def test_a_removed_directory_is_made_anew(engine, shop, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with asking(engine) as client:
        for removed in (next(temporary.iterdir()), temporary):
            shutil.rmtree(removed)
            assert client.post("/recognize", files=clip(shop, 0)).status_code == 200
            assert len(list(temporary.iterdir())) == 1
        shutil.rmtree(temporary)
        temporary.write_text("a file")
        for answer in (client.post("/recognize", files=clip(shop, 0)), client.get("/healthz")):
            assert answer.status_code == 503 and "temporary directory" in answer.json()["detail"]
            assert answer.headers["retry-after"]
        temporary.unlink()
        assert client.get("/healthz").status_code == 200
        assert client.post("/recognize", files=clip(shop, 0)).status_code == 200
    assert not list(temporary.iterdir())


HOLD = """
import time
from rice_jax.serving.scratch import Scratch
with Scratch().file() as file:
    print(file.name, flush=True)
    time.sleep(100)
"""


def test_a_start_removes_what_killed_servers_have_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, alive = (Path(process.stdout.readline().strip()) for process in processes)
        assert killed.exists() and alive.exists(), "a start keeps what others use"
        processes[0].kill()
        processes[0].wait()
        scratch.Scratch().close()
        assert killed.exists(), "a new one may not be locked yet"
        (tmp_path / "rice_jax-main").mkdir()
        (tmp_path / f"{scratch.PREFIX}file").touch()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / f"{scratch.PREFIX}link").symlink_to(tmp_path / "elsewhere")
        for directory in (killed.parent, alive.parent, tmp_path / "rice_jax-main", tmp_path / "elsewhere"):
            os.utime(directory, (0, time.time() - 2 * scratch.NEW_SECONDS))
        others = {path.name for path in tmp_path.iterdir()} - {killed.parent.name}
        mine = scratch.Scratch()
        assert alive.exists() and not killed.parent.exists()
        assert len({path.name for path in tmp_path.iterdir()} - others) == 1
        mine.close()
        assert {path.name for path in tmp_path.iterdir()} == others
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_start_keeps_directories_of_other_users(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / f"{scratch.PREFIX}other"
    other.mkdir()
    os.utime(other, (0, 0))
    monkeypatch.setattr("os.geteuid", lambda: 1 + other.stat().st_uid)
    scratch.Scratch().close()
    assert other.exists()


def full(*_, **__):
    return open("/dev/full", "wb")


def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(("new", "status", "reason"), [(full, 507, "No space left"), (read_only, 503, "Read-only")])
def test_a_full_disk_is_reported(engine, shop, monkeypatch, new, status, reason):
    with asking(engine) as client:
        monkeypatch.setattr(scratch.tempfile, "NamedTemporaryFile", new)
        picture = {"content": png(shop.pictures[0]), "headers": {"content-type": "image/png"}}
        answers = [client.post("/recognize", files=clip(shop, 0)), client.post("/streams/x/frames?time=1", **picture)]
        for answer in [*answers, client.get("/healthz")]:
            assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text
        monkeypatch.undo()
        assert client.post("/recognize", files=clip(shop, 0)).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_all_bodies_together_are_limited(engine, shop):
    with asking(engine, Limits(arriving_bytes=100_000)) as client:
        answer = client.post("/streams/x/frames?time=1", content=b"x" * 110_000, headers={"content-type": "image/png"})
        assert answer.status_code == 503 and "100,000 bytes" in answer.json()["detail"], answer.text
        assert answer.headers["retry-after"] == "1"
        for _ in range(3):
            assert client.post("/streams/x/frames?time=1", content=b"x" * 90_000).status_code == 400, "they have ended"
