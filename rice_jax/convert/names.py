"""Tables that map our parameters to the tensors of OpenAI's and Hugging Face's CLIP and of the reference's RICE."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """Converts a tensor between PyTorch's layout and ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _patches_to_conv(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


_SAME = Layout(lambda x: x, lambda x: x)
_TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
# [D, 3, rows, columns] <-> [rows * columns * 3, D]
_CONV = Layout(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patches_to_conv)
_CONV_1X1 = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # [out, in, 1, 1] <-> [in, out]
_ROW = Layout(lambda x: x[0], lambda x: x[None])  # [1, D] <-> [D]

Table = dict[str, tuple[Layout, list[str]]]


def _prefixed(table: Table, ours: str, theirs: str) -> Table:
    return {ours + path: (layout, [theirs + name for name in names]) for path, (layout, names) in table.items()}


# {our path: (layout, their names)}. Several names are parts of one tensor of ours, in order, along its output axis.
# A path through blocks/ is of a tensor whose first axis is the block, of number i; in their names, {} is i, {even} is
# 2 * i, {odd} is 2 * i + 1.
_BLOCK = {
    "ln_1/scale": (_SAME, ["ln_1.weight"]),
    "ln_1/bias": (_SAME, ["ln_1.bias"]),
    "qkv/kernel": (_TRANSPOSED, ["attn.in_proj_weight"]),
    "qkv/bias": (_SAME, ["attn.in_proj_bias"]),
    "out/kernel": (_TRANSPOSED, ["attn.out_proj.weight"]),
    "out/bias": (_SAME, ["attn.out_proj.bias"]),
    "ln_2/scale": (_SAME, ["ln_2.weight"]),
    "ln_2/bias": (_SAME, ["ln_2.bias"]),
    "up/kernel": (_TRANSPOSED, ["mlp.c_fc.weight"]),
    "up/bias": (_SAME, ["mlp.c_fc.bias"]),
    "down/kernel": (_TRANSPOSED, ["mlp.c_proj.weight"]),
    "down/bias": (_SAME, ["mlp.c_proj.bias"]),
}
_VISION_TRANSFORMER = {
    "patch_embedding/kernel": (_CONV, ["conv1.weight"]),
    "class_embedding": (_SAME, ["class_embedding"]),
    "position_embedding": (_SAME, ["positional_embedding"]),
    "ln_pre/scale": (_SAME, ["ln_pre.weight"]),
    "ln_pre/bias": (_SAME, ["ln_pre.bias"]),
    **_prefixed(_BLOCK, "blocks/", "transformer.resblocks.{}."),
    "ln_post/scale": (_SAME, ["ln_post.weight"]),
    "ln_post/bias": (_SAME, ["ln_post.bias"]),
    "projection/kernel": (_SAME, ["proj"]),
}
OPENAI = _prefixed(_VISION_TRANSFORMER, "", "visual.")
OPENAI_IGNORED = re.compile(
    r"positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..*|input_resolution|context_length|vocab_size"
)

_LAYER = "vision_model.encoder.layers.{}"
HUGGING_FACE = {
    "patch_embedding/kernel": (_CONV, ["vision_model.embeddings.patch_embedding.weight"]),
    "class_embedding": (_SAME, ["vision_model.embeddings.class_embedding"]),
    "position_embedding": (_SAME, ["vision_model.embeddings.position_embedding.weight"]),
    "ln_pre/scale": (_SAME, ["vision_model.pre_layrnorm.weight"]),  # misspelled by transformers
    "ln_pre/bias": (_SAME, ["vision_model.pre_layrnorm.bias"]),
    "blocks/ln_1/scale": (_SAME, [f"{_LAYER}.layer_norm1.weight"]),
    "blocks/ln_1/bias": (_SAME, [f"{_LAYER}.layer_norm1.bias"]),
    "blocks/qkv/kernel": (_TRANSPOSED, [f"{_LAYER}.self_attn.{part}_proj.weight" for part in "qkv"]),
    "blocks/qkv/bias": (_SAME, [f"{_LAYER}.self_attn.{part}_proj.bias" for part in "qkv"]),
    "blocks/out/kernel": (_TRANSPOSED, [f"{_LAYER}.self_attn.out_proj.weight"]),
    "blocks/out/bias": (_SAME, [f"{_LAYER}.self_attn.out_proj.bias"]),
    "blocks/ln_2/scale": (_SAME, [f"{_LAYER}.layer_norm2.weight"]),
    "blocks/ln_2/bias": (_SAME, [f"{_LAYER}.layer_norm2.bias"]),
    "blocks/up/kernel": (_TRANSPOSED, [f"{_LAYER}.mlp.fc1.weight"]),
    "blocks/up/bias": (_SAME, [f"{_LAYER}.mlp.fc1.bias"]),
    "blocks/down/kernel": (_TRANSPOSED, [f"{_LAYER}.mlp.fc2.weight"]),
    "blocks/down/bias": (_SAME, [f"{_LAYER}.mlp.fc2.bias"]),
    "ln_post/scale": (_SAME, ["vision_model.post_layernorm.weight"]),
    "ln_post/bias": (_SAME, ["vision_model.post_layernorm.bias"]),
    "projection/kernel": (_TRANSPOSED, ["visual_projection.weight"]),
}
HUGGING_FACE_IGNORED = re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|vision_model\.embeddings\.position_ids"
)
# The defaults of transformers' CLIPVisionConfig, for settings that a `config.json` leaves out.
HUGGING_FACE_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 512,
    "intermediate_size": 3072,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

REFERENCE = {
    **_prefixed(_VISION_TRANSFORMER, "encoder/", "image_encoder.model."),
    "logit_scale": (_SAME, ["transformer.logit_scale"]),
    **_prefixed(_BLOCK, "pmd/self_blocks/", "transformer.transformer.transformer.layers.{even}."),
    **_prefixed(_BLOCK, "pmd/cross_blocks/", "transformer.transformer.transformer.layers.{odd}."),
    "pmd/ln_pool/scale": (_SAME, ["transformer.transformer.pooler.layer_norm.weight"]),
    "pmd/ln_pool/bias": (_SAME, ["transformer.transformer.pooler.layer_norm.bias"]),
    "pmd/pool/kernel": (_TRANSPOSED, ["transformer.transformer.pooler.dense.weight"]),
    "pmd/match_vector": (_ROW, ["transformer.heads.vim.weight"]),
    "pfr/conv_1/kernel": (_CONV_1X1, ["transformer.heads.rec.0.weight"]),
    "pfr/conv_1/bias": (_SAME, ["transformer.heads.rec.0.bias"]),
    "pfr/conv_2/kernel": (_CONV_1X1, ["transformer.heads.rec.2.weight"]),
    "pfr/conv_2/bias": (_SAME, ["transformer.heads.rec.2.bias"]),
}
REFERENCE_IGNORED = re.compile(r"transformer\.transformer\.embeddings\..*")  # declared, but used by no forward pass
