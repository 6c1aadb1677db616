"""How many times a run sees its training data."""

import logging

from rice_jax.config import Config
from rice_jax.input.items import ItemPairs
from rice_jax.input.source import Source

logger = logging.getLogger(__name__)


def log_epochs(config: Config) -> None:
    """Logs the length of a run in epochs, each of all clips, or of all products with `config.data.domains`.

    Raises:
        FileNotFoundError: a data set is missing.
    """
    data, steps = config.data, config.train.total_steps
    num_examples = len(ItemPairs(config.input) if data.domains else Source(data.data_dir, data.train, ()))
    epochs = steps * data.batch_size / num_examples
    size = f"{num_examples:,} {'products' if data.domains else 'clips'}"
    logger.info("%d steps of %d examples are %.2f epochs of %s", steps, data.batch_size, epochs, size)
