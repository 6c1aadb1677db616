"""The scripts that download LPR4M and ROPE."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import raw_rope
from tests.data.test_doctor import SCRIPTS, url_of

FAKE = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$ARGUMENTS"\n'


def run_script(
    tmp_path: Path, *arguments: str | Path, script: str = "download_lpr4m.sh", **environment: str
) -> subprocess.CompletedProcess:
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "ARGUMENTS": str(tmp_path / "arguments"), **environment}
    return subprocess.run([SCRIPTS / script, *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture
def img2dataset(tmp_path):
    """A directory with a list of URLs and, first on PATH, a program that writes its arguments to a file."""
    tool = tmp_path / "bin" / "img2dataset"
    tool.parent.mkdir()
    tool.write_text(FAKE)
    tool.chmod(0o755)
    (tmp_path / "my urls.txt").write_text(f"{url_of('a')}\n")
    return tmp_path


def options_of(path: Path) -> dict[str, str]:
    values = path.read_text().splitlines()
    return dict(zip(values[::2], values[1::2], strict=True))


def test_img2dataset_is_called_with_the_settings_of_the_data_set(img2dataset):
    urls, out = img2dataset / "my urls.txt", img2dataset / "raw" / "frames_img2dataset"
    done = run_script(img2dataset, "--processes", "3", urls, out, "--format", "files")
    assert done.returncode == 0, done.stderr
    options = options_of(img2dataset / "arguments")
    assert (options["--url_list"], options["--output_folder"]) == (str(urls), str(out))
    assert options["--image_size"] == "256" and options["--resize_mode"] == "keep_ratio"
    assert options["--resize_only_if_bigger"] == options["--skip_reencode"] == "True"
    assert options["--output_format"] == "files" and options["--incremental_mode"] == "incremental"
    assert options["--processes_count"] == "3" and options["--distributor"] == "multiprocessing"
    assert run_script(img2dataset, urls, out).returncode == 0
    assert options_of(img2dataset / "arguments")["--output_format"] == "webdataset"


def test_on_a_cluster_img2dataset_finds_a_session(img2dataset):
    modules = {
        "pyspark/__init__.py": "",
        "pyspark/sql.py": """
class SparkSession:
    class builder:
        appName = master = lambda *words: print("spark", *words) or SparkSession.builder
        getOrCreate = lambda: SparkSession
    stop = lambda: print("stopped")
""",
        "img2dataset/__init__.py": "",
        "img2dataset/main.py": "import sys\ndef main():\n    print(*sys.argv[1:])\n",
    }
    for name, text in modules.items():
        path = img2dataset / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    arguments = ["--spark", "spark://host:7077", img2dataset / "my urls.txt", img2dataset / "out"]
    done = run_script(img2dataset, *arguments, PYTHONPATH=str(img2dataset / "modules"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["spark img2dataset", "spark spark://host:7077"] and lines[-1] == "stopped"
    assert lines[2].endswith("--distributor pyspark") and "--resize_mode keep_ratio" in lines[2]


def test_what_stops_a_download(img2dataset):
    urls, out = img2dataset / "my urls.txt", img2dataset / "out"
    for arguments, message in (
        ([urls], "found 1 arguments, expected URL_LIST and OUT"),
        ([img2dataset / "none.txt", out], "none.txt: found no such file"),
        ([urls, out, "--format", "tfrecord"], "found tfrecord, expected webdataset or files"),
        ([urls, out, "--format"], "found --format without a value"),
        ([urls, out, "--size", "3"], "found --size, expected"),
    ):
        done = run_script(img2dataset, *arguments)
        assert done.returncode == 1 and message in done.stderr
    (img2dataset / "bin" / "img2dataset").unlink()
    done = run_script(img2dataset, urls, out, PATH="/usr/bin:/bin")
    assert done.returncode == 1 and "found no img2dataset on PATH; install it: pip install img2dataset" in done.stderr
    assert not (img2dataset / "arguments").exists() and not out.exists()


def test_names_of_rope_become_urls(img2dataset):
    raw = raw_rope.write_raw(img2dataset / "raw", num_train=2, num_test=1)
    raw_rope.edit(raw, "training_live_clips", lambda lines: lines.__setitem__(0, f"  {lines[0]}  "))
    out = raw / "lives_img2dataset"
    for name in ("training_live_clips", "training_page_images"):
        done = run_script(img2dataset, raw / f"{name}.txt", f"{out}/", "--threads", "7", script="download_rope.sh")
        assert done.returncode == 0, done.stderr
        options = options_of(img2dataset / "arguments")
        assert (options["--url_list"], options["--output_folder"]) == (f"{out}_urls.txt", str(out))
        assert options["--image_size"] == "256" and options["--thread_count"] == "7"
        columns = [line.split(",") for line in (raw / f"{name}.txt").read_text().splitlines()]
        prefix = "https://js-ad.a.yximgs.com/bs2/ad-material-video/"
        assert Path(f"{out}_urls.txt").read_text() == "".join(f"{prefix}{fields[-1].strip()}\n" for fields in columns)
    # Blank lines name no picture.
    blank = img2dataset / "blank.txt"
    blank.write_text("1,a.jpg\n\n  \n2,b.jpg\n\r\n")
    assert run_script(img2dataset, blank, out, script="download_rope.sh").returncode == 0
    assert Path(f"{out}_urls.txt").read_text() == f"{prefix}a.jpg\n{prefix}b.jpg\n"
    # A list of URLs is taken as it is; elsewhere the pictures may have another prefix.
    done = run_script(img2dataset, img2dataset / "my urls.txt", out, script="download_rope.sh")
    assert done.returncode == 0 and options_of(img2dataset / "arguments")["--url_list"].endswith("/my urls.txt")
    environment = {"ROPE_URL_PREFIX": "https://example.org/a b/"}
    arguments = [raw / "test_video_frames.txt", out]
    assert run_script(img2dataset, *arguments, script="download_rope.sh", **environment).returncode == 0
    assert Path(f"{out}_urls.txt").read_text().startswith("https://example.org/a b/00000000-0000-")
    lists = raw / "test_video_frames.txt"
    lists.write_bytes(lists.read_bytes().replace(b"\n", b"\r\n"))
    environment = {"ROPE_URL_PREFIX": r"https://example.org/?a=1&b=\2|c="}
    assert run_script(img2dataset, *arguments, script="download_rope.sh", **environment).returncode == 0
    for line in Path(f"{out}_urls.txt").read_bytes().splitlines(keepends=True):
        assert line.startswith(rb"https://example.org/?a=1&b=\2|c=00000000-0000-") and line.endswith(b".jpg\n")
        assert b"\r" not in line


def test_what_stops_a_download_of_rope(img2dataset):
    (img2dataset / "empty.txt").touch()
    for arguments, message in (
        (["a"], "download_rope.sh: found 1 arguments, expected LIST and OUT"),
        ([img2dataset / "none.txt", "out"], "none.txt: found no such file, expected one of ROPE's files"),
        ([img2dataset / "empty.txt", "out"], "empty.txt: found an empty file"),
    ):
        done = run_script(img2dataset, *arguments, script="download_rope.sh")
        assert done.returncode == 1 and message in done.stderr
