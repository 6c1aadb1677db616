import pytest

from data.build import main as build
from tests.data.raw_lpr4m import write_raw
from tests.eval.pages import EVIL


@pytest.fixture(scope="session")
def evil_shop(tmp_path_factory):
    """Data sets whose images have names that no page should take for its own."""
    directory = tmp_path_factory.mktemp("evil")
    [titles] = write_raw(directory / "raw", num_train=2).glob("test_image_title_*.txt")
    lines = titles.read_text(encoding="utf-8").splitlines()
    titles.write_text("".join(f"{line} {EVIL}\n" for line in lines), encoding="utf-8")
    build(["lpr4m", "--raw_dir", str(directory / "raw"), "--data_dir", str(directory / "built")])
    return directory / "built"
