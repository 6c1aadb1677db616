"""Gives an index another calibration."""

import dataclasses
from pathlib import Path

from rice_jax.eval.calibration import Calibration
from rice_jax.files import locked
from rice_jax.index.store import read_index, write_index
from rice_jax.models.weights import CheckpointError
from rice_jax.parallel.processes import LOCK


def calibrate_index(directory: Path, calibration: Calibration) -> None:
    """Writes a calibration into an index. If another program changes the index, this one waits until that one is done.

    Raises:
        CheckpointError: another model has made the index in the meantime.
        FileNotFoundError: there is no index.
    """
    read_index(directory)  # there may be none, and then nothing to lock
    with locked(directory / LOCK, wait=True):
        index = read_index(directory)
        if index.about.fingerprint != calibration.fingerprint:
            raise CheckpointError(
                f"{directory}: was made again with another model while this program ran; run it again"
            )
        write_index(
            directory, dataclasses.replace(index, about=dataclasses.replace(index.about, calibration=calibration))
        )
