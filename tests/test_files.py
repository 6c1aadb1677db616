"""Files that are replaced whole, and locks."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from rice_jax.files import ABANDONED_SECONDS, LockedError, absolute, leaving_no_trace, locked, replacing, write_lines
from tests.programs import ROOT

HOLD = "import sys, time, rice_jax.files as f\nwith f.locked(f.Path(sys.argv[1])): print(flush=True); time.sleep(60)"


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["file"]


def test_a_device_or_a_pipe_is_written_to(tmp_path, capfd):
    write_lines("/dev/stdout", ["to the terminal"])
    assert capfd.readouterr().out == "to the terminal\n" and os.path.islink("/dev/stdout")
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_lines(pipe, ["one", "two"])
    reader.join()
    assert found == ["one\ntwo\n"] and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'file'}'"), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / "file.0123.tmp", tmp_path / "file.4567.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, time.time() - ABANDONED_SECONDS - 60))
    write_lines(tmp_path / "file", ["text"])
    assert sorted(os.listdir(tmp_path)) == ["file", new.name], "another process may be writing the new one"


def test_a_lock_is_held_once(tmp_path):
    message = f"{tmp_path}: is in use by process {os.getpid()} on .*; wait until"
    with locked(tmp_path / ".lock"), pytest.raises(LockedError, match=message):
        locked(tmp_path / ".lock").__enter__()
    with locked(tmp_path / ".lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_becomes_free_meanwhile_is_waited_for(tmp_path):
    path, counter = tmp_path / ".lock", []

    def work():
        for _ in range(300):
            with locked(path, wait=True):
                counter.append(len(counter))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == list(range(1200))


def test_a_lock_whose_directory_is_removed_meanwhile(tmp_path, caplog):
    path, held = tmp_path / "new" / ".lock", []

    def wait():
        with locked(path, wait=True):
            held.append(path.exists())

    path.parent.mkdir()
    with locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        while "waiting until that one is done" not in caplog.text:
            time.sleep(0.001)
        path.unlink()
        path.parent.rmdir()
    waiting.join()
    assert held == [True]


def test_a_killed_process_frees_its_lock(tmp_path):
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    with pytest.raises(LockedError, match=f"in use by process {process.pid}"):
        locked(path).__enter__()
    process.kill()
    process.communicate()
    with locked(path):
        assert path.read_text().startswith(f"process {os.getpid()} ")


def test_a_full_disk_keeps_nobody_from_a_lock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with locked(tmp_path / ".lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_absolute_paths_have_no_dots_unless_a_link_leads_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    monkeypatch.chdir(tmp_path / "real")
    assert absolute("../real/x") == absolute("inner/../x") == str(tmp_path / "real" / "x")
    assert absolute(tmp_path / "link" / ".." / "x") == str(tmp_path / "link" / ".." / "x")
    assert absolute(tmp_path / "link" / "x") == str(tmp_path / "link" / "x")


def test_a_file_system_without_locks_breaks_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        assert "cannot be locked ([Errno 37] No locks available); make sure that no other" in caplog.text


def test_only_new_and_empty_directories_are_removed(tmp_path):
    for names, kept in [((), []), (("checkpoints",), []), (("checkpoints", "metrics"), ["a", "a/b", "a/b/metrics"])]:
        with pytest.raises(KeyError), leaving_no_trace(tmp_path / "a" / "b", "checkpoints"):
            (tmp_path / "a" / "b").mkdir(parents=True)
            for name in names:
                (tmp_path / "a" / "b" / name).mkdir()
            raise KeyError
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == kept
    with pytest.raises(KeyError), leaving_no_trace(tmp_path / "a"):
        raise KeyError
    assert (tmp_path / "a").exists()


def test_file_names_that_are_not_utf8_are_escaped(tmp_path):
    write_lines(tmp_path / "a.jsonl", [json.dumps({"video": "caf\udce9 é.mp4"}, ensure_ascii=False)])
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == {"video": "caf\udce9 é.mp4"}
