"""Runs of the program as processes of their own, which can be killed, signalled, and started together.

Importing the program takes longer than a tiny run. A server imports it once, but touches no device, and forks for every
run; `python -m` is then as if it had just imported everything.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds
# Thresholds of the garbage collector: tracing makes many small objects that live on.
SELDOM = 50_000, 10, 10
FORKED = multiprocessing.get_context("forkserver")
# What rice_jax.main and its reports import, also while they run, but for the module itself, which `python -m` runs.
FORKED.set_forkserver_preload(
    [
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "ml_collections.config_flags",
        "rice_jax.index.update",
        "rice_jax.pages.compare",
        "rice_jax.parallel.processes",
        "rice_jax.tasks",
        "rice_jax.train.loop",
        "scipy.optimize",
        "tensorflow_datasets.core.data_sources.array_record",
    ]
)


class Program:
    """A started `python -m MODULE ARGUMENTS`, with what the tests need of `subprocess.Popen`.

    Attributes:
        pid: of its process.
    """

    def __init__(self, module: str, arguments: list[str], directory: Path, environment: dict[str, str]) -> None:
        self._files = [Path(tempfile.mkstemp(suffix=f".{name}")[1]) for name in ("stdout", "stderr")]
        self._process = FORKED.Process(target=_run, args=(module, arguments, directory, environment, self._files))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *error: object) -> None:
        self.communicate()

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._process.terminate()

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Waits for its end, and returns what it has written to stdout and stderr."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self._process.name, timeout, *self._output())
        return self._output()

    @property
    def stdout(self) -> Iterator[str]:
        """The lines that it writes to stdout, from the first one on, as they come."""
        return self._lines(self._files[0])

    @property
    def stderr(self) -> Iterator[str]:
        """The same of stderr."""
        return self._lines(self._files[1])

    def _lines(self, path: Path) -> Iterator[str]:
        with path.open(encoding="utf-8") as file:
            line = ""
            while True:
                ended = self.returncode is not None
                line += file.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                elif ended:
                    return
                else:
                    time.sleep(0.002)

    def _output(self) -> tuple[str, str]:
        output, errors = (path.read_text(encoding="utf-8") for path in self._files)
        return output, errors

    def __del__(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)


def wait_for(process: Program, text: str) -> None:
    """Returns as soon as a program has written a line with this text to stderr."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} was never written:\n{''.join(lines)}")


def start(
    arguments: list[str], devices: int = 1, directory: Path = ROOT, **environment: str
) -> Program | subprocess.Popen:
    """Starts a program; one of `python -m` is forked."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **environment}
    if arguments[:2] == [sys.executable, "-m"]:
        return Program(arguments[2], arguments[3:], directory, environment)
    return subprocess.Popen(
        arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(
    arguments: list[str], devices: int = 1, directory: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a program to its end."""
    process = start(arguments, devices, directory, **environment)
    output, errors = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def _run(module: str, arguments: list[str], directory: Path, environment: dict[str, str], files: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    jax.config.update("jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"]))  # it was read at the import
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    sys.argv = [module, *arguments]
    gc.freeze()  # what was imported stays, and need not be looked at again and again
    gc.set_threshold(*SELDOM)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without
