"""The training loop: runs a step and evaluators, and can be stopped at any moment."""

import contextlib
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.config import Config
from rice_jax.parallel.mesh import global_batch
from rice_jax.train import checkpoint
from rice_jax.train.log import RunLog
from rice_jax.train.state import TrainState
from rice_jax.train.steps import Step, compile_step
from rice_jax.train.trackers import open_trackers

logger = logging.getLogger(__name__)

# Function of (steps done, parameters) to scores by name.
Evaluator = Callable[[int, PyTree], Mapping[str, float]]


def train(
    config: Config,
    mesh: Mesh,
    step: Step,
    state: TrainState,
    batches: grain.DatasetIterator,
    checkpoints: ocp.CheckpointManager,
    evaluators: Mapping[str, Evaluator],
    data: Mapping[str, str],
) -> TrainState:
    """Trains until `config.train.total_steps`, or until SIGTERM.

    Args:
        config: settings of the run, saved with every checkpoint.
        mesh: all devices.
        step: function of (state, batch); its metrics must hold `loss` and `accuracy`.
        state: fresh or restored; donated.
        batches: this process's share of endless training batches, after those of the steps done; closed at the end.
        checkpoints: of the run; the metrics go beside them.
        evaluators: {name: function of (step, params)}, run before the first step, at the configured interval and after
            the last.
        data: {name: digest} of the training data, saved with every checkpoint.

    Returns:
        The last state, which is also saved.

    Raises:
        FloatingPointError: the loss or the gradient is not finite.
        CheckpointError: a checkpoint cannot be written.
        ConfigError: a tracker cannot record the run.
    """
    plan, first, batch_size = config.train, int(state.step), config.data.batch_size
    workdir = Path(checkpoints.directory).parent
    compiled = compile_step(step, state, mesh)

    def due(number: int, interval_steps: int) -> bool:
        return number == plan.total_steps or (interval_steps > 0 and number % interval_steps == 0)

    # The first step is due again if the run was killed between a checkpoint and its evaluation.
    evaluates_first = first == 0 or due(first, plan.eval_interval_steps)
    trackers = open_trackers(plan.tracker_names, workdir, first, config.to_dict())
    with (
        contextlib.closing(batches),
        RunLog(workdir, first, plan.total_steps, batch_size, plan.log_interval_steps, trackers, evaluates_first) as log,
        Interruption() as interruption,
    ):

        def evaluate(number: int) -> None:
            for name, evaluator in evaluators.items():
                log.add_evaluation(number, name, evaluator(number, state.params))

        if evaluates_first:
            evaluate(first)
        for number in range(first + 1, plan.total_steps + 1):
            state, metrics = compiled(state, global_batch(mesh, next(batches)))
            log.add(number, metrics)
            stop = interruption.reached(number)
            # Also before an evaluation, which may take longer than the time left after SIGTERM.
            if stop or due(number, plan.checkpoint_interval_steps) or due(number, plan.eval_interval_steps):
                log.flush()  # the metrics of a saved step must be on disk before it
                checkpoint.save(checkpoints, number, state.params, state.optimizer, config.to_dict(), data)
            if stop:
                logger.info("SIGTERM: saved step %d; the same command continues there", number)
                break
            if due(number, plan.eval_interval_steps):
                checkpoint.finish(checkpoints)  # a failing evaluation must not cost the checkpoint
                evaluate(number)
        checkpoint.finish(checkpoints)
    return state


class Interruption:
    """Records SIGTERM, so that the loop can save and stop."""

    def __enter__(self) -> "Interruption":
        self._noticed = False
        # With several processes, JAX's own service takes the signal and all agree on a step.
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; the same in all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed

    def _notice(self, *_) -> None:
        self._noticed = True
