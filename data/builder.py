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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    and needs TensorFlow above a gigabyte. TFDS's ShardBasedBuilder holds a shard in memory and starts anew each time.
    """

    url_infos = None  # nothing is downloaded; TFDS's own look-up wants importlib_resources, which it does not install

    def __init__(self, *, max_skipped_percent: float = 1.0, workers: int = 1, **kwargs):
        """Makes a builder.

        Args:
            max_skipped_percent: fail if more of any kind (clips, pictures, ...) cannot be used, 0..100.
            workers: processes that write shards.
            **kwargs: of `tfds.core.DatasetBuilder`.
        """
        self._max_skipped_percent = max_skipped_percent
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
        return RawPictures(raw_dir, build_index(outputs, directory, self._workers) if outputs else None)

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

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        raw_dir = Path(dl_manager.manual_dir)
        split, shards = self._shards(raw_dir)
        write = _ShardWriter(self.info.features, self.unfinished_dir, str(self.version))
        self.unfinished_dir.mkdir(parents=True, exist_ok=True)
        if finished := sum(write.outcome_of(shard).is_finished for shard in shards):
            kept = f"{finished} of {len(shards)} shards stand already; --overwrite builds them again"
            print(f"{self.unfinished_dir}: {kept}", file=sys.stderr)
        # Beside the version's directory, not in it: it must outlive a build that fails.
        with SkipSummary(self.unfinished_dir.with_name("skipped.jsonl")) as summary:
            written = [self._checked(outcome, summary) for outcome in self._run(write, shards)]
            summary.fail_above(self._max_skipped_percent)
            if not any(length for _, length in written):
                raise DataError(f"{raw_dir}: found no example, {summary.text()}")
            self.summary = f"{summary.text()}, listed in {summary.path}"
            self.info.metadata.update(self._metadata(summary))
        self._take(split, written)

    def _run(self, write: "_ShardWriter", shards: Sequence[Shard]) -> Iterable["_Outcome"]:
        progress = functools.partial(tqdm, total=len(shards), desc=self.builder_config.name, unit="shard", disable=None)
        workers = min(self._workers, len(shards))
        if workers == 1:
            yield from progress(map(write, shards))
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                yield from progress(pool.imap(write, shards))

    def _checked(self, outcome: "_Outcome", summary: SkipSummary) -> tuple[Path, int]:
        if outcome.error:
            raise DataError(outcome.error)
        record = json.loads(outcome.finished.read_text(encoding="utf-8"))
        summary.add(record["counts"], record["lines"])
        return outcome.records, record["num_examples"]

    def _take(self, split: str, written: Sequence[tuple[Path, int]]) -> None:
        """Moves the shards to where TFDS looks for them, and tells it."""
        template = self._get_filename_template(split)
        num_bytes = 0
        for index, (records, _) in enumerate(written):
            num_bytes += records.stat().st_size
            records.rename(template.sharded_filepath(shard_index=index, num_shards=len(written)))
        lengths = [length for _, length in written]
        info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
        self.info.set_splits(tfds.core.SplitDict([info]))
        shutil.rmtree(self.unfinished_dir)


def chunks(entries: Sequence) -> list[Sequence]:
    """Cuts a sequence into parts of at most `EXAMPLES_PER_SHARD`, in order."""
    return [entries[i : i + EXAMPLES_PER_SHARD] for i in range(0, len(entries), EXAMPLES_PER_SHARD)]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Files of a shard, `finished` holding number of examples and report; or what is wrong with the raw files."""

    records: Path
    finished: Path
    error: str = ""

    @property
    def is_finished(self) -> bool:
        return self.records.exists() and self.finished.exists()


@dataclasses.dataclass(frozen=True)
class _ShardWriter:
    """Writes shards, in whatever process it is called."""

    features: tfds.features.FeaturesDict
    directory: Path
    version: str

    def outcome_of(self, shard: Shard) -> _Outcome:
        digest = hashlib.blake2b(pickle.dumps((self.version, shard)), digest_size=16).hexdigest()
        return _Outcome(self.directory / f"{digest}.array_record", self.directory / f"{digest}.json")

    def __call__(self, shard: Shard) -> _Outcome:
        outcome = self.outcome_of(shard)
        if outcome.is_finished:
            return outcome
        to_proto = tfds.core.example_serializer.ExampleSerializer(self.features.get_serialized_info()).get_tf_example
        report, num_examples = SkipReport(), 0
        writer = ArrayRecordWriter(os.fspath(outcome.records), "group_size:1")  # 1 as TFDS has it: read one at a time
        try:
            for example in shard(report):
                proto = to_proto(self.features.encode_example(example))
                writer.write(proto.SerializeToString(deterministic=True))  # else another process orders it otherwise
                num_examples += 1
        except DataError as error:  # as text: it may come from another process, or from another machine
            return dataclasses.replace(outcome, error=str(error))
        finally:
            writer.close()
        record = {"num_examples": num_examples, "counts": report.counts, "lines": report.lines}
        temporary = outcome.finished.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        temporary.rename(outcome.finished)  # at once: where this file is, the shard is whole
        return outcome
