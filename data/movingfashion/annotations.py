"""Reads MovingFashion's `train.json` and `test.json`: pairs of a video and an image, queries and the gallery."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ..errors import FormatError, RepeatedId, fail
from ..text import read_object

README = str(Path(__file__).with_name("README.md"))  # named by errors
GALLERY_ID = "movingfashion"  # the only gallery
REGULAR, HARD = "regular", "hard"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A video of a product and the product's image.

    Attributes:
        where: the place in the file, for errors.
        product_id: the product.
        video: path relative to the raw directory.
        image: path relative to the raw directory.
        source: REGULAR or HARD.
    """

    where: str
    product_id: str
    video: str
    image: str
    source: str

    @property
    def name(self) -> str:
        return id_of(self.video)


@dataclasses.dataclass(frozen=True)
class Query:
    """A test video with the images of all its products; `source` is '' if the products' sources differ."""

    where: str
    video: str
    images: tuple[str, ...]
    source: str

    @property
    def name(self) -> str:
        return id_of(self.video)


@dataclasses.dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery."""

    where: str
    image: str

    @property
    def name(self) -> str:
        return f"{GALLERY_ID}/{id_of(self.image)}"


def read_pairs(path: Path, on_error: Callable[[FormatError], None] = fail) -> list[Pair]:
    """Reads `train.json` or `test.json`, in the order of the file; `tracklets` are ignored.

    Args:
        path: the file.
        on_error: called with an error for a product that violates MovingFashion's format, and for two files that would
            share an id. If it returns, the product is left out, and both files are kept.

    Raises:
        FormatError: the file is not a JSON object with unique keys, or `on_error` raised it.

    Source: data/movingfashion/README.md, "Raw files".
    """
    pairs = []
    for product_id, entry in read_object(path).items():
        try:
            pairs += _pairs(path, product_id, entry)
        except FormatError as error:
            on_error(error)
    _check_ids_differ(pairs, on_error)
    return pairs


def queries_of(pairs: Iterable[Pair]) -> list[Query]:
    """Returns each video once with its ground truth, in the order of its first pair."""
    pairs_of: dict[str, list[Pair]] = {}
    for pair in pairs:
        pairs_of.setdefault(pair.video, []).append(pair)
    return [_query(video, its_pairs) for video, its_pairs in pairs_of.items()]


def gallery_of(pairs: Iterable[Pair]) -> list[GalleryImage]:
    """Returns each image once, in the order of its first pair."""
    first_with: dict[str, Pair] = {}
    for pair in pairs:
        first_with.setdefault(pair.image, pair)
    return [GalleryImage(pair.where, image) for image, pair in first_with.items()]


def id_of(path: str) -> str:
    """Returns the id of a video or an image: its file name without folder and extension."""
    return PurePosixPath(path).stem


def _query(video: str, pairs: list[Pair]) -> Query:
    images = dict.fromkeys(pair.image for pair in pairs)
    sources = {pair.source for pair in pairs}
    return Query(pairs[0].where, video, tuple(images), sources.pop() if len(sources) == 1 else "")


def _pairs(path: Path, product_id: str, entry: object) -> list[Pair]:
    where, keys = f"{path}: {product_id}", ("video_paths", "img_path", "source")
    if not isinstance(entry, dict) or not all(key in entry for key in keys):
        raise FormatError(where, repr(entry), f"an object with {', '.join(keys)}", "download the file again")
    videos, image, source = (entry[key] for key in keys)
    if not isinstance(videos, list) or not videos:
        raise FormatError(f"{where} video_paths", repr(videos), "a list of paths", "download the file again")
    for video in videos:
        _check_path(video, "videos", f"{where} video_paths")
    _check_path(image, "imgs", f"{where} img_path")
    if type(source) is not int:
        raise FormatError(f"{where} source", repr(source), "a whole number, 1 = regular", "download the file again")
    return [Pair(where, product_id, video, image, REGULAR if source == 1 else HARD) for video in videos]


def _check_path(path: object, folder: str, where: str) -> None:
    if not isinstance(path, str) or not path.startswith(f"{folder}/"):
        raise FormatError(where, repr(path), f"a path that starts with {folder}/", "download the file again")


def _check_ids_differ(pairs: Iterable[Pair], on_error: Callable[[FormatError], None]) -> None:
    paths: dict[tuple[str, str], str] = {}
    for pair in pairs:
        for kind, path in (("video", pair.video), ("image", pair.image)):
            first = paths.setdefault((kind, id_of(path)), path)
            if first != path:
                do = "rename one of the files, and its path in this file"
                on_error(RepeatedId(pair.where, f"{path} and {first}", "names that differ before the dot", do))
