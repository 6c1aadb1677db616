"""The command `rice index`: flags and wiring; each job imports only what it needs."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path


def job_of(arguments: list[str]) -> Callable[[], None]:
    """What the command is asked to do.

    Raises:
        SystemExit: the arguments ask for help, or are wrong.
    """
    if arguments[:1] == ["merge"]:
        return _merge(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="rice index",
        usage="rice index PICTURES --out=DIR [options]",
        description="Embeds a shop's pictures into an index, which rice recognize and rice serve search.",
        epilog="Pictures that cannot be read are listed at the end; the same command then embeds only what is missing. "
        "rice index merge SHARDS --out=DIR makes one index of shards.",
    )
    parser.add_argument(
        "pictures",
        metavar="PICTURES",
        help="directory with ID.jpg, GALLERY/ID.jpg, or GALLERY/PRODUCT/PICTURE.jpg, or a CSV with the columns path, "
        "and id or product or both, and optionally gallery and title",
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="run or converted model; needed for a new index (default: the one that made the index)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the index, or of the shards")
    parser.add_argument(
        "--change",
        choices=("add", "mirror", "remove"),
        default="add",
        help="add: new and changed pictures (default); mirror: also remove those not in PICTURES; remove: those in "
        "PICTURES",
    )
    parser.add_argument("--mix", action="store_true", help="add pictures of another directory or CSV, too")
    parser.add_argument(
        "--worker",
        type=_worker,
        metavar="I/N",
        help="embed share I of N, from 0, of a large catalog, and write shards; PICTURES may also be tars",
    )
    titles = parser.add_argument_group("titles")
    titles.add_argument(
        "--text_model", type=Path, metavar="DIR", help="text tower that embeds them (default: the index's)"
    )
    titles.add_argument(
        "--text_weight", type=float, metavar="W", help="their weight (default: the index's, or as fitted)"
    )
    _add_form(parser)
    options = parser.parse_args(arguments)
    _check_form(parser, options)
    if options.change == "remove" and (options.text_model or options.text_weight is not None):
        parser.error("expected no --text_model and no --text_weight with --change=remove")
    if options.change == "remove" and (options.dimensions or options.store_as):
        parser.error("expected no --dimensions and no --store_as with --change=remove")
    if options.worker and (options.change != "add" or options.mix or options.dimensions or _copies(options)):
        parser.error(
            "expected no --change, --mix, --dimensions, --export, and --store with --worker; rice index merge reduces, "
            "exports, and copies all shards"
        )
    if options.worker and not options.model:
        parser.error("expected --model with --worker")
    return functools.partial(_embed_shards if options.worker else _change_index, options)


def _merge(arguments: list[str]) -> Callable[[], None]:
    parser = argparse.ArgumentParser(
        prog="rice index merge", description="Makes one index of the shards that rice index --worker has written."
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="directory of all shards")
    parser.add_argument("--out", type=Path, required=True, help="directory of the index")
    _add_form(parser)
    options = parser.parse_args(arguments)
    _check_form(parser, options)

    return functools.partial(_merge_shards, options)


def _add_form(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say in which form an index is written."""
    form = parser.add_argument_group("large indexes")
    form.add_argument("--dimensions", type=int, metavar="N", help="project the vectors onto N dimensions")
    form.add_argument("--store_as", choices=("float32", "int8"), help="int8: a quarter of the bytes (default: float32)")
    form.add_argument("--export", choices=("faiss",), help="also write the index in this form")
    form.add_argument("--store", choices=("milvus",), help="also copy it to this database, for rice recognize")
    form.add_argument(
        "--uri", help="the database: a file that ends in .db (Milvus Lite), or an address (http://localhost:19530)"
    )
    form.add_argument("--collection", default="rice", metavar="NAME", help="collection in the database (default: rice)")
    form.add_argument(
        "--kind",
        choices=("flat", "hnsw", "ivf"),
        default="flat",
        help="index type of --export and --store: exact (flat, default), or approximate, whose recall is logged",
    )


def _check_form(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if (options.store is None) != (options.uri is None):
        parser.error("expected --store=milvus and --uri together")
    if options.kind != "flat" and not _copies(options):
        parser.error("expected --kind only with --export or --store")


def _copies(options: argparse.Namespace) -> bool:
    return bool(options.store or options.export)


def _worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 0 to N - 1, such as 0/8")


def _embed_shards(options: argparse.Namespace) -> None:
    from rice_jax.index.model import load_model
    from rice_jax.index.shards import build_shards
    from rice_jax.index.text import TextSettings
    from rice_jax.parallel.compilation import keep_compiled
    from rice_jax.types import counted

    keep_compiled()
    model = load_model(options.model)
    texts = TextSettings(options.text_model, options.text_weight)
    done = build_shards(
        options.pictures, options.out, model, worker=options.worker, store_as=options.store_as, texts=texts
    )
    print(
        f"{options.out}: {counted(done.num_embedded, 'picture')} in {counted(done.num_shards, 'shard')}; "
        f"shards finished before: {done.num_finished}; unusable pictures: {done.num_unusable}; not downloaded: "
        f"{done.num_missing}; {done.num_embedded / max(done.seconds, 1e-9):.1f} pictures per second"
    )


def _merge_shards(options: argparse.Namespace) -> None:
    from rice_jax.index.shards import merge_shards

    _require_packages(options)
    merge_shards(options.shards, options.out, dimensions=options.dimensions, store_as=options.store_as)
    _copy(options)


def _change_index(options: argparse.Namespace) -> None:
    from rice_jax.index.update import UnusablePictures, build_index
    from rice_jax.parallel.compilation import keep_compiled

    keep_compiled()
    _require_packages(options)
    try:
        build_index(
            options.pictures,
            model=options.model,
            out=options.out,
            change=options.change,
            mix=options.mix,
            dimensions=options.dimensions,
            store_as=options.store_as,
            text_model=options.text_model,
            text_weight=options.text_weight,
        )
    except UnusablePictures:
        _copy(options)  # of all others
        raise
    _copy(options)


def _require_packages(options: argparse.Namespace) -> None:
    """Refuses what cannot be copied, before pictures are embedded."""
    from rice_jax.index.export import require_faiss
    from rice_jax.index.milvus import require_milvus

    if options.store:
        require_milvus()
    if options.export:
        require_faiss()


def _copy(options: argparse.Namespace) -> None:
    """Copies an index as it is asked for, and prints where the last copy is."""
    from rice_jax.index.export import export_faiss
    from rice_jax.index.milvus_copy import write_milvus
    from rice_jax.index.store import FILE, read_index

    if options.store:
        write_milvus(read_index(options.out), options.uri, name=options.collection, kind=options.kind)
    exported = export_faiss(options.out, read_index(options.out), options.kind) if options.export else None
    print(exported or options.out / FILE)
