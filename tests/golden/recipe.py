"""Numpy recipes behind the golden files: the weights and inputs of a case, reproduced bit for bit.

Only numpy is needed. `base.npz` stores no weights and no inputs (they are large): rebuild them here.
The other cases store both, and the recipes reproduce them exactly.
"""

import math

import numpy as np


def param(name, shape, i, config):
    """float32 value of the i-th name of sorted(all reference parameter names)."""
    z = np.random.default_rng([config["seed"], i]).standard_normal(tuple(shape))
    if name.endswith("logit_scale"):
        v = np.full(shape, config["logit_scale"])
    elif ".heads.rec." in name:
        ones = config["rec_init"] == "ones"
        if name.endswith("weight"):
            v = np.ones(shape) if ones else (1 + 0.3 * z) / shape[1]
        else:
            v = np.zeros(shape) if ones else 0.05 * z
    elif name.endswith(("class_embedding", "positional_embedding", "position_embedding.weight")):
        v = 0.2 * z
    elif name.endswith("conv1.weight"):
        v = z / math.sqrt(3 * config["patch"] ** 2)
    elif len(shape) == 1:
        v = 0.05 * z if name.endswith("bias") else 1 + 0.1 * z
    elif name.endswith("in_proj_weight"):
        v = 1.5 * z / math.sqrt(shape[1])
    elif name.endswith("model.proj"):
        v = z / math.sqrt(shape[0])
    else:
        v = z / math.sqrt(shape[1])
    return np.asarray(v, np.float64).astype(np.float32)


def weights(shapes, config):
    """{reference name: shape} (the sidecar's `param_shapes`) -> {reference name: float32 array}."""
    return {name: param(name, shapes[name], i, config) for i, name in enumerate(sorted(shapes))}


def inputs(config):
    """-> image [B, 3, S, S] f32, video [B, F, 3, S, S] f32, frame mask [B, F] int64 (1 = real frame)."""
    B, F, S = config["B"], config["F"], config["image"]
    rng = np.random.default_rng([config["seed"], 10**6])

    def up(x):
        return np.repeat(np.repeat(x, S // 4, axis=-2), S // 4, axis=-1)

    base = up(rng.standard_normal((B, 3, 4, 4)))
    image = 0.8 * base + 0.6 * rng.standard_normal((B, 3, S, S))
    frames = up(rng.standard_normal((B, F, 3, 4, 4)))
    video = 0.6 * base[:, None] + 0.6 * frames + 0.5 * rng.standard_normal((B, F, 3, S, S))
    padding = 1.5 * rng.standard_normal((B, F, 3, S, S))
    mask = (np.arange(F)[None] < np.asarray(config["n_valid"])[:, None]).astype(np.int64)
    pad = 0.0 if config["pad"] == "zeros" else padding
    video = np.where(mask[:, :, None, None, None] == 1, video, pad)
    return image.astype(np.float32), video.astype(np.float32), mask
