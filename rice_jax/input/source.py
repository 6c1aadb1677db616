"""Random access to a data set on disk, with pictures still encoded."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from rice_jax.types import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Source:
    """The rows of a data set, each a dict of its features and `index`, the number of the row.

    Pictures are the bytes that are on disk. A `Source` can be pickled.
    """

    def __init__(
        self,
        data_dir: str,
        name: str,
        features: Sequence[str] | None = None,
        optional: Collection[str] = (),
        split: str | None = None,
    ):
        """Opens a data set.

        Args:
            data_dir: directory that `data/build.py --data_dir` wrote.
            name: data set below `data_dir`, e.g. "lpr4m/train"; its newest version is read.
            features: names of the features to read; None = all.
            optional: further features to read if the data set has them.
            split: split to read; None = the only one.

        Raises:
            FileNotFoundError: the data set is missing.
            DataError: it lacks the split or a feature, or has several splits while `split` is None.
        """
        import tensorflow_datasets as tfds  # here, since recognition imports this module and reads no data set

        self.name = name
        self.directory = version_directory(data_dir, name)
        builder = tfds.builder_from_directory(self.directory)
        stored_splits = list(builder.info.splits)
        if len(stored_splits) != 1 if split is None else split not in stored_splits:
            expected = "exactly one" if split is None else f"{split!r} among them"
            raise DataError(f"{self.directory}: found the splits {stored_splits}, expected {expected}")
        stored = builder.info.features
        if missing := sorted(set(features or ()) - set(stored)):
            raise DataError(
                f"{self.directory}: found no feature {missing} among {sorted(stored)}; build the data set again: "
                f"{build_command(name)}"
            )
        chosen = stored if features is None else [*features, *(name for name in optional if name in stored)]
        self._features = tfds.features.FeaturesDict({feature: _encoded(stored[feature]) for feature in chosen})
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split or stored_splits[0], deserialize_method=raw)
        stored_split = builder.info.splits[split or stored_splits[0]]
        self._files = list(map(str, stored_split.filepaths))
        self._ends = np.cumsum(stored_split.shard_lengths)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        if index >= len(self):
            raise IndexError(index)  # ends an iteration, where the records would raise a ValueError
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, OSError) as error:  # ArrayRecord's checksums
            reason = " ".join(str(error).split())
            file = int(np.searchsorted(self._ends, index, side="right"))
            record_number = int(index) - int(self._ends[file - 1] if file else 0)
            raise DataError(
                f"{self._files[file]}: record {record_number} (row {int(index)} of {self.name}) cannot be read, so the "
                f"file is damaged ({reason}); copy it again, or build the data set again: {build_command(self.name)}"
            ) from error
        return self._features.deserialize_example_np(record) | {"index": int(index)}

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """The row itself: stored pairs have no random part, unlike those of `ItemPairs`."""
        return self[index]

    def __iter__(self) -> Iterator[dict]:
        return map(self.__getitem__, range(len(self)))


def splits(data_dir: str, name: str) -> list[str]:
    """The splits of a data set.

    Raises:
        FileNotFoundError: the data set is missing.
    """
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(version_directory(data_dir, name)).info.splits)


def version_directory(data_dir: str, name: str) -> epath.Path:
    """Finds the newest version of a data set.

    Args:
        data_dir: directory that `data/build.py --data_dir` wrote.
        name: data set below `data_dir`, e.g. "lpr4m/train".

    Returns:
        The version's directory, e.g. `data_dir/lpr4m/train/1.0.0`.

    Raises:
        FileNotFoundError: the data set has no version; the message holds the command that builds one.
    """
    directory = epath.Path(data_dir).expanduser() / name
    versions = []
    if directory.is_dir():
        versions = [entry for entry in directory.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)]
    if not versions:
        raise FileNotFoundError(
            f"{directory}: found no data set, expected a version directory such as {directory / '1.0.0'}; "
            f"build it: {build_command(name, data_dir)}"
        )
    return max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))))


def build_command(name: str, data_dir: str = "DATA") -> str:
    """The command line that builds the data set `name`, e.g. "lpr4m/train"."""
    return f"rice build {name.split('/')[0]} --raw_dir RAW --data_dir {data_dir}"


def _encoded(feature: "tfds.features.FeatureConnector") -> "tfds.features.FeatureConnector":
    """A feature that reads what `feature` stored, but leaves pictures encoded."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return tfds.features.Scalar(np.bytes_)
    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Image):
        return tfds.features.Sequence(tfds.features.Scalar(np.bytes_))
    return feature
