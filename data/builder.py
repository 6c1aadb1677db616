"""The base class of all builders, which writes a data set shard by shard."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from .atomic import replacing
from .errors import RawDataError
from .img2dataset import build_index, find_outputs
from .pictures import RawPictures
from .processes import in_workers
from .skip_report import SkipReport, SkipSummary

RECORD = "build.json"  # beside the records: the options of the build, and what was read and skipped
ATTRIBUTION = "attribution.csv"  # of the raw files: whose work each picture is, and its license
EXAMPLES_PER_SHARD = 1024  # about 300 MB if an example holds ten pictures of 256 px

T = TypeVar("T")

Example = dict[str, Any]
Shard = Callable[[SkipReport], Iterator[Example]]

TEXT = tfds.features.Text
PICTURE = functools.partial(tfds.features.Image, encoding_format="jpeg")  # encoded bytes are stored unchanged


class ShardedBuilder(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds ArrayRecord files from raw files.

    A subclass defines its features in `_info` and its shards in `_shards`. Shards can be written in any order and by
    any process. A finished shard survives an interrupted build: it is kept under a digest of its inputs, and the next
    build uses it if the digest is the same.

    Differs: TFDS recommends GeneratorBasedBuilder, but that holds a split in memory to keep its order, and needs
    TensorFlow above a gigabyte. TFDS's ShardBasedBuilder holds a shard in memory, always starts from the beginning, and
    on Beam makes a graph for every shard and confuses the lengths of more than ten shards.

    Attributes:
        index_features: text features by which readers look up examples; empty = no index. The file
            `<split>_index.npy` beside the records holds their UTF-8 bytes and `row`, the example's position among the
            records, for each example, sorted by the first feature.
        summary: after a build, a line about what was read and skipped.
    """

    index_features: tuple[str, ...] = ()
    url_infos = None  # nothing is downloaded; TFDS's own look-up needs importlib_resources, which it does not install
    summary: str

    def __init_subclass__(cls, **kwargs: Any):
        """Keeps builders out of TFDS's global registry, which would refuse the same name in `data` and `rice_data`."""
        super().__init_subclass__(skip_registration=True, **kwargs)

    def __init__(self, *, max_skipped_percent: float = 1.0, max_short_side: int = 0, workers: int = 1, **kwargs: Any):
        """Makes a builder.

        Args:
            max_skipped_percent: the build fails if more of any kind (clips, pictures, ...) cannot be used, 0..100.
            max_short_side: pictures with a longer short side, in pixels, are shrunk to it; 0 = none is shrunk.
            workers: number of processes that write shards.
            **kwargs: arguments of `tfds.core.DatasetBuilder`.
        """
        self._max_skipped_percent = max_skipped_percent
        self._max_short_side = max_short_side
        self._workers = workers
        super().__init__(file_format="array_record", **kwargs)

    @classmethod
    @abc.abstractmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the names of the configs that can be built from the files in a raw directory."""

    @abc.abstractmethod
    def _shards(self, raw_dir: Path) -> dict[str, Sequence[Shard]]:
        """Reads the annotation files and divides the examples into shards.

        Args:
            raw_dir: the raw files.

        Returns:
            {split: its shards in order}. A shard is a function that can be pickled, holds everything that it needs,
            yields examples and reports what it skips.
        """

    def _pictures(self, raw_dir: Path) -> RawPictures:
        """Returns the reader of a raw directory's pictures, after indexing those that img2dataset downloaded."""
        outputs = find_outputs(raw_dir)
        directory = Path(self.data_dir_root) / self.name / "pictures_index"  # shared by all configs
        index = build_index(outputs, directory, self._workers) if outputs else None
        return RawPictures(raw_dir, index, self._max_short_side)

    def _metadata(self, summary: SkipSummary) -> dict[str, Any]:
        """Returns the content of `metadata.json`, once all shards are written."""
        return {}

    def _options(self) -> dict[str, Any]:
        """Returns the options that can change what a build writes."""
        return {"max_skipped_percent": self._max_skipped_percent, "max_short_side": self._max_short_side}

    def _info_of(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        """Returns the value for `_info`: these features, and examples in the order of the shards."""
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @property
    def unfinished_dir(self) -> Path:
        """The directory of finished shards until the data set is complete."""
        return Path(self.data_dir).parent / f"unfinished_{self.version}"

    @property
    def overwriting(self) -> Path:
        """The file that marks the finished shards of a build that replaces a data set."""
        return self.unfinished_dir / "overwriting"

    def _download_and_prepare(self, dl_manager, download_config: tfds.download.DownloadConfig) -> None:
        raw_dir = Path(dl_manager.manual_dir)
        tasks_of = {
            split: [_Task.of(shard, str(self.version), self.unfinished_dir) for shard in shards]
            for split, shards in self._shards(raw_dir).items()
        }
        self.unfinished_dir.mkdir(parents=True, exist_ok=True)
        tasks = [task for split_tasks in tasks_of.values() for task in split_tasks]
        if finished := sum(task.is_finished for task in tasks):
            again = "--overwrite builds them again"
            if self.overwriting.exists():
                again = "they are of an interrupted --overwrite; remove this directory to build them again"
            kept = f"{finished} of {len(tasks)} shards already exist; {again}"
            print(f"{self.unfinished_dir}: {kept}", file=sys.stderr)
        # Not in the version's directory, because the report must survive a failed build.
        with (
            SkipSummary(self.unfinished_dir.with_name("skipped.jsonl")) as summary,
            contextlib.closing(self._run(tasks, download_config)) as written,
        ):
            lengths = {task: self._length(task, error, summary) for task, error in written}
            summary.fail_above(self._max_skipped_percent)
            for split, split_tasks in tasks_of.items():
                if not any(lengths[task] for task in split_tasks):
                    raise RawDataError(
                        f"{raw_dir}: found no usable example for {split} ({summary.text()}), expected at least one; "
                        f"see {summary.path}"
                    )
            self.summary = f"{summary.text()}, listed in {summary.path}"
            self.info.metadata.update(self._metadata(summary))
            record = {"options": self._options(), "counts": summary.counts()}
        (Path(self.data_dir) / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        if (raw_dir / ATTRIBUTION).is_file():
            shutil.copyfile(raw_dir / ATTRIBUTION, Path(self.data_dir) / ATTRIBUTION)
        infos = [
            self._take(split, split_tasks, [lengths[task] for task in split_tasks])
            for split, split_tasks in tasks_of.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _post_download_and_prepare_hook(self) -> None:
        """Removes the finished shards, once the data set is complete under its own name."""
        super()._post_download_and_prepare_hook()
        shutil.rmtree(self.unfinished_dir, ignore_errors=True)

    def _run(
        self, tasks: Sequence["_Task"], download_config: tfds.download.DownloadConfig
    ) -> Generator[tuple["_Task", str], None, None]:
        """Runs the tasks and yields them in order, each with the error in its raw files or ''."""
        write = functools.partial(_write, self.info.features, self.index_features)
        if download_config.beam_runner:
            # Below, finished tasks do nothing, and the others fail again, now in order and with their error.
            _write_on_beam(write, tasks, download_config)
        progress = functools.partial(tqdm, total=len(tasks), desc=self.builder_config.name, unit="shard", disable=None)
        workers = min(self._workers, len(tasks))
        if workers <= 1:
            yield from zip(tasks, progress(map(write, tasks)), strict=True)
        else:
            with contextlib.closing(in_workers(write, tasks, workers)) as written:
                yield from zip(tasks, progress(written), strict=True)

    def _length(self, task: "_Task", error: str, summary: SkipSummary) -> int:
        """Adds a shard's report to the summary and returns its number of examples."""
        if error:
            raise RawDataError(error)
        done = json.loads(task.report.read_text(encoding="utf-8"))
        summary.add(done["counts"], done["lines"])
        return done["num_examples"]

    def _take(self, split: str, tasks: Sequence["_Task"], lengths: Sequence[int]) -> tfds.core.SplitInfo:
        """Puts a split's shards where TFDS expects them, writes their index, and describes them for TFDS.

        TFDS removes what is there after an error, so the shards also stay in `unfinished_dir`.
        """
        if self.index_features:
            _save(Path(self.data_dir) / f"{split}_index.npy", _index(self.index_features, tasks))
        template = self._get_filename_template(split)
        num_bytes = sum(task.records.stat().st_size for task in tasks)
        for number, task in enumerate(tasks):
            target = template.sharded_filepath(shard_index=number, num_shards=len(tasks))
            try:
                os.link(task.records, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(task.records, target)
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)


def chunks(entries: Sequence[T]) -> list[Sequence[T]]:
    """Divides a sequence into parts of at most `EXAMPLES_PER_SHARD` entries, in order."""
    return [entries[i : i + EXAMPLES_PER_SHARD] for i in range(0, len(entries), EXAMPLES_PER_SHARD)]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A shard and its files: `records` holds the examples, `report` their number and what was skipped."""

    shard: Shard
    records: Path
    report: Path

    @classmethod
    def of(cls, shard: Shard, version: str, directory: Path) -> "_Task":
        digest = hashlib.blake2b(pickle.dumps((version, shard)), digest_size=16).hexdigest()
        return cls(shard, directory / f"{digest}.array_record", directory / f"{digest}.json")

    @property
    def is_finished(self) -> bool:
        return self.records.exists() and self.report.exists()


def _write(features: tfds.features.FeaturesDict, index_features: Sequence[str], task: _Task) -> str:
    """Writes a shard unless it is finished, in any process; returns the error in the raw files, or ''."""
    if task.is_finished:
        return ""
    to_proto = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).get_tf_example
    report, num_examples, index = SkipReport(), 0, []
    try:
        with _records(task.records) as write:
            for example in task.shard(report):
                proto = to_proto(features.encode_example(example))
                write(proto.SerializeToString(deterministic=True))  # otherwise the order depends on the process
                num_examples += 1
                if index_features:
                    index.append([example[name] for name in index_features])
    except RawDataError as error:  # as text, because it may come from another machine
        return str(error)
    done = {"num_examples": num_examples, "counts": report.counts, "lines": report.lines, "index": index}
    with replacing(task.report) as temporary:  # this file marks a complete shard
        temporary.write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")
    return ""


@contextlib.contextmanager
def _records(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that appends a record to a new file, and raises the writer's errors as OSErrors."""
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")  # as TFDS: examples are read one at a time

    def raising(call: Callable[..., Any], *arguments: bytes) -> None:
        try:
            call(*arguments)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    try:
        yield functools.partial(raising, writer.write)
    finally:
        raising(writer.close)


def _save(path: Path, array: np.ndarray) -> None:
    """Writes what `np.save` writes, which says nothing if the disk is too full for the end."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


def _index(names: Sequence[str], tasks: Sequence[_Task]) -> np.ndarray:
    """Joins the index entries of all shards; as bytes, which take little memory even for millions of examples."""
    parts = []
    for task in tasks:
        rows = json.loads(task.report.read_text(encoding="utf-8"))["index"]
        parts.append([np.array([text.encode() for text in column], np.bytes_) for column in zip(*rows, strict=True)])
    columns = [np.concatenate(column) for column in zip(*filter(None, parts), strict=True)]
    order = np.argsort(columns[0], kind="stable")
    index = np.empty(
        len(order), [*((name, column.dtype) for name, column in zip(names, columns, strict=True)), ("row", "<u4")]
    )
    for name, column in zip(names, columns, strict=True):
        index[name] = column[order]
    index["row"] = order
    return index


def _write_on_beam(
    write: Callable[[_Task], str], tasks: Sequence[_Task], download_config: tfds.download.DownloadConfig
) -> None:
    import apache_beam as beam  # an optional extra, because it forces older versions of other packages

    with beam.Pipeline(runner=download_config.beam_runner, options=download_config.beam_options) as pipeline:
        _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(write)
