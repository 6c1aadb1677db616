"""Joins ROPE's three files of a domain into items: pages, short videos or live clips. The join is done on disk."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import replacing
from ..builder import EXAMPLES_PER_SHARD
from ..errors import FormatError, Unusable, fail
from ..external_sort import sort_lines
from ..pictures import choose_frames
from .files import Domain, files_of, read_rows


@dataclasses.dataclass(frozen=True)
class Item:
    """The content of the files about a page, a short video or a live clip.

    Attributes:
        item_id: the item's number, as text.
        where: `file:line` of the item's first pair, or of its first line in another file if it has no pair.
        products: the products that it is paired with, as text; a usable item has exactly one.
        text: title or speech, '' = none.
        pictures: the names of the pictures to keep, in order.
        num_lines: the number of lines in all three files.
        repeats: `file:line` of each line that repeats an earlier one, which takes precedence.
    """

    item_id: str
    where: str
    products: tuple[str, ...]
    text: str
    pictures: tuple[str, ...]
    num_lines: int
    repeats: tuple[str, ...]

    @property
    def name(self) -> str:
        """Returns `product/item`, or only the item if its product is unknown."""
        return f"{self.products[0]}/{self.item_id}" if len(self.products) == 1 else self.item_id

    @property
    def product(self) -> str:
        """Returns the item's product.

        Raises:
            Unusable: "in no pair file" or "several products".
        """
        if len(self.products) != 1:
            raise Unusable("several products" if self.products else "in no pair file")
        return self.products[0]


@dataclasses.dataclass(frozen=True)
class Block:
    """A file with the items of one shard; `checksum` is that of its bytes, so that blocks differ if their items do."""

    path: Path
    checksum: int


def read_items(
    files: dict[str, Path],
    domain: Domain,
    max_frames: int,
    scratch: Path,
    on_error: Callable[[FormatError], None] = fail,
) -> Iterator[Item]:
    """Joins a domain's three files by sorting all their lines by item, on disk if they exceed memory.

    Args:
        files: the files, from `files_of`.
        domain: the domain of the files.
        max_frames: the maximum number of pictures to keep of an item, spread evenly from the first to the last.
        scratch: directory for sorting; needs twice the size of the files, and 60 bytes per line.
        on_error: called with the error of a line that violates its format; the line is left out if it returns.

    Yields:
        Every item once, even if it cannot be used, in the order of a hash of its id. This order is shuffled, but it is
        the same in every build, and adding or removing an item does not move the others.

    Raises:
        FormatError: `on_error` raised it.
    """
    lines = sort_lines(_sortable(files, domain, on_error), scratch)
    for (_, item_id), group in itertools.groupby(map(_fields, lines), key=lambda fields: fields[:2]):
        yield _join(item_id, group, files, domain, max_frames)


def write_blocks(raw_dir: Path, split: str, domain: Domain, max_frames: int, directory: Path) -> list[Block]:
    """Writes the items in blocks of a shard's size, unless blocks of the same files exist.

    Args:
        raw_dir: the raw files.
        split: "train" or "test".
        domain: the domain to read.
        max_frames: the maximum number of pictures to keep of an item.
        directory: the directory of the blocks; its content is replaced.

    Returns:
        The blocks, in order.
    """
    files = files_of(raw_dir, split, domain)
    state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files.values()] + [max_frames]
    done = directory / "done.json"
    if done.exists():
        finished = json.loads(done.read_text(encoding="utf-8"))
        if finished["of"] == state:
            return [_block(directory, number, checksum) for number, checksum in enumerate(finished["checksums"])]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    items = read_items(files, domain, max_frames, directory)
    blocks: list[Block] = []
    while items_of_block := list(itertools.islice(items, EXAMPLES_PER_SHARD)):
        written = "".join(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in items_of_block)
        encoded = written.encode(errors="backslashreplace")  # in JSON a path's bytes that are not UTF-8
        blocks.append(_block(directory, len(blocks), zlib.crc32(encoded)))
        blocks[-1].path.write_bytes(encoded)
    checksums = [block.checksum for block in blocks]
    with replacing(done) as temporary:  # last, because this file marks complete blocks
        temporary.write_text(json.dumps({"of": state, "checksums": checksums}), encoding="utf-8")
    return blocks


def read_block(block: Block) -> Iterator[Item]:
    """Yields the items of a block."""
    for line in block.path.read_bytes().splitlines():
        values: dict[str, Any] = json.loads(line)
        for name in ("products", "pictures", "repeats"):
            values[name] = tuple(values[name])  # lists in JSON
        yield Item(**values)


def _block(directory: Path, number: int, checksum: int) -> Block:
    return Block(directory / f"{number:05}.jsonl", checksum)


def _sortable(files: dict[str, Path], domain: Domain, on_error: Callable[[FormatError], None]) -> Iterator[bytes]:
    """Yields each line as the hash of its item, the item, its file, its number, its line number and its content."""
    for place, (name, columns) in enumerate(domain.kinds.items()):
        rows = read_rows(files[name], columns, on_error)
        for line, row in tqdm(rows, desc=files[name].name, unit=" lines", disable=None):
            item = row["item"]
            digest = hashlib.blake2b(item.encode(), digest_size=8).hexdigest()
            content = row.get("product") or row.get("picture") or row["text"]
            number = int(row.get("number", 0))
            yield f"{digest}\0{item}\0{place}\0{number:018}\0{line:012}\0{content}\n".encode()


def _fields(line: bytes) -> tuple[str, str, int, str, int, str]:
    digest, item, place, number, row, content = line.decode().removesuffix("\n").split("\0", 5)
    return digest, item, int(place), number, int(row), content


def _join(
    item_id: str,
    lines: Iterable[tuple[str, str, int, str, int, str]],
    files: dict[str, Path],
    domain: Domain,
    max_frames: int,
) -> Item:
    paths, first, num_lines, repeats = list(files.values()), "", 0, []
    content_by: tuple[dict[str, str], ...] = ({}, {}, {})  # for each file: {what must be unique: content}
    for _, _, place, number, row, content in lines:
        where = f"{paths[place]}:{row}"
        first = first or where
        num_lines += 1
        once = (content, "", number if domain.has_numbers else content)[place]
        if once in content_by[place]:
            repeats.append(where)
        content_by[place].setdefault(once, content)
    products, texts, pictures = content_by
    return Item(
        item_id=item_id,
        where=first,
        products=tuple(products),
        text=texts.get("", ""),
        pictures=tuple(picture for _, picture in choose_frames(list(pictures.values()), max_frames)),
        num_lines=num_lines,
        repeats=tuple(repeats),
    )
