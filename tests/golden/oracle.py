"""The reference's losses in plain float64 numpy, with its names, for sizes that were not recorded.

Independent of the package and of the kind that is easy to check by eye: no batching tricks, nothing left out.
Source: the sidecars' `out_doc` and the papers' equations; `test_golden.py` holds it against the recordings.
"""

import json
from pathlib import Path

import numpy as np

from tests.golden import recipe

ENCODER = "image_encoder.model."
DECODER = "transformer.transformer."
NUM_NEGATIVES = 3


def write_case(path: Path, config: dict, gradients: tuple[str, ...] = ()) -> None:
    """Writes CASE.npz and CASE.json in the recordings' format.

    Args:
        path: of the npz.
        config: sizes and seed, as the sidecars' `config`; without `store_weights` the recipe has to make the rest.
        gradients: names of the decoder's or the reconstruction head's parameters, whose gradients are recorded too.
    """
    weights, pictures = recipe.weights(shapes(config), config), recipe.inputs(config)
    arrays = {f"out/{name}": value for name, value in outputs(weights, *pictures, config).items()}
    arrays |= {f"grad/{name}": gradient(weights, name, pictures, config) for name in gradients}
    if config["store_weights"]:
        arrays |= {f"params/{name}": value for name, value in weights.items()}
        arrays |= dict(zip(("in/image", "in/video", "in/video_temporal_mask"), pictures, strict=True))
    else:
        path.with_name("recipe.py").write_text(Path(recipe.__file__).read_text())
    np.savez(path, **{key: x if x.dtype.kind == "i" else x.astype(np.float32) for key, x in arrays.items()})
    path.with_suffix(".json").write_text(json.dumps({"config": config, "param_shapes": shapes(config)}))


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Of all the reference's parameters, those that nothing uses too."""
    width, patch, maps = config["width"], config["patch"], config["pmd_layers"] * config["pmd_heads"]
    tokens = (config["image"] // patch) ** 2 + 1
    norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}  # noqa: E731
    found = {
        f"{ENCODER}class_embedding": (width,),
        f"{ENCODER}positional_embedding": (tokens, width),
        f"{ENCODER}conv1.weight": (width, 3, patch, patch),
        f"{ENCODER}proj": (width, config["embed"]),
        **norm(f"{ENCODER}ln_pre"),
        **norm(f"{ENCODER}ln_post"),
        f"{DECODER}embeddings.class_embedding": (width,),
        f"{DECODER}embeddings.position_embedding.weight": (tokens, width),
        **norm(f"{DECODER}embeddings.layer_norm"),
        **norm(f"{DECODER}pooler.layer_norm"),
        f"{DECODER}pooler.dense.weight": (width, width),
        "transformer.heads.vim.weight": (1, width),
        "transformer.heads.rec.0.weight": (maps // 2, maps, 1, 1),
        "transformer.heads.rec.0.bias": (maps // 2,),
        "transformer.heads.rec.2.weight": (1, maps // 2, 1, 1),
        "transformer.heads.rec.2.bias": (1,),
        "transformer.logit_scale": (),
    }
    blocks = [f"{ENCODER}transformer.resblocks.{i}." for i in range(config["layers"])]
    blocks += [f"{DECODER}transformer.layers.{i}." for i in range(2 * config["pmd_layers"])]
    for block in blocks:
        found |= norm(f"{block}ln_1") | norm(f"{block}ln_2")
        for name, size in {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (4 * width, width),
            "mlp.c_proj.": (width, 4 * width),
        }.items():
            found |= {f"{block}{name}weight": size, f"{block}{name}bias": size[:1]}
    return found


def outputs(weights: dict, image, video, frame_mask, config: dict) -> dict[str, np.ndarray]:
    """Everything that a recording has under `out/`."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    batch, frames = frame_mask.shape
    image_patch, image_features = encode(w, image, config)
    video_patch, frame_features = encode(w, video.reshape(-1, *video.shape[2:]), config)
    video_patch = video_patch.reshape(batch, frames, *video_patch.shape[1:])
    frame_features = frame_features.reshape(batch, frames, -1)

    image_embeddings = unit(image_features)
    kept = frame_mask[..., None] / frame_mask.sum(axis=1)[:, None, None]
    video_embeddings = unit((frame_features * kept).sum(axis=1))
    correlations = image_embeddings @ video_embeddings.T
    logits = w["transformer.logit_scale"] ** 2 * correlations
    vic_loss = -np.mean([np.diag(log_softmax(x)).mean() for x in (logits, logits.T)])

    others = np.where(np.eye(batch, dtype=bool), np.inf, -correlations)
    negatives = np.argsort(others, axis=1, kind="stable")[:, :NUM_NEGATIVES]
    candidates = np.concatenate([np.arange(batch)[:, None], negatives], axis=1)  # [B, K]
    token_mask = np.repeat(frame_mask.astype(bool), image_patch.shape[1], axis=1)  # [B, M]
    tokens = video_patch.reshape(*token_mask.shape, -1)
    decoded = [decode(w, image_patch, tokens[other], token_mask[other], config) for other in candidates.T]
    pooled = np.stack([pool(w, hidden) for hidden, _, _ in decoded], axis=1)
    vim_logits = 10 * unit(pooled) @ unit(w["transformer.heads.vim.weight"][0])
    vim_loss = -log_softmax(vim_logits)[:, 0].mean()

    hidden, self_attention, attention = decoded[0]
    attention = attention * (config["width"] / config["pmd_heads"]) ** 0.5
    scores = attention
    for layer in (0, 2):
        kernel, bias = (w[f"transformer.heads.rec.{layer}.{kind}"] for kind in ("weight", "bias"))
        scores = np.einsum("oc,bclm->bolm", kernel[:, :, 0, 0], scores) + bias[:, None, None]
        scores = np.maximum(scores, 0)
    attention_map = np.exp(log_softmax(scores[:, 0]))
    reconstruction = attention_map @ (tokens * token_mask[..., None])
    rec_loss = np.mean((reconstruction - image_patch) ** 2)
    return {
        "image_features": image_features,
        "frame_features": frame_features,
        "image_patch": image_patch,
        "video_patch": video_patch,
        "image_embeddings": image_embeddings,
        "video_embeddings": video_embeddings,
        "vic_loss": vic_loss,
        "correlations": correlations,
        "hard_neg_index": negatives,
        "vim_pooled": pooled,
        "vim_logits": vim_logits,
        "vim_loss": vim_loss,
        "pos_cross_attn": attention,
        "pos_self_attn_mean": self_attention,
        "rec_cross_attn": attention,
        "pmd_last_hidden_pos": hidden,
        "rec_conv_out": scores[:, 0],
        "rec_attention_map": attention_map,
        "rec_pad_mass": (attention_map * ~token_mask[:, None]).sum(axis=2).mean(axis=1),
        "reconstruction": reconstruction,
        "rec_loss": rec_loss,
        "total_loss": vic_loss + vim_loss + rec_loss,
    }


def gradient(weights: dict, name: str, pictures: tuple, config: dict, step: float = 1e-5) -> np.ndarray:
    """Of the total loss by central differences; not for the encoder, from which losses hide some of its effect."""
    assert not name.startswith(ENCODER)
    slopes = np.zeros(weights[name].shape)
    for index in np.ndindex(slopes.shape):
        for sign in (1, -1):
            moved = weights[name].astype(np.float64)
            moved[index] += sign * step
            slopes[index] += sign * outputs(weights | {name: moved}, *pictures, config)["total_loss"] / (2 * step)
    return slopes


def encode(w: dict, pictures, config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, L, D] and features [N, E] of pictures [N, 3, S, S]."""
    patch, grid = config["patch"], config["image"] // config["patch"]
    x = pictures.reshape(-1, 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5)
    x = x.reshape(len(pictures), grid * grid, -1) @ w[f"{ENCODER}conv1.weight"].reshape(config["width"], -1).T
    cls = np.broadcast_to(w[f"{ENCODER}class_embedding"], (len(x), 1, x.shape[2]))
    x = np.concatenate([cls, x], axis=1) + w[f"{ENCODER}positional_embedding"]
    x = layer_norm(w, f"{ENCODER}ln_pre", x)
    for i in range(config["layers"]):
        x, _ = block(w, f"{ENCODER}transformer.resblocks.{i}.", x, config["clip_heads"])
    return x, layer_norm(w, f"{ENCODER}ln_post", x[:, 0]) @ w[f"{ENCODER}proj"]


def decode(w: dict, x, tokens, token_mask, config: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states [B, L, D], mean self attention [B, pairs, L, L] and cross attention [B, pairs · heads, L, M]."""
    heads, self_maps, cross_maps = config["pmd_heads"], [], []
    for pair in range(config["pmd_layers"]):
        names = [f"{DECODER}transformer.layers.{2 * pair + i}." for i in (0, 1)]
        x, self_map = block(w, names[0], x, heads, epsilon=1e-12)
        x, cross_map = block(w, names[1], x, heads, memory=tokens, mask=token_mask)
        self_maps.append(self_map.mean(axis=1))
        cross_maps.append(cross_map)
    return x, np.stack(self_maps, axis=1), np.concatenate(cross_maps, axis=1)


def pool(w: dict, hidden) -> np.ndarray:
    normed = layer_norm(w, f"{DECODER}pooler.layer_norm", hidden[:, 0])
    return np.maximum(normed @ w[f"{DECODER}pooler.dense.weight"].T, 0)


def block(w: dict, name: str, x, heads: int, epsilon=1e-5, memory=None, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Attention to itself, or to a memory that is not normalized, and an MLP; the new x and the attention."""
    normed = layer_norm(w, f"{name}ln_1", x, epsilon)
    kernels, biases = (np.split(w[f"{name}attn.in_proj_{kind}"], 3) for kind in ("weight", "bias"))
    sources = (normed, normed, normed) if memory is None else (normed, memory, memory)
    queries, keys, values = (
        (source @ kernel.T + bias).reshape(*source.shape[:2], heads, -1).swapaxes(1, 2)
        for source, kernel, bias in zip(sources, kernels, biases, strict=True)
    )
    scores = queries @ keys.swapaxes(2, 3) / keys.shape[-1] ** 0.5
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    attention = np.exp(log_softmax(scores))
    x = x + dense(w, f"{name}attn.out_proj", (attention @ values).swapaxes(1, 2).reshape(x.shape))
    hidden = dense(w, f"{name}mlp.c_fc", layer_norm(w, f"{name}ln_2", x, epsilon))
    return x + dense(w, f"{name}mlp.c_proj", hidden / (1 + np.exp(-1.702 * hidden))), attention


def dense(w: dict, name: str, x) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: dict, name: str, x, epsilon: float = 1e-5) -> np.ndarray:
    normed = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return normed * w[f"{name}.weight"] + w[f"{name}.bias"]


def log_softmax(x) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def unit(x) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
