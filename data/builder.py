"""What all builders share: a set is written in shards, each from what it was given and from nothing else."""

import abc
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from data.errors import DataError
from data.img2dataset import build_index, find_outputs
from data.pictures import RawPictures
from data.skip_report import SkipReport, SkipSummary

EXAMPLES_PER_SHARD = 1024  # of ten 256 px pictures about 300 MB

Example = dict[str, Any]
Shard = Callable[[SkipReport], Iterator[Example]]

TEXT = tfds.features.Text
PICTURE = functools.partial(tfds.features.Image, encoding_format="jpeg")  # bytes go in and are stored as they are


class ShardedBuilder(tfds.core.dataset_builder.FileReaderBuilder):
    """Builds ArrayRecord files from raw files.

    A builder says in `_info` what its features are and in `_shards` what its shards are. Shards can be written in any
    order and by any process, and one that is finished survives a build that is stopped: it is kept under a digest of
    what it was made from, so that the next build takes it only if that is the same.

    Differs: TFDS recommends GeneratorBasedBuilder, but that one holds a split in memory when its order is to be kept,
    and needs TensorFlow above a gigabyte. TFDS's ShardBasedBuilder holds a shard in memory, starts anew each time, and
    on Beam makes a graph of every shard and, with more than ten, mixes up their lengths.

    Attributes:
        index_features: texts by which readers look examples up, none = there is nothing to look up. Beside the records
            `<split>_index.npy` has for each example their UTF-8 bytes and `row`, its place among the records; sorted by
            the first of them.
    """

    index_features: tuple[str, ...] = ()
    url_infos = None  # nothing is downloaded; TFDS's own look-up wants importlib_resources, which it does not install

    def __init__(self, *, max_skipped_percent: float = 1.0, max_short_side: int = 0, workers: int = 1, **kwargs):
        """Makes a builder.

        Args:
            max_skipped_percent: fail if more of any kind (clips, pictures, ...) cannot be used, 0..100.
            max_short_side: pictures whose short side has more pixels are made that small, 0 = none is.
            workers: processes that write shards.
            **kwargs: of `tfds.core.DatasetBuilder`.
        """
        self._max_skipped_percent = max_skipped_percent
        self._max_short_side = max_short_side
        self._workers = workers
        super().__init__(file_format="array_record", **kwargs)

    @classmethod
    @abc.abstractmethod
    def configs_for(cls, raw_dir: Path) -> list[str]:
        """Returns the names of the configs that fit the files of a raw directory."""

    @abc.abstractmethod
    def _shards(self, raw_dir: Path) -> dict[str, Sequence[Shard]]:
        """Reads the annotation files.

        Args:
            raw_dir: the raw files.

        Returns:
            {name of a split: its shards in order}: functions that can be pickled, hold all that they need, and yield
            examples while they report what they leave out.
        """

    def _pictures(self, raw_dir: Path) -> RawPictures:
        """Returns the pictures of a raw directory; makes the index first, if img2dataset downloaded some."""
        outputs = find_outputs(raw_dir)
        directory = Path(self.data_dir_root) / self.name / "pictures_index"  # one for all configs
        index = build_index(outputs, directory, self._workers) if outputs else None
        return RawPictures(raw_dir, index, self._max_short_side)

    def _metadata(self, summary: SkipSummary) -> dict[str, Any]:
        """Returns what `metadata.json` is to hold once all shards are written."""
        return {}

    def _info_of(self, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        """Returns what `_info` has to return: features, and examples in the order of the shards."""
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @property
    def unfinished_dir(self) -> Path:
        """Where finished shards wait for the others."""
        return Path(self.data_dir).parent / f"unfinished_{self.version}"

    def _download_and_prepare(self, dl_manager, download_config: tfds.download.DownloadConfig) -> None:
        raw_dir = Path(dl_manager.manual_dir)
        tasks_of = {
            split: [_Task.of(shard, str(self.version), self.unfinished_dir) for shard in shards]
            for split, shards in self._shards(raw_dir).items()
        }
        self.unfinished_dir.mkdir(parents=True, exist_ok=True)
        tasks = [task for split_tasks in tasks_of.values() for task in split_tasks]
        if finished := sum(task.is_finished for task in tasks):
            kept = f"{finished} of {len(tasks)} shards stand already; --overwrite builds them again"
            print(f"{self.unfinished_dir}: {kept}", file=sys.stderr)
        # Beside the version's directory, not in it: it must outlive a build that fails.
        with SkipSummary(self.unfinished_dir.with_name("skipped.jsonl")) as summary:
            lengths = {task: self._length(task, error, summary) for task, error in self._run(tasks, download_config)}
            summary.fail_above(self._max_skipped_percent)
            for split, split_tasks in tasks_of.items():
                if not any(lengths[task] for task in split_tasks):
                    raise DataError(f"{raw_dir}: found no example for {split}, {summary.text()}")
            self.summary = f"{summary.text()}, listed in {summary.path}"
            self.info.metadata.update(self._metadata(summary))
        infos = [
            self._take(split, split_tasks, [lengths[task] for task in split_tasks])
            for split, split_tasks in tasks_of.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))
        shutil.rmtree(self.unfinished_dir)

    def _run(
        self, tasks: Sequence["_Task"], download_config: tfds.download.DownloadConfig
    ) -> Iterator[tuple["_Task", str]]:
        """Yields the tasks in order once they are done, each with what is wrong with its raw files."""
        write = functools.partial(_write, self.info.features, self.index_features)
        if download_config.beam_runner:
            # Then all is finished below, but for what is wrong: that is found again, in order and with its error.
            _write_on_beam(write, tasks, download_config)
        progress = functools.partial(tqdm, total=len(tasks), desc=self.builder_config.name, unit="shard", disable=None)
        workers = min(self._workers, len(tasks))
        if workers <= 1:
            yield from zip(tasks, progress(map(write, tasks)), strict=True)
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                yield from zip(tasks, progress(pool.imap(write, tasks)), strict=True)

    def _length(self, task: "_Task", error: str, summary: SkipSummary) -> int:
        """Adds a shard's report to the summary and returns its number of examples."""
        if error:
            raise DataError(error)
        done = json.loads(task.report.read_text(encoding="utf-8"))
        summary.add(done["counts"], done["lines"])
        return done["num_examples"]

    def _take(self, split: str, tasks: Sequence["_Task"], lengths: Sequence[int]) -> tfds.core.SplitInfo:
        """Moves a split's shards to where TFDS looks for them, writes their index, and returns what to tell TFDS."""
        if self.index_features:
            np.save(Path(self.data_dir) / f"{split}_index.npy", _index(self.index_features, tasks))
        template = self._get_filename_template(split)
        num_bytes = sum(task.records.stat().st_size for task in tasks)
        for number, task in enumerate(tasks):
            task.records.rename(template.sharded_filepath(shard_index=number, num_shards=len(tasks)))
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)


