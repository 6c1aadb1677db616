"""The fewest operations with which any program can train and encode."""

from rice_jax.config import Config, ConfigError, VitConfig
from rice_jax.tasks import TASKS

# AdamW, per parameter: moments 7, their corrections 2, step 5, weight decay 3, update 1, norm of the gradient 2.
OPTIMIZER_OPERATIONS = 20


def least_operations(config: Config) -> dict[str, int]:
    """The fewest operations of a training step, term by term.

    Counts the operations of matrix products, where a multiplication and an addition are two, and of the optimizer. The
    rest (layer norms, softmaxes, GELU) is not counted: it grows with D, not with D². The backward pass of a product
    takes two more products, one for each factor, or one if only one of them needs a gradient. In the forward pass, with
    P = B · (1 + T) pictures, X tokens in the encoder's blocks, M = T · L tokens of a video, patches of p · p pixels,
    MLPs of F = 16 · D² operations per token (other widths and gates change that), K candidates and C attention maps:

        patches               P · 2 · N · 3p² · D, and backward only for the weights
        encoder               P · layers · (8 · X · D² + X · F + 4 · X² · D), all tokens, since PMD takes them
        pooling by attention  P · (4 · D² + 4 · N · D² + 4 · N · D + F), without it 0
        features              P · 2 · D · E, without a projection 0
        contrast              B² · 2 · E, which serves both directions and the choice of negatives
        self attention        per image, in the second pair of blocks and later per candidate:
                              2 · (U + 2L) · D² + 4 · U · L · D + U · (2 · D² + F), where U tokens are updated
        queries               per U of these: 2 · D², in the first pair once per image
        keys and values       per video and pair: 4 · M · D²
        scores                per candidate: 2 · U · M · D
        sums of values        per candidate: 2 · V · M · D, where V tokens go on
        output and MLP        per candidate: V · (2 · D² + F)
        match                 per candidate: 2 · D² + 2 · D
        PFR's convolutions    per image: 2 · L · M · (C · C/2 + C/2)
        PFR's reconstruction  per image: 2 · L · M · D, and backward only for the weights
        optimizer             20 per parameter

    In the last pair only CLS goes on, V = 1, and U = 1 but for an image's own video, where PFR wants the maps of all L
    tokens; in earlier pairs U = V = L. Aggregations with parameters are not counted.

    Raises:
        ConfigError: the encoder is no vision transformer of single pictures.
    """
    model, parts = config.model, TASKS[config.task].model(config)
    batch, tokens, width = config.data.batch_size, model.num_tokens, model.width
    pictures, memory = batch * (1 + config.data.num_frames), config.data.num_frames * tokens

    learning, weights_learning = (
        {name: pictures * count for name, count in counts.items()} for counts in encoder_operations(config)
    )
    pmd = parts.pmd
    learning["contrast"] = batch**2 * 2 * model.embed_dim
    parameters = encoder_parameters(model)
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
                    "self attention": sum(block_operations(model, tokens, updated) for updated in queries),
                    "queries": sum(queries) * 2 * width**2,
                    "keys and values": 4 * memory * width**2,
                    "scores": sum(looking) * 2 * memory * width,
                    "sums of values": sum(going_on) * 2 * memory * width,
                    "output and MLP": sum(going_on) * output_operations(model),
                }
            )
        learning |= {name: batch * sum(pair[name] for pair in pairs) for name in pairs[0]}
        learning["match"] = batch * candidates * (2 * width**2 + 2 * width)
        parameters += pmd.num_pairs * 2 * block_parameters(model) + width**2
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
    """Operations of encoding one picture in the forward pass: all, and those whose input needs no gradient.

    Raises:
        ConfigError: the encoder is no vision transformer of single pictures.
    """
    model = config.model
    if model.architecture != "vit":
        raise ConfigError(
            f"config.model.architecture: found {model.architecture!r}, expected 'vit': the fewest operations of other "
            "encoders are not counted"
        )
    tokens = model.num_patches + model.class_token + model.registers
    counts = {"encoder": model.layers * block_operations(model, tokens, tokens)}
    if model.pooling == "attention":
        counts["pooling by attention"] = _pooling_operations(model)
    if model.projection:
        counts["features"] = 2 * model.width * model.embed_dim
    return counts, {"patches": 2 * model.num_patches * 3 * model.patch_size**2 * model.width}


def block_operations(model: VitConfig, tokens: int, updated: int) -> int:
    """Operations of one block on one picture in the forward pass, if `updated` of its `tokens` are updated."""
    attention = 2 * (updated + 2 * tokens) * model.width**2 + 4 * updated * tokens * model.width
    return attention + updated * output_operations(model)


def output_operations(model: VitConfig) -> int:
    """Operations on a token after attention in the forward pass: the output's projection and the MLP."""
    return 2 * model.width**2 + _mlp_operations(model)


def block_parameters(model: VitConfig) -> int:
    """Numbers in the matrices of a block."""
    return 4 * model.width**2 + _mlp_operations(model) // 2


def encoder_parameters(model: VitConfig) -> int:
    """Numbers in the matrices and tables of an encoder."""
    patches, width = 3 * model.patch_size**2 * model.width, model.width
    positions = (model.num_patches + model.class_token) * width if model.positions == "learned" else 0
    pooling = block_parameters(model) if model.pooling == "attention" else 0
    projection = width * model.embed_dim if model.projection else 0
    return patches + positions + model.layers * block_parameters(model) + pooling + projection


def _mlp_operations(model: VitConfig) -> int:
    """Operations of an MLP on a token in the forward pass; a gate is one more product."""
    return 2 * (2 + model.gated_mlp) * model.width * model.mlp_width


def _pooling_operations(model: VitConfig) -> int:
    """Operations by which one learned query attends to a picture's patches in the forward pass."""
    patches, width = model.num_patches, model.width
    return 2 * (1 + 2 * patches) * width**2 + 4 * patches * width + output_operations(model)
