"""Builds that are killed, stopped, or started twice."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import build as program
from data import builder
from data.errors import WorkerError
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


NUM_TASKS = 400  # of a tenth of a second each


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def slow(directory: Path, number: int) -> list[Path]:
    return [directory / str(place) for place in range(number)]


def touch(path: Path) -> None:
    time.sleep(0.1)
    path.touch()


def fail(number: int) -> int:
    raise ValueError(f"number {number}")


def test_results_come_in_order():
    assert list(in_workers(double, range(20), 2)) == list(range(0, 40, 2))


def test_a_killed_worker_ends_a_build():
    with pytest.raises(WorkerError, match="a worker process has ended unexpectedly, for example for lack of memory"):
        list(in_workers(die, range(4), 2))


def test_an_error_of_a_worker_is_that_of_the_build():
    with pytest.raises(ValueError, match="number 0"):
        list(in_workers(fail, range(4), 2))


def test_workers_end_with_the_consumer_and_with_a_parent_that_is_killed(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        contextlib.closing(in_workers(touch, slow(tmp_path, NUM_TASKS), 2)) as results,
    ):
        next(results)
        raise ZeroDivisionError
    done = len(list(tmp_path.iterdir()))
    time.sleep(0.6)
    assert len(list(tmp_path.iterdir())) == done < NUM_TASKS
    (killed := tmp_path / "killed").mkdir()
    parent = subprocess.Popen([sys.executable, "-m", "tests.data.test_processes", killed], cwd=ROOT)
    while not any(killed.iterdir()):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    before, done = -1, 0
    while done != before:  # workers that went on would do all
        time.sleep(1)
        before, done = done, len(list(killed.iterdir()))
    assert done < NUM_TASKS


def test_a_second_program_waits(tmp_path, capfd):
    place = tmp_path / "new" / "place"
    other = subprocess.Popen([sys.executable, "-c", HOLD, place, "3"], cwd=ROOT, stdout=subprocess.PIPE)
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
    assert "2 of 2 shards already exist; --overwrite builds them again" in capsys.readouterr().err
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


def test_a_set_that_is_replaced_is_made_of_finished_shards_unless_pictures_were_mended(tmp_path, monkeypatch, capsys):
    raw, data = write_lpr4m(tmp_path / "raw"), tmp_path / "data"
    arguments = ["lpr4m", "--raw_dir", str(raw), "--data_dir", str(data), "--configs=train"]
    program.main(arguments)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_save", full)
        patch.setattr(builder.ShardedBuilder, "_take", full)
        with pytest.raises(SystemExit, match="No space left on device; finished shards are kept"):
            program.main([*arguments, "--overwrite"])
    program.main(arguments)
    told = capsys.readouterr()
    assert "already exists" in told.out and "shards already exist" not in told.err
    program.main([*arguments, "--overwrite"])
    told = capsys.readouterr().err
    assert "unfinished_1.0.0: 2 of 2 shards already exist; they are of an interrupted --overwrite; remove this" in told
    assert "--overwrite builds" not in told
    (raw / "frames").rename(tmp_path / "away")
    with pytest.raises(SystemExit, match="skipped"):
        program.main([*arguments, "--overwrite"])
    (tmp_path / "away").rename(raw / "frames")
    program.main([*arguments, "--overwrite"])
    assert "shards already exist" not in capsys.readouterr().err and len(open_set(data, "train")[0]) == 6
    assert sorted(path.name for path in (data / "lpr4m" / "train").iterdir()) == ["1.0.0", "skipped.jsonl"]


def test_a_doctor_that_is_terminated_leaves_nothing(tmp_path):
    raw = write_lpr4m(tmp_path / "raw")
    before = sorted(raw.iterdir())
    process = subprocess.Popen([sys.executable, "-c", EXAMINE, raw], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"scratch\n" and sorted(raw.iterdir()) != before
    process.terminate()
    assert process.wait(timeout=60) == 1 and sorted(raw.iterdir()) == before


if __name__ == "__main__":
    list(in_workers(touch, slow(Path(sys.argv[1]), NUM_TASKS), 2))
