"""A disk that is too full for a data set: an error of one line, and nothing that is cut."""

import io
import resource

import numpy as np
import pytest

from data import build, builder, doctor, img2dataset
from tests.data.raw_img2dataset import download
from tests.data.raw_rope import write_raw


@pytest.fixture
def full_above():
    """A function that limits the size of files, as a stand-in for the size of the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 300, 4096])
def test_a_build_ends_with_one_line(tmp_path, full_above, size):
    raw = write_raw(tmp_path / "raw", num_train=2, num_test=2)
    full_above(size)
    with pytest.raises(SystemExit, match=r"^[^\n]*File too large[^\n]*; finished shards are kept, and the same[^\n]*$"):
        build.main(["rope", "--raw_dir", str(raw), "--data_dir", str(tmp_path / "data"), "--configs=pages"])
    full_above(resource.RLIM_INFINITY)
    build.main(["rope", "--raw_dir", str(raw), "--data_dir", str(tmp_path / "data"), "--configs=pages"])


def test_an_index_of_downloads_is_whole_or_not_there(tmp_path, full_above):
    """numpy's `tofile` loses the last 4 KiB without an error."""
    output = download(write_raw(tmp_path / "raw", num_train=2, num_test=2), "lives", is_tar=True, rows_per_shard=99)
    full_above(300)  # enough for the small files beside the index
    with pytest.raises(OSError, match="File too large"):
        img2dataset.build_index([output], tmp_path / "index")
    assert not list((tmp_path / "index").glob("*.index"))


def test_the_index_of_a_split_is_what_numpy_writes(tmp_path, full_above):
    array = np.zeros(30, [("clip_id", "S7"), ("row", "<u4")])
    builder._save(tmp_path / "a.npy", array)
    np.save(expected := io.BytesIO(), array)
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()
    full_above(len(expected.getvalue()) - 1)
    with pytest.raises(OSError, match="File too large"):
        builder._save(tmp_path / "b.npy", array)


def test_the_doctor_ends_with_one_line(tmp_path, full_above):
    raw = write_raw(tmp_path / "raw", num_train=2, num_test=2)
    full_above(0)
    with pytest.raises(SystemExit, match=r"^[^\n]*error: [^\n]*File too large$"):
        doctor.main(["rope", str(raw)])
