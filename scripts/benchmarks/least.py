"""The fewest operations with which any program can train and encode."""

from rice_jax.config import Config, VitConfig
from rice_jax.tasks import TASKS

# AdamW, per parameter: moments 7, their corrections 2, step 5, weight decay 3, update 1, norm of the gradient 2.
OPTIMIZER_OPERATIONS = 20


def least_operations(config: Config) -> dict[str, int]:
    """The fewest operations of a training step, term by term.

    Counts the operations of matrix products, where a multiplication and an addition are two, and of the optimizer. The
    rest (layer norms, softmaxes, GELU) is not counted: it grows with D, not with D². The backward pass of a product
    takes two more products, one for each factor, or one if only one of them needs a gradient. In the forward pass, with
    P = B · (1 + T) pictures, M = T · L tokens of a video, patches of p · p pixels, K candidates and C attention maps:

        patches               P · 2 · N · 3p² · D, and backward only for the weights
        encoder               P · layers · (24 · L · D² + 4 · L² · D), all tokens, since PMD takes them
        features              P · 2 · D · E
        contrast              B² · 2 · E, which serves both directions and the choice of negatives
        self attention        per image, in the second pair of blocks and later per candidate:
                              2 · (U + 2L) · D² + 4 · U · L · D + 18 · U · D², where U tokens are updated
        queries               per U of these: 2 · D², in the first pair once per image
        keys and values       per video and pair: 4 · M · D²
        scores                per candidate: 2 · U · M · D
        sums of values        per candidate: 2 · V · M · D, where V tokens go on
        output and MLP        per candidate: 18 · V · D²
        match                 per candidate: 2 · D² + 2 · D
        PFR's convolutions    per image: 2 · L · M · (C · C/2 + C/2)
        PFR's reconstruction  per image: 2 · L · M · D, and backward only for the weights
        optimizer             20 per parameter

    In the last pair only CLS goes on, V = 1, and U = 1 but for an image's own video, where PFR wants the maps of all L
    tokens; in earlier pairs U = V = L.
    """
    model, parts = config.model, TASKS[config.task].model(config)
    pmd = parts.pmd
    batch, tokens, width = config.data.batch_size, model.num_tokens, model.width
    pictures, memory = batch * (1 + config.data.num_frames), config.data.num_frames * tokens
    pixels = 3 * model.patch_size**2

    learning, weights_learning = (
        {name: pictures * count for name, count in counts.items()} for counts in encoder_operations(config)
    )
    learning["contrast"] = batch**2 * 2 * model.embed_dim
    parameters = pixels * width + tokens * width + model.layers * 12 * width**2 + width * model.embed_dim
    if pmd:
        candidates = 1 + config.loss.num_negatives
        pairs = []
        for pair in range(pmd.num_pairs):
            last = pair == pmd.num_pairs - 1
            going_on = candidates * [1 if last else tokens]
            looking = [tokens if parts.pfr else going_on[0], *going_on[1:]]
            queries = looking if pair else looking[:1]
            pairs.append(
                {
                    "self attention": sum(block_operations(model, updated) for updated in queries),
                    "queries": sum(queries) * 2 * width**2,
                    "keys and values": 4 * memory * width**2,
                    "scores": sum(looking) * 2 * memory * width,
                    "sums of values": sum(going_on) * 2 * memory * width,
                    "output and MLP": sum(going_on) * 18 * width**2,
                }
            )
        learning |= {name: batch * sum(pair[name] for pair in pairs) for name in pairs[0]}
        learning["match"] = batch * candidates * (2 * width**2 + 2 * width)
        parameters += pmd.num_pairs * 24 * width**2 + width**2
    if parts.pfr:
        maps = pmd.num_pairs * pmd.num_heads
        learning["PFR's convolutions"] = batch * tokens * memory * 2 * (maps + 1) * (maps // 2)
        weights_learning["PFR's reconstruction"] = batch * tokens * memory * 2 * width
    return {
        **{name: 3 * count for name, count in learning.items()},
        **{name: 2 * count for name, count in weights_learning.items()},
        "optimizer": OPTIMIZER_OPERATIONS * parameters,
    }


def encoder_operations(config: Config) -> tuple[dict[str, int], dict[str, int]]:
    """Operations of encoding one picture in the forward pass: all, and those whose input needs no gradient."""
    model = config.model
    return {
        "encoder": model.layers * block_operations(model, model.num_tokens),
        "features": 2 * model.width * model.embed_dim,
    }, {"patches": 2 * (model.num_tokens - 1) * 3 * model.patch_size**2 * model.width}


def block_operations(model: VitConfig, updated: int) -> int:
    """Operations of one block on one picture in the forward pass, if `updated` of its tokens are updated."""
    tokens, width = model.num_tokens, model.width
    attention = 2 * (updated + 2 * tokens) * width**2 + 4 * updated * tokens * width
    return attention + 18 * updated * width**2
