"""Looks at raw files before a long build: `python data/doctor.py NAME RAW_DIR`; ends with 1 if something is wrong."""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for the package `data`, which is not installed

from data.errors import DataError, FormatError  # noqa: E402
from data.findings import Findings  # noqa: E402
from data.img2dataset import build_index, find_outputs, name_in, open_index  # noqa: E402
from data.pictures import RawPictures  # noqa: E402
from data.text import read_lines  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Reports what is there and what is wrong, and writes `retry_urls.txt`.

    Args:
        arguments: of the command line, `sys.argv[1:]` by default.

    Returns:
        The exit status: 0 = nothing is wrong, 1 = something is.
    """
    args = _parse(arguments)
    out = args.out or args.raw_dir
    check = importlib.import_module(f"data.{args.name}.check").check
    with tempfile.TemporaryDirectory(dir=out, prefix=".doctor_") as scratch:
        findings = Findings(Path(scratch))
        index = _index(args.raw_dir, findings.scratch / "index", args.workers, findings)
        check(args.raw_dir, RawPictures(args.raw_dir, index), args.min_frames, findings)
        urls = _urls_to_retry(index, args.urls, findings)
    retry = out / "retry_urls.txt"
    retry.unlink(missing_ok=True)  # of an earlier look
    if urls:
        retry.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    report = _report(findings, urls, retry, args.limit)
    print(json.dumps(report, ensure_ascii=False, indent=2) if args.json else _in_words(report))
    return 1 if report["faults"] else 0


def _index(raw_dir: Path, directory: Path, workers: int, findings: Findings) -> Path | None:
    """Indexes what img2dataset downloaded, less the shards that are damaged, which are listed."""
    outputs = find_outputs(raw_dir)
    try:
        return build_index(outputs, directory, workers, findings.errors("shards")) if outputs else None
    except DataError as error:
        findings.error("shards", error)
        return None


def _urls_to_retry(index: Path | None, lists: list[Path], findings: Findings) -> list[str]:
    """Lists the URLs that failed or were never tried, and returns those and the ones of damaged pictures."""
    damaged = findings.ids("pictures")
    downloads = open_index(index) if index else None
    sources = {"URLs tried": downloads.urls()} if downloads else {}
    sources["URLs listed"] = (line for path in lists for line in read_lines(path) if line[1].strip())
    retry: dict[str, str] = {}
    for kind, urls in sources.items():
        for where, url in findings.looked_at(kind, urls):
            try:
                name = name_in(url, where)
            except FormatError as error:
                findings.error("urls", error)
                continue
            if name in retry:  # a URL that comes again
                continue
            status = downloads.status(name) or "not attempted" if downloads else "success"
            if status != "success":
                findings.skipped("urls", name, where, status)
                findings.forget("pictures", name)  # the reason why that picture is missing
            if status != "success" or name in damaged:
                retry[name] = url.strip()
    return list(retry.values())


def _report(findings: Findings, urls: list[str], retry: Path, limit: int) -> dict:
    kinds = dict.fromkeys([*findings.published, *findings.counts])
    return {
        "counts": {kind: {"found": findings.counts[kind], "published": findings.published.get(kind)} for kind in kinds},
        "faults": {
            kind: {"count": len(faults), "first": faults[:limit]} for kind, faults in findings.by_kind().items()
        },
        "retry": {"count": len(urls), "file": str(retry) if urls else None},
    }


def _in_words(report: dict) -> str:
    lines = []
    for kind, count in report["counts"].items():
        published = "" if count["published"] is None else f" / {count['published']:,} published"
        lines.append(f"{kind}: {count['found']:,}{published}")
    for kind, faults in report["faults"].items():
        lines += ["", f"{kind}: {faults['count']:,} at fault"]
        lines += [f"  {fault['id']}: {fault['reason']}  [{fault['file']}]" for fault in faults["first"]]
        if (more := faults["count"] - len(faults["first"])) > 0:
            lines.append(f"  … and {more:,} more")
    lines += [""] if report["faults"] else ["", "nothing is wrong"]
    if report["retry"]["count"]:
        lines.append(f"{report['retry']['count']:,} URLs to try again: {report['retry']['file']}")
    return "\n".join(lines).rstrip()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    names = sorted(path.parent.name for path in HERE.glob("*/check.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names, help="data set")
    parser.add_argument("raw_dir", type=Path, help="directory with the raw files")
    parser.add_argument("--urls", type=Path, nargs="+", default=[], help="lists of URLs that img2dataset was given")
    parser.add_argument("--min_frames", type=int, default=1, help="of a clip that a build can use (default: 1)")
    parser.add_argument("--limit", type=int, default=10, help="faults of each kind to list (default: 10)")
    parser.add_argument("--out", type=Path, help="where to write retry_urls.txt (default: RAW_DIR)")
    parser.add_argument("--workers", type=int, default=1, help="processes that index downloads (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    if not args.raw_dir.is_dir():
        parser.error(f"{args.raw_dir}: found no such directory, expected the raw files")
    for path in args.urls:
        if not path.is_file():
            parser.error(f"--urls: found no {path}, expected a text file of one URL a line")
    if not 1 <= args.min_frames <= 10:
        parser.error(f"--min_frames: found {args.min_frames}, expected 1 to 10: a build reads no more")
    return args


if __name__ == "__main__":
    sys.exit(main())