def chunks(entries: Sequence) -> list[Sequence]:
    """Cuts a sequence into parts of at most `EXAMPLES_PER_SHARD`, in order."""
    return [entries[i : i + EXAMPLES_PER_SHARD] for i in range(0, len(entries), EXAMPLES_PER_SHARD)]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A shard and the files to write: its examples, and its number of examples with its report."""

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
    """Writes a shard unless it is finished, in whatever process; returns what is wrong with the raw files, or ''."""
    if task.is_finished:
        return ""
    to_proto = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).get_tf_example
    report, num_examples, index = SkipReport(), 0, []
    writer = ArrayRecordWriter(os.fspath(task.records), "group_size:1")  # 1 as TFDS has it: read one at a time
    try:
        for example in task.shard(report):
            proto = to_proto(features.encode_example(example))
            writer.write(proto.SerializeToString(deterministic=True))  # else another process orders it otherwise
            num_examples += 1
            if index_features:
                index.append([example[name] for name in index_features])
    except DataError as error:  # as text: it may come from another process, or from another machine
        return str(error)
    finally:
        writer.close()
    done = {"num_examples": num_examples, "counts": report.counts, "lines": report.lines, "index": index}
    temporary = task.report.with_suffix(".tmp")
    temporary.write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8")
    temporary.rename(task.report)  # at once: where this file is, the shard is whole
    return ""


def _index(names: Sequence[str], tasks: Sequence[_Task]) -> np.ndarray:
    """Joins what the shards noted of their examples; as bytes, so that millions of them take no memory worth naming."""
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
    import apache_beam as beam  # an extra: it moves other packages to older versions

    with beam.Pipeline(runner=download_config.beam_runner, options=download_config.beam_options) as pipeline:
        _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(write)
