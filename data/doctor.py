"""Checks raw files before a long build: `python data/doctor.py NAME RAW_DIR`."""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:  # Run as a script, whose relative imports need a package: PEP 366.
    sys.path.insert(0, str(HERE.parent))
    __package__ = "data"

from .atomic import replacing  # noqa: E402
from .errors import FormatError, RawDataError, WorkerError  # noqa: E402
from .findings import Findings  # noqa: E402
from .img2dataset import build_index, find_outputs, name_in, open_index  # noqa: E402
from .pictures import RawPictures  # noqa: E402
from .processes import cleaning_up_on_sigterm  # noqa: E402
from .text import read_lines  # noqa: E402

DESCRIPTION = """\
Checks raw files before a long build: reads everything that a build would read, and lists every fault beside the
published counts. The URLs of missing and damaged pictures are written to retry_urls.txt. The exit status is 0 if there
are no faults, and 1 otherwise."""


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Prints what was found and what is wrong, and writes `retry_urls.txt`.

    Args:
        arguments: the command line's arguments, `sys.argv[1:]` by default.
        prog: the program's name in help and errors; the script's name by default.

    Returns:
        The exit status: 0 = no faults, 1 = some.

    Raises:
        SystemExit: an argument is wrong, or a file cannot be read or written.
    """
    args = _parse(arguments, prog)
    try:
        with cleaning_up_on_sigterm():
            return _examine(args)
    except WorkerError as error:
        sys.exit(f"{args.prog}: error: {error}")
    except OSError as error:  # a full disk, a directory that cannot be written
        where = f"{error.filename or args.out or args.raw_dir}: {error.strerror or error}"
        sys.exit(f"{args.prog}: error: {where}")


def _examine(args: argparse.Namespace) -> int:
    out = args.out or args.raw_dir
    check = importlib.import_module(f".{args.name}.check", __package__).check
    with tempfile.TemporaryDirectory(dir=out, prefix=".doctor_") as scratch:
        findings = Findings(Path(scratch))
        index = _index(args.raw_dir, findings.scratch / "index", args.workers, findings)
        check(args.raw_dir, RawPictures(args.raw_dir, index), args.min_frames, findings)
        urls = _urls_to_retry(index, args.urls, findings)
    retry = out / "retry_urls.txt"
    retry.unlink(missing_ok=True)  # of an earlier check
    if urls:
        with replacing(retry) as temporary:
            temporary.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    report = _report(findings, urls, retry, args.limit)
    text = json.dumps(report, ensure_ascii=False, indent=2) if args.json else _in_words(report)
    print(text.encode("utf-8", "backslashreplace").decode())  # names of files may not be UTF-8
    return 1 if report["faults"] else 0


def _index(raw_dir: Path, directory: Path, workers: int, findings: Findings) -> Path | None:
    """Indexes the pictures that img2dataset downloaded; damaged shards are left out and listed as faults."""
    outputs = find_outputs(raw_dir)
    try:
        return build_index(outputs, directory, workers, findings.error_handler("shards")) if outputs else None
    except RawDataError as error:
        findings.error("shards", error)
        return None


def _urls_to_retry(index: Path | None, lists: list[Path], findings: Findings) -> list[str]:
    """Lists URLs that failed or were never attempted as faults.

    Returns:
        These URLs and those of damaged pictures, each once.
    """
    damaged = findings.ids("pictures")
    downloads = open_index(index) if index else None
    sources = {"URLs tried": downloads.urls()} if downloads else {}
    sources["URLs listed"] = _read_lists(lists, findings)
    retry: dict[str, str] = {}
    for kind, urls in sources.items():
        for where, url in findings.counted(kind, urls):
            try:
                name = name_in(url, where)
            except FormatError as error:
                findings.error("urls", error)
                continue
            if name in retry:  # a repeated URL
                continue
            status = downloads.status(name) or "not attempted" if downloads else "success"
            if status != "success":
                findings.skipped("urls", name, where, status)
                findings.forget("pictures", name)  # it is missing because of its URL
            if status != "success" or name in damaged:
                retry[name] = url.strip()
    return list(retry.values())


def _read_lists(lists: list[Path], findings: Findings) -> Iterator[tuple[str, str]]:
    """Yields (`file:line`, URL) of every list; one that cannot be read is listed as a fault."""
    for path in lists:
        try:
            yield from (line for line in read_lines(path) if line[1].strip())
        except FormatError as error:
            findings.error("files", error)


def _report(findings: Findings, urls: list[str], retry: Path, limit: int) -> dict[str, Any]:
    kinds = dict.fromkeys([*findings.published, *findings.counts])
    return {
        "counts": {kind: {"found": findings.counts[kind], "published": findings.published.get(kind)} for kind in kinds},
        "faults": {
            kind: {"count": len(faults), "first": faults[:limit]} for kind, faults in findings.by_kind().items()
        },
        "retry": {"count": len(urls), "file": str(retry) if urls else None},
    }


def _in_words(report: dict[str, Any]) -> str:
    lines = []
    for kind, count in report["counts"].items():
        published = "" if count["published"] is None else f" / {count['published']:,} published"
        lines.append(f"{kind}: {count['found']:,}{published}")
    for kind, faults in report["faults"].items():
        lines += ["", f"{kind}: {faults['count']:,} faulty"]
        lines += [f"  {fault['id']}: {fault['reason']}  [{fault['file']}]" for fault in faults["first"]]
        if (more := faults["count"] - len(faults["first"])) > 0:
            lines.append(f"  … and {more:,} more")
    lines += [""] if report["faults"] else ["", "no faults found"]
    if report["retry"]["count"]:
        lines.append(f"{report['retry']['count']:,} URLs to retry: {report['retry']['file']}")
    return "\n".join(lines).rstrip()


def _parse(arguments: list[str] | None, prog: str | None) -> argparse.Namespace:
    names = sorted(path.parent.name for path in HERE.glob("*/check.py"))
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s NAME RAW_DIR [options]",
        description=DESCRIPTION,
    )
    parser.add_argument("name", choices=names, metavar="NAME", help=f"The data set: {', '.join(names)}.")
    parser.add_argument("raw_dir", type=Path, metavar="RAW_DIR", help="The directory with the raw files.")
    add = parser.add_argument_group("checks").add_argument
    add("--min_frames", type=int, default=1, metavar="N", help="Report clips with fewer usable frames (default: 1).")
    add(
        "--urls",
        type=Path,
        nargs="+",
        default=[],
        metavar="LIST",
        help="Report URLs in these lists that img2dataset has not attempted.",
    )
    add("--workers", type=int, default=1, metavar="N", help="Index downloads in N processes (default: 1).")
    add = parser.add_argument_group("report").add_argument
    add("--limit", type=int, default=10, metavar="N", help="List at most N faults of each kind (default: 10).")
    add("--out", type=Path, metavar="DIR", help="Write retry_urls.txt into this directory (default: RAW_DIR).")
    add("--json", action="store_true", help="Print the report as JSON.")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f"--workers={args.workers}: expected 1 or more")
    if not args.raw_dir.is_dir():
        parser.error(f"{args.raw_dir}: found no such directory, expected the raw files")
    if args.out and not args.out.is_dir():
        parser.error(f"--out: found no directory {args.out}, expected one to write retry_urls.txt into")
    for path in args.urls:
        if not path.is_file():
            parser.error(f"--urls: found no file {path}, expected a text file with one URL per line")
    if not 1 <= args.min_frames <= 10:
        parser.error(f"--min_frames: found {args.min_frames}, expected 1 to 10: a build reads at most 10 frames")
    args.prog = parser.prog
    return args


if __name__ == "__main__":
    sys.exit(main())
