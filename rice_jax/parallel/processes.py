"""Several processes as one program: joining, sharing a directory, and ending all when one fails."""

import contextlib
import json
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from rice_jax.files import locked

LOCK = ".lock"  # file in a directory that one program at a time may change
# In the errors of collectives, barriers and the coordinator when a process is gone.
LOST = r"Gloo|NCCL|heartbeat|Barrier|[Cc]oordination|UNAVAILABLE|Connection (reset|closed|refused)|preempted"
NUM_NAMED = 5  # differences between processes named in an error

logger = logging.getLogger(__name__)


class ProcessError(RuntimeError):
    """Processes that cannot work together; the message says what was found and what to do."""


def join(
    together: bool | None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 120,
) -> None:
    """Joins the other processes of the program, or checks that there are none, so that no job runs several times.

    Args:
        together: True = join, False = run alone, None = join if the environment names other processes.
        coordinator: host:port of the first process; None = JAX_COORDINATOR_ADDRESS, or that of Slurm, Open MPI or
            Cloud TPU.
        num_processes: number of processes; None = JAX_NUM_PROCESSES, or that of the cluster.
        process_id: number of this process, from 0; None = JAX_PROCESS_ID, or that of the cluster.
        timeout_seconds: how long to wait for the others now, and how long one may be silent later.

    Raises:
        ProcessError: this is one host of a TPU slice, and joining is off. A failure to join ends the program.
    """
    if together is None:
        together = coordinator is not None or (num_processes or 1) > 1 or told_of_others(os.environ)
    if not together:
        # The hosts of a TPU slice are always connected, but the checkpoints of hosts that have not joined conflict.
        if jax.process_count() > 1:
            raise ProcessError(f"this is one of {jax.process_count()} hosts: run the command on all with --distributed")
        return

    def give_up() -> None:
        where = coordinator or "that the cluster names"
        _end(
            f"ProcessError: the processes have not come together within {timeout_seconds} seconds (--timeout_seconds). "
            f"Expected all of them, started within that time, at the coordinator {where}: check the output of the "
            "other processes, and that this machine can reach that address"
        )

    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    # JAX's own timeout ends the process with a C++ stack trace, so this one comes first.
    watch = threading.Timer(timeout_seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator,
            _or_environment(num_processes, "JAX_NUM_PROCESSES"),
            _or_environment(process_id, "JAX_PROCESS_ID"),
            initialization_timeout=timeout_seconds + 30,
            heartbeat_timeout_seconds=timeout_seconds,
        )
        jax.devices()  # waits for the others, as the processes exchange their devices
    except (ValueError, RuntimeError, OSError) as error:
        _end(
            f"ProcessError: the processes cannot come together: {error}\n"
            "Expected a Cloud TPU, Slurm or Open MPI job, or --coordinator=host:port --num_processes=N --process_id=I; "
            "--nodistributed runs one process alone"
        )
    finally:
        watch.cancel()
    if jax.process_index():
        logging.getLogger("rice_jax").setLevel(logging.WARNING)


def told_of_others(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of several.

    Raises:
        ProcessError: a variable holds no number of processes.
    """
    counts = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    hosts = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    for name in counts:
        if not (environment.get(name) or "1").isdecimal():
            raise ProcessError(f"{name}: found {environment[name]!r}, expected a number of processes")
    return any(int(environment.get(name) or 1) > 1 for name in counts) or any(
        "," in environment.get(name, "") for name in hosts
    )


def share_directory(directory: Path) -> None:
    """Creates a directory and checks that all processes share it, now rather than at the first checkpoint.

    Raises:
        ProcessError: it cannot be written, or other processes do not see what the first one writes there.
    """
    name, problem = 0, None
    if jax.process_index() == 0:
        name = 1 + secrets.randbelow(2**31 - 1)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f".shared-{name}").touch()
        except OSError as error:
            name, problem = 0, error
    name = int(multihost_utils.broadcast_one_to_all(np.int32(name)))
    if not name:
        reason = problem or "the first process cannot write there, see its output"
        raise ProcessError(f"{directory}: {reason}; expected a directory that can be written, choose another --workdir")
    probe = directory / f".shared-{name}"
    seen = multihost_utils.process_allgather(np.bool_(probe.exists())).reshape(-1)  # all have looked
    if jax.process_index() == 0:
        probe.unlink()
    if not seen.all():
        raise ProcessError(
            f"{directory}: only {seen.sum()} of {len(seen)} processes see what the first one writes there; expected "
            "one directory that all share, e.g. on NFS, under the same path"
        )


def require_same(facts: Mapping[str, object]) -> None:
    """Checks that all processes of a program know the same facts; all call this together.

    Args:
        facts: {name: value}, e.g. settings, versions, and digests of data.

    Raises:
        ProcessError: naming the facts that differ; in all processes.
    """
    own = np.frombuffer(json.dumps({name: repr(value) for name, value in facts.items()}).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own))).reshape(-1)
    padded = multihost_utils.process_allgather(np.pad(own, (0, sizes.max() - len(own)))).reshape(len(sizes), -1)
    first, *others = (json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True))
    different = [
        f"{name} is {other.get(name, 'unknown')} in process {process} and {first.get(name, 'unknown')} in process 0"
        for process, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if different:
        more = [f"and {len(different) - NUM_NAMED} more"] if len(different) > NUM_NAMED else []
        raise ProcessError(
            f"the processes differ: {'; '.join([*different[:NUM_NAMED], *more])}. Start all with the same settings, "
            "code and data"
        )


@contextlib.contextmanager
def only_program(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a directory that only one program at a time may change; all processes call this together.

    Args:
        directory: exists.
        wait: whether to wait for a program that holds it.

    Raises:
        ProcessError: another program holds it, and `wait` is off.
    """
    with contextlib.ExitStack() as held:
        problem = ""
        if jax.process_index() == 0:
            try:
                held.enter_context(locked(directory / LOCK, wait=wait))
            except OSError as error:
                problem = str(error)
        if not agree(not problem):
            raise ProcessError(problem or f"{directory}: cannot be used, see the output of the first process")
        yield


def agree(answer: bool) -> bool:
    """The first process's answer, for all processes, since a shared disk may look different to each of them."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(answer)))


def lost_process(error: BaseException) -> str:
    """One line about another process that has ended, if that is the cause of an error; "" if it is not.

    A process that waits for the accelerator may be ended by jaxlib instead, whose abort JAX lets nobody replace.
    """
    cause: BaseException | None = error
    while cause is not None and jax.process_count() > 1:
        if isinstance(cause, jax.errors.JaxRuntimeError) and re.search(LOST, str(cause)):
            return (
                "ProcessError: another process of this program has ended, so this one ends too; see its output. "
                f"The same command continues from the newest checkpoint. ({str(cause).splitlines()[0][:200]})"
            )
        cause = cause.__cause__ or cause.__context__
    return ""


def leave(message: str) -> NoReturn:
    """Ends the program with a message and exit code 1.

    One of several processes ends at once: at an ordinary exit it would wait for the others, which wait for it.
    """
    if jax.process_count() == 1:
        sys.exit(message)
    _end(f"process {jax.process_index()}: {message}")


def _end(message: str) -> NoReturn:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def _or_environment(value: int | None, name: str) -> int | None:
    return int(os.environ[name]) if value is None and name in os.environ else value
