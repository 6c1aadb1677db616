"""Which tensor of OpenAI's and Hugging Face's CLIP is which parameter of `Vit`, and how each lies in memory."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor of PyTorch lies in memory, and how ours does."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _patches_to_conv(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


_SAME = Layout(lambda x: x, lambda x: x)
_TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
# [D, 3, rows, columns] <-> [rows * columns * 3, D]
_CONV = Layout(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patches_to_conv)

# Our path: (layout, their names). Several names are parts of one tensor of ours, in order, along its output axis.
# {} is the number of the block, which is the first axis of our tensor.
OPENAI = {
    "patch_embedding/kernel": (_CONV, ["conv1.weight"]),
    "class_embedding": (_SAME, ["class_embedding"]),
    "position_embedding": (_SAME, ["positional_embedding"]),
    "ln_pre/scale": (_SAME, ["ln_pre.weight"]),
    "ln_pre/bias": (_SAME, ["ln_pre.bias"]),
    "blocks/ln_1/scale": (_SAME, ["transformer.resblocks.{}.ln_1.weight"]),
    "blocks/ln_1/bias": (_SAME, ["transformer.resblocks.{}.ln_1.bias"]),
    "blocks/qkv/kernel": (_TRANSPOSED, ["transformer.resblocks.{}.attn.in_proj_weight"]),
    "blocks/qkv/bias": (_SAME, ["transformer.resblocks.{}.attn.in_proj_bias"]),
    "blocks/out/kernel": (_TRANSPOSED, ["transformer.resblocks.{}.attn.out_proj.weight"]),
    "blocks/out/bias": (_SAME, ["transformer.resblocks.{}.attn.out_proj.bias"]),
    "blocks/ln_2/scale": (_SAME, ["transformer.resblocks.{}.ln_2.weight"]),
    "blocks/ln_2/bias": (_SAME, ["transformer.resblocks.{}.ln_2.bias"]),
    "blocks/up/kernel": (_TRANSPOSED, ["transformer.resblocks.{}.mlp.c_fc.weight"]),
    "blocks/up/bias": (_SAME, ["transformer.resblocks.{}.mlp.c_fc.bias"]),
    "blocks/down/kernel": (_TRANSPOSED, ["transformer.resblocks.{}.mlp.c_proj.weight"]),
    "blocks/down/bias": (_SAME, ["transformer.resblocks.{}.mlp.c_proj.bias"]),
    "ln_post/scale": (_SAME, ["ln_post.weight"]),
    "ln_post/bias": (_SAME, ["ln_post.bias"]),
    "projection/kernel": (_SAME, ["proj"]),
}
OPENAI = {path: (layout, [f"visual.{name}" for name in names]) for path, (layout, names) in OPENAI.items()}
OPENAI_IGNORED = re.compile(
    r"positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..*|input_resolution|context_length|vocab_size"
)

_LAYER = "vision_model.encoder.layers.{}"
HUGGING_FACE = {
    "patch_embedding/kernel": (_CONV, ["vision_model.embeddings.patch_embedding.weight"]),
    "class_embedding": (_SAME, ["vision_model.embeddings.class_embedding"]),
    "position_embedding": (_SAME, ["vision_model.embeddings.position_embedding.weight"]),
    "ln_pre/scale": (_SAME, ["vision_model.pre_layrnorm.weight"]),  # spelt so
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
# What a `config.json` that does not say otherwise means: the defaults of transformers' CLIPVisionConfig.
HUGGING_FACE_DEFAULTS = {
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
