"""Builds that are killed, stopped, or started twice."""

import os
import signal
import subprocess
import sys
import time

import pytest

from data import build as program
from data import builder
from data.errors import RawDataError
from data.processes import in_workers, locked
from tests.data.raw_lpr4m import write_raw as write_lpr4m
from tests.data.raw_rope import write_raw
from tests.data.test_lpr4m import build, open_set
from tests.programs import ROOT

HOLD = """
import sys, time
from pathlib import Path
from data.processes import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
EXAMINE = """
import sys, time
from data import doctor
doctor._report = lambda *_: (print("scratch", flush=True), time.sleep(100))
doctor._index = lambda *_: (print("scratch", flush=True), time.sleep(100))
doctor.main(["lpr4m", sys.argv[1]])
"""


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise ValueError(f"number {number}")


def test_results_come_in_order():
    assert list(in_workers(double, range(20), 2)) == list(range(0, 40, 2))


def test_a_killed_worker_ends_a_build():
    with pytest.raises(RawDataError, match="a worker process was killed, probably for lack of memory: lower --workers"):
        list(in_workers(die, range(4), 2))


def test_an_error_of_a_worker_is_that_of_the_build():
    with pytest.raises(ValueError, match="number 0"):
        list(in_workers(fail, range(4), 2))


def test_a_second_program_waits(tmp_path, capfd):
    place = tmp_path / "new" / "place"
    other = subprocess.Popen([sys.executable, "-c", HOLD, place, "1"], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    start = time.monotonic()
    with locked(place):
        assert time.monotonic() - start > 0.5 and other.wait() == 0
    assert f"{place}: another build is running; waiting" in capfd.readouterr().err
    assert not list(place.iterdir())


def test_shards_survive_an_error_at_the_end(tmp_path, monkeypatch, capsys):
    """Nothing but the end is done again after an error between the splits."""
    raw = write_raw(tmp_path / "raw", num_train=2, num_test=2)
    arguments = ["rope", "--raw_dir", str(raw), "--data_dir", str(tmp_path / "data"), "--configs=pages"]
    save, saved = builder._save, []

    def full(path, array):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_save", full)
        with pytest.raises(SystemExit, match="No space left on device; finished shards are kept"):
            program.main(arguments)
    assert len(saved) == 2
    [kept] = (tmp_path / "data").glob("rope/pages/unfinished_*")
    assert len(list(kept.glob("*.array_record"))) == len(list(kept.glob("*.json"))) == 2
    program.main(arguments)
    assert "2 of 2 shards already exist" in capsys.readouterr().err
    assert not kept.exists() and list((tmp_path / "data").glob("rope/pages/1.*/*.array_record*"))


def test_a_set_stays_until_it_is_replaced(tmp_path):
    raw, data = write_lpr4m(tmp_path / "raw"), tmp_path / "data"
    build(raw, data, "--configs", "train")
    before = list(open_set(data, "train")[0])
    (raw / "frames").rename(tmp_path / "away")
    with pytest.raises(SystemExit, match="skipped"):
        build(raw, data, "--configs", "train", "--overwrite")
    after = list(open_set(data, "train")[0])
    assert [row["clip_id"] for row in after] == [row["clip_id"] for row in before]
    [target] = (data / "lpr4m" / "train").glob("1.*")
    target.rename(target.with_name(f"replaced_{target.name}"))  # as a build that was killed leaves it
    build(raw, data, "--configs", "train")
    assert len(open_set(data, "train")[0]) == len(before)
    assert not list(target.parent.glob("replaced_*"))


def test_a_doctor_that_is_terminated_leaves_nothing(tmp_path):
    raw = write_lpr4m(tmp_path / "raw")
    before = sorted(raw.iterdir())
    process = subprocess.Popen([sys.executable, "-c", EXAMINE, raw], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"scratch\n" and sorted(raw.iterdir()) != before
    process.terminate()
    assert process.wait(timeout=60) == 1 and sorted(raw.iterdir()) == before
