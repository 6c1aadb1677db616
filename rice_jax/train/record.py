"""What a run is made of: its settings, code, devices and data, for `run.json` and to compare processes."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from rice_jax.config import Config
from rice_jax.files import write_lines

PACKAGES = "rice-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"
# Settings that say where and how fast a process reads; all others must be the same in all processes.
LOCAL = "config.data.data_dir", "config.data.num_threads", "config.data.num_workers"


def write_record(
    path: Path, config: Config, overrides: Sequence[str], mesh: Mesh, data: Mapping[str, str], first_step: int
) -> None:
    """Writes `run.json`, whole or not at all.

    Args:
        path: the file; that of an earlier start of the run is replaced.
        config: settings of the run.
        overrides: arguments of the command line.
        mesh: all devices.
        data: {name: digest} of the training data.
        first_step: steps done before this start.
    """
    device = mesh.devices.flat[0]
    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "first_step": first_step,
        "arguments": list(overrides),
        "versions": versions(),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
        },
        "data": dict(data),
        "config": config.to_dict(),
    }
    write_lines(path, [json.dumps(record, indent=2, ensure_ascii=False)])


def common_facts(config: Config) -> dict[str, object]:
    """What must be the same in all processes of a program: settings, by name, and versions."""
    settings = flatten_dict({"config": config.to_dict()}, sep=".")
    return {name: value for name, value in settings.items() if name not in LOCAL} | versions()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute, and a digest of this package's source files."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[name] = "not installed"
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found | {"source files of rice_jax (SHA-256)": digest.hexdigest()[:16]}
