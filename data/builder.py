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
    """Builds one split of ArrayRecord files from raw files.

    A builder says in `_info` what its features are and in `_shards` what its shards are. Shards can be written in any
    order and by any process, and one that is finished survives a build that is stopped: it is kept under a digest of
    what it was made from, so that the next build takes it only if that is the same.

    Differs: TFDS recommends GeneratorBasedBuilder, but that one holds a split in memory when its order is to be kept,
    and needs TensorFlow above a gigabyte. TFDS's ShardBasedBuilder holds a shard in memory, starts anew each time, and
    on Beam makes a graph of every shard and, with more than ten, mixes up their lengths.
    """

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
    def _shards(self, raw_dir: Path) -> tuple[str, Sequence[Shard]]:
        """Reads the annotation files.

        Args:
            raw_dir: the raw files.

        Returns:
            The name of the split, and its shards in order: functions that can be pickled, hold all that they need, and
            yield examples while they report what they leave out.
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
        split, shards = self._shards(raw_dir)
        tasks = [_Task.of(shard, str(self.version), self.unfinished_dir) for shard in shards]
        self.unfinished_dir.mkdir(parents=True, exist_ok=True)
        if finished := sum(task.is_finished for task in tasks):
            kept = f"{finished} of {len(tasks)} shards stand already; --overwrite builds them again"
            print(f"{self.unfinished_dir}: {kept}", file=sys.stderr)
        # Beside the version's directory, not in it: it must outlive a build that fails.
        with SkipSummary(self.unfinished_dir.with_name("skipped.jsonl")) as summary:
            lengths = [self._length(task, error, summary) for task, error in self._run(tasks, download_config)]
            summary.fail_above(self._max_skipped_percent)
            if not any(lengths):
                raise DataError(f"{raw_dir}: found no example, {summary.text()}")
            self.summary = f"{summary.text()}, listed in {summary.path}"
            self.info.metadata.update(self._metadata(summary))
        self._take(split, [task.records for task in tasks], lengths)

    def _run(
        self, tasks: Sequence["_Task"], download_config: tfds.download.DownloadConfig
    ) -> Iterator[tuple["_Task", str]]:
        """Yields the tasks in order once they are done, each with what is wrong with its raw files."""
        write = functools.partial(_write, self.info.features)
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

    def _take(self, split: str, shards: Sequence[Path], lengths: Sequence[int]) -> None:
        """Moves the shards to where TFDS looks for them, and tells it."""
        template = self._get_filename_template(split)
        num_bytes = sum(path.stat().st_size for path in shards)
        for index, path in enumerate(shards):
            path.rename(template.sharded_filepath(shard_index=index, num_shards=len(shards)))
        info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
        self.info.set_splits(tfds.core.SplitDict([info]))
        shutil.rmtree(self.unfinished_dir)


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


def _write(features: tfds.features.FeaturesDict, task: _Task) -> str:
    """Writes a shard unless it is finished, in whatever process; returns what is wrong with the raw files, or ''."""
    if task.is_finished:
        return ""
    to_proto = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).get_tf_example
    report, num_examples = SkipReport(), 0
    writer = ArrayRecordWriter(os.fspath(task.records), "group_size:1")  # 1 as TFDS has it: read one at a time
    try:
        for example in task.shard(report):
            proto = to_proto(features.encode_example(example))
            writer.write(proto.SerializeToString(deterministic=True))  # else another process orders it otherwise
            num_examples += 1
    except DataError as error:  # as text: it may come from another process, or from another machine
        return str(error)
    finally:
        writer.close()
    done = {"num_examples": num_examples, "counts": report.counts, "lines": report.lines}
    temporary = task.report.with_suffix(".tmp")
    temporary.write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8")
    temporary.rename(task.report)  # at once: where this file is, the shard is whole
    return ""


def _write_on_beam(
    write: Callable[[_Task], str], tasks: Sequence[_Task], download_config: tfds.download.DownloadConfig
) -> None:
    import apache_beam as beam  # an extra: it moves other packages to older versions

    with beam.Pipeline(runner=download_config.beam_runner, options=download_config.beam_options) as pipeline:
        _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(write)
