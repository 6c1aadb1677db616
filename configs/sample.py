"""The demo: RICE (ICL) on the simulated livestreams of `data/sample`, with learned weights of the frames.

    scripts/demo.sh

Hardware: 2 CPU cores, about 3 minutes of training. Scores: README.md and docs/results.md.
"""

from rice_jax.config import load_config


def get_config():
    config = load_config("sample_icl")
    # In a livestream the product is often hidden or small. Which frames show it is learned within a few steps.
    config.model.aggregation.kind = "attention"
    config.model.aggregation.attention.pooling = "direction"
    config.optimizer.new_learning_rate = 1e-2
    return config
