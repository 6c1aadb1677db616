"""Pictures in tars or folders as img2dataset and WebDataset write them: files with one stem belong together."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rice_jax.index.catalog import SUFFIXES, Picture
from rice_jax.input.pictures import MAX_BYTES, is_hidden
from rice_jax.types import normal_form

# What img2dataset says about the download rather than about the product.
TECHNICAL = {
    "key", "status", "error_message", "width", "height", "original_width", "original_height", "exif", "md5", "sha256",
    "sha512",
}  # fmt: skip
STATS = "_stats.json"  # of img2dataset, beside each tar or folder


class Packed(Picture):
    """A picture in memory, as it is a part of another file."""

    content: bytes

    def read(self) -> bytes:
        return self.content


class Found(NamedTuple):
    """The pictures of a tar or folder."""

    pictures: Sequence[Picture]
    problems: list[str]  # what cannot be used, and why
    num_missing: int  # pictures that img2dataset could not download


def find_packs(directory: Path) -> list[Path]:
    """The tars in a directory, or else the folders beside which img2dataset has put its counts, in order."""
    tars = sorted(path for path in directory.glob("*.tar") if not is_hidden(path.name))
    return tars or sorted(folder for stats in directory.glob(f"*{STATS}") if (folder := _beside(stats, "")).is_dir())


def read_pack(path: Path) -> Found:
    """Reads a tar or folder into memory.

    A picture STEM.jpg (also .jpeg, .png, .webp) may have a STEM.json whose `id`, `product`, `gallery`, and `title` mean
    what they mean in a shop's CSV; all else that it says is kept, but for what describes the download. The id is STEM
    by default, and the title is the `caption` or the content of STEM.txt.
    """
    problems: list[str] = []
    samples: dict[str, dict[str, tuple[str, bytes]]] = {}  # {stem: {suffix: (name, content)}}
    for name, content in (_members_of_tar if path.is_file() else _members_of_folder)(path, problems):
        stem, dot, suffix = _split(name)
        samples.setdefault(stem, {})[(dot + suffix).lower()] = name, content
    pictures: dict[tuple[str, str], Packed] = {}
    for stem, files in samples.items():
        shown = next((files[suffix] for suffix in SUFFIXES if suffix in files), None)
        if shown is None:
            continue
        try:
            picture = _picture(path / shown[0], stem, files, shown[1])
        except (ValueError, AttributeError) as error:
            problems.append(f"{path}/{_utf_8(stem)}.json: {error}; expected names and values as JSON")
            continue
        name = str(picture.path)
        if name != _utf_8(name):
            problems.append(f"{_utf_8(name)}: found a name that is not UTF-8; rename the file")
            continue
        if (picture.gallery, picture.id) in pictures:
            problems.append(f"{picture.place}: found the id {picture.id!r} a second time, expected every id once")
        pictures.setdefault((picture.gallery, picture.id), picture)
    return Found(sorted(pictures.values()), problems, _num_missing(path))


def _picture(place: Path, stem: str, files: dict[str, tuple[str, bytes]], content: bytes) -> Packed:
    told: dict[str, Any] = json.loads(files[".json"][1]) if ".json" in files else {}
    told = {_utf_8(name): _text(value) for name, value in told.items() if value is not None}
    cells = {name.casefold(): value for name, value in told.items()}
    caption = files[".txt"][1].decode(errors="replace").strip() if ".txt" in files else ""
    name = _name(cells.get("id") or stem)
    known = {"id", "product", "gallery", "title", "caption", *TECHNICAL}
    packed = Packed(
        _name(cells.get("gallery", "")),
        name,
        _name(cells.get("product") or name),
        place,
        cells.get("title") or cells.get("caption") or caption,
        str(place),
        {name: value for name, value in told.items() if name.casefold() not in known},
    )
    packed.content = content
    return packed


def _name(text: str) -> str:
    """As a CSV has it."""
    return normal_form(text.strip())


def _text(value: object) -> str:
    return _utf_8(value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _utf_8(text: str) -> str:
    """A text with ? in place of halves of surrogate pairs, as bytes that are not UTF-8 are read."""
    return text.encode("utf-8", "replace").decode()


def _members_of_tar(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    num = 0
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                if not member.isfile() or is_hidden(Path(member.name).name):
                    continue
                if member.size > MAX_BYTES:
                    problems.append(f"{path}/{member.name}: exceeds the limit of {MAX_BYTES:,} bytes")
                    continue
                file = tar.extractfile(member)
                assert file, "it is a regular file"
                yield member.name, file.read()
                num += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        problems.append(f"{path}: is damaged after {num} files ({error}); download it again")


def _members_of_folder(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.iterdir()):
        if file.is_file() and not is_hidden(file.name):
            try:
                yield file.name, file.read_bytes()
            except OSError as error:
                problems.append(f"{file}: {error.strerror}")


def _split(name: str) -> tuple[str, str, str]:
    """The stem of a name, which ends at the first dot of its last part, and its suffix."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, dot, suffix


def _num_missing(path: Path) -> int:
    """Pictures that img2dataset could not download; 0 if it has not counted them."""
    try:
        stats = json.loads(_beside(path, STATS).read_text(encoding="utf-8"))
        return int(stats["count"]) - int(stats["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _beside(path: Path, ending: str) -> Path:
    """The file of the same shard with another ending."""
    return path.with_name(path.name.removesuffix(".tar").removesuffix(STATS) + ending)
