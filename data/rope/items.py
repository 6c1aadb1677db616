"""ROPE's items: pages, short videos and live clips, each joined from three files on disk, not in memory."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from data.builder import EXAMPLES_PER_SHARD
from data.errors import FormatError, Unusable, fail
from data.external_sort import sort_lines
from data.pictures import choose_frames
from data.rope.files import Domain, files_of, read_rows


@dataclasses.dataclass(frozen=True)
class Item:
    """What the files say of a page, a short video or a live clip.

    Attributes:
        item_id: its number, as text.
        where: `file:line` of its first pair, or of what else there is of it.
        products: those that it is paired with, as text; a usable item has one.
        text: title or speech, '' = none.
        pictures: the names of those that are kept, in order.
        num_lines: of all three files.
        repeats: `file:line` of lines that say again what an earlier one says; the earlier one counts.
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
        """`product/item`, or the item alone if its product is not known."""
        return f"{self.products[0]}/{self.item_id}" if len(self.products) == 1 else self.item_id

    @property
    def product(self) -> str:
        """The one product.

        Raises:
            Unusable: "in no pair file" or "several products".
        """
        if len(self.products) != 1:
            raise Unusable("several products" if self.products else "in no pair file")
        return self.products[0]


@dataclasses.dataclass(frozen=True)
class Block:
    """A file of items, one shard's; `checksum` is that of its bytes: where they change, it is another block."""

    path: Path
    checksum: int


def read_items(
    files: dict[str, Path],
    domain: Domain,
    max_frames: int,
    scratch: Path,
    on_error: Callable[[FormatError], None] = fail,
) -> Iterator[Item]:
    """Joins a domain's three files.

    All lines are sorted by item, on disk if they are many.

    Args:
        files: from `files_of`.
        domain: whose files these are.
        max_frames: the most pictures to keep of an item: evenly spread, the first and the last among them.
        scratch: where to sort; needs twice the size of the files, and 60 bytes a line.
        on_error: is told of a line that is not what its file's format says, and raises it; if it does not, the line is
            left out.

    Yields:
        Every item once, those that cannot be used too, in the order of a hash of the id: shuffled, but the same in
        every build, and an item that is added or taken away moves no other.
    """
    lines = sort_lines(_sortable(files, domain, on_error), scratch)
    for (_, item_id), group in itertools.groupby(map(_fields, lines), key=lambda fields: fields[:2]):
        yield _join(item_id, group, files, domain, max_frames)


def write_blocks(raw_dir: Path, split: str, domain: Domain, max_frames: int, directory: Path) -> list[Block]:
    """Writes the items in blocks of the size of a shard, unless that was done before from the same files.

    Args:
        raw_dir: the raw files.
        split: "train" or "test".
        domain: what to read.
        max_frames: as `read_items`.
        directory: where to; replaced.

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
    blocks = []
    while items_of_block := list(itertools.islice(items, EXAMPLES_PER_SHARD)):
        written = "".join(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in items_of_block)
        encoded = written.encode()
        blocks.append(_block(directory, len(blocks), zlib.crc32(encoded)))
        blocks[-1].path.write_bytes(encoded)
    checksums = [block.checksum for block in blocks]
    done.write_text(json.dumps({"of": state, "checksums": checksums}), encoding="utf-8")  # last: now all is whole
    return blocks


def read_block(block: Block) -> Iterator[Item]:
    """Yields the items of a block."""
    for line in block.path.read_bytes().splitlines():
        values = json.loads(line)
        yield Item(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _block(directory: Path, number: int, checksum: int) -> Block:
    return Block(directory / f"{number:05}.jsonl", checksum)


def _sortable(files: dict[str, Path], domain: Domain, on_error: Callable[[FormatError], None]) -> Iterator[bytes]:
    """Yields all lines as hash of the item, item, file, number to sort by, line, and what else it says."""
    for place, (name, columns) in enumerate(domain.kinds.items()):
        rows = read_rows(files[name], columns, on_error)
        for line, row in tqdm(rows, desc=files[name].name, unit=" lines", disable=None):
            item = row["item"]
            digest = hashlib.blake2b(item.encode(), digest_size=8).hexdigest()
            said = row.get("product") or row.get("picture") or row["text"]
            number = int(row.get("number", 0))
            yield f"{digest}\0{item}\0{place}\0{number:018}\0{line:012}\0{said}\n".encode()


def _fields(line: bytes) -> tuple[str, str, int, str, int, str]:
    digest, item, place, number, row, said = line.decode().removesuffix("\n").split("\0", 5)
    return digest, item, int(place), number, int(row), said


def _join(
    item_id: str,
    lines: Iterable[tuple[str, str, int, str, int, str]],
    files: dict[str, Path],
    domain: Domain,
    max_frames: int,
) -> Item:
    paths, first, num_lines, repeats = list(files.values()), "", 0, []
    said_by: tuple[dict[str, str], ...] = ({}, {}, {})  # of each file: {what may stand once: what is said of it}
    for _, _, place, number, row, said in lines:
        where = f"{paths[place]}:{row}"
        first = first or where
        num_lines += 1
        once = (said, "", number if domain.has_numbers else said)[place]
        if once in said_by[place]:
            repeats.append(where)
        said_by[place].setdefault(once, said)
    products, texts, pictures = said_by
    return Item(
        item_id=item_id,
        where=first,
        products=tuple(products),
        text=texts.get("", ""),
        pictures=tuple(picture for _, picture in choose_frames(list(pictures.values()), max_frames)),
        num_lines=num_lines,
        repeats=tuple(repeats),
    )
