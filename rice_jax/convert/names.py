"""Tables that map our parameters to the tensors of OpenAI's, Hugging Face's and timm's models and of the reference."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

# {transformers' name of an activation: ours}
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}
HIDDEN_ACT = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


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
_ROW = Layout(lambda x: x[0], lambda x: x[None])  # [1, D] <-> [D], or [1, L, D] <-> [L, D]
_TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])  # [1, 1, D] <-> [D]

Table = dict[str, tuple[Layout, list[str]]]


def prefixed(table: Table, ours: str, theirs: str) -> Table:
    """The table of a part of a model, for the whole."""
    return {ours + path: (layout, [theirs + name for name in names]) for path, (layout, names) in table.items()}


def _linear(ours: str, *theirs: str) -> Table:
    """A linear layer, whose outputs may be those of several of theirs, in order."""
    return {
        f"{ours}/kernel": (_TRANSPOSED, [f"{name}.weight" for name in theirs]),
        f"{ours}/bias": (_SAME, [f"{name}.bias" for name in theirs]),
    }


def _norm(ours: str, theirs: str) -> Table:
    return {f"{ours}/scale": (_SAME, [f"{theirs}.weight"]), f"{ours}/bias": (_SAME, [f"{theirs}.bias"])}


def _patches(theirs: str) -> Table:
    return {
        "patch_embedding/kernel": (_CONV, [f"{theirs}.weight"]),
        "patch_embedding/bias": (_SAME, [f"{theirs}.bias"]),
    }


# {our path: (layout, their names)}. Several names are parts of one tensor of ours, in order, along its output axis.
# A table lists all parameters that a model of the family may have; those of a certain model are a part of them. Names
# with braces are of a tensor of ours whose first axis is the block, of number i: {} is i, {even} is 2 * i, {odd} is
# 2 * i + 1.
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
    **prefixed(_BLOCK, "blocks/", "transformer.resblocks.{}."),
    "ln_post/scale": (_SAME, ["ln_post.weight"]),
    "ln_post/bias": (_SAME, ["ln_post.bias"]),
    "projection/kernel": (_SAME, ["proj"]),
}
OPENAI = prefixed(_VISION_TRANSFORMER, "", "visual.")
OPEN_CLIP = OPENAI | {
    "blocks/scale_1": (_SAME, ["visual.transformer.resblocks.{}.ls_1.gamma"]),
    "blocks/scale_2": (_SAME, ["visual.transformer.resblocks.{}.ls_2.gamma"]),
}
# X-CLIP's own names, which COPE has too.
XCLIP_OWN = OPENAI | {
    **_linear("blocks/message/dense", "visual.transformer.resblocks.{}.message_fc"),
    **_norm("blocks/message/ln_1", "visual.transformer.resblocks.{}.message_ln"),
    "blocks/message/qkv/kernel": (_TRANSPOSED, ["visual.transformer.resblocks.{}.message_attn.in_proj_weight"]),
    "blocks/message/qkv/bias": (_SAME, ["visual.transformer.resblocks.{}.message_attn.in_proj_bias"]),
    **_linear("blocks/message/out", "visual.transformer.resblocks.{}.message_attn.out_proj"),
    "integration/position": (_ROW, ["mit.positional_embedding"]),
    **prefixed(_BLOCK, "integration/blocks/", "mit.resblocks.{}."),
}
OPENAI_IGNORED = re.compile(
    r"positional_embedding|text_projection|logit_scale|logit_bias|token_embedding\.weight|ln_final\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..*|input_resolution|context_length|vocab_size|attn_mask|text\..*"
)


_LAYER = "encoder.layers.{}"
_TOWER = {
    **_patches("embeddings.patch_embedding"),
    "class_embedding": (_SAME, ["embeddings.class_embedding"]),
    "position_embedding": (_SAME, ["embeddings.position_embedding.weight"]),
    **_norm("ln_pre", "pre_layrnorm"),  # misspelled by transformers
    **_norm("blocks/ln_1", f"{_LAYER}.layer_norm1"),
    **_linear("blocks/qkv", *(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv")),
    **_linear("blocks/out", f"{_LAYER}.self_attn.out_proj"),
    **_norm("blocks/ln_2", f"{_LAYER}.layer_norm2"),
    **_linear("blocks/up", f"{_LAYER}.mlp.fc1"),
    **_linear("blocks/down", f"{_LAYER}.mlp.fc2"),
    **_norm("ln_post", "post_layernorm"),
}
HUGGING_FACE = prefixed(_TOWER, "", "vision_model.") | {
    "projection/kernel": (_TRANSPOSED, ["visual_projection.weight"]),
}
HUGGING_FACE_IGNORED = re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|logit_bias|(vision_model\.)?embeddings\.position_ids"
)

XCLIP = prefixed(_TOWER, "", "vision_model.") | {
    **_norm("ln_pre", "vision_model.pre_layernorm"),
    **_linear("blocks/message/dense", f"vision_model.{_LAYER}.message_fc"),
    **_norm("blocks/message/ln_1", f"vision_model.{_LAYER}.message_ln"),
    **_linear("blocks/message/qkv", *(f"vision_model.{_LAYER}.message_attn.{part}_proj" for part in "qkv")),
    **_linear("blocks/message/out", f"vision_model.{_LAYER}.message_attn.out_proj"),
    "projection/kernel": (_TRANSPOSED, ["visual_projection.weight"]),
    "integration/position": (_ROW, ["mit.position_embedding"]),
    **{path: places for path, places in prefixed(_TOWER, "integration/", "mit.").items() if "/blocks/" in path},
}
XCLIP_IGNORED = re.compile(
    HUGGING_FACE_IGNORED.pattern + r"|prompts_(visual_layernorm|visual_projection|generator)(\..*)?"
)

SIGLIP = _TOWER | {
    "pool/probe": (_TOKEN, ["head.probe"]),
    "pool/qkv/kernel": (_TRANSPOSED, ["head.attention.in_proj_weight"]),
    "pool/qkv/bias": (_SAME, ["head.attention.in_proj_bias"]),
    **_linear("pool/out", "head.attention.out_proj"),
    **_norm("pool/ln", "head.layernorm"),
    **_linear("pool/up", "head.mlp.fc1"),
    **_linear("pool/down", "head.mlp.fc2"),
}

_LAYER = "visual.trunk.blocks.{}"
_POOL = "visual.trunk.attn_pool"
TIMM_SIGLIP = {
    **_patches("visual.trunk.patch_embed.proj"),
    "position_embedding": (_ROW, ["visual.trunk.pos_embed"]),
    **_norm("blocks/ln_1", f"{_LAYER}.norm1"),
    **_linear("blocks/qkv", f"{_LAYER}.attn.qkv"),
    **_linear("blocks/out", f"{_LAYER}.attn.proj"),
    **_norm("blocks/ln_2", f"{_LAYER}.norm2"),
    **_linear("blocks/up", f"{_LAYER}.mlp.fc1"),
    **_linear("blocks/down", f"{_LAYER}.mlp.fc2"),
    **_norm("ln_post", "visual.trunk.norm"),
    "pool/probe": (_TOKEN, [f"{_POOL}.latent"]),
    **_linear("pool/qkv", f"{_POOL}.qkv"),  # `q` and `kv` in the file
    **_linear("pool/out", f"{_POOL}.proj"),
    **_norm("pool/ln", f"{_POOL}.norm"),
    **_linear("pool/up", f"{_POOL}.mlp.fc1"),
    **_linear("pool/down", f"{_POOL}.mlp.fc2"),
}

_LAYER = "encoder.layer.{}"
DINOV2 = {
    **_patches("embeddings.patch_embeddings.projection"),
    "class_embedding": (_TOKEN, ["embeddings.cls_token"]),
    "position_embedding": (_ROW, ["embeddings.position_embeddings"]),
    "registers": (_ROW, ["embeddings.register_tokens"]),
    **_norm("blocks/ln_1", f"{_LAYER}.norm1"),
    **_linear("blocks/qkv", *(f"{_LAYER}.attention.attention.{part}" for part in ("query", "key", "value"))),
    **_linear("blocks/out", f"{_LAYER}.attention.output.dense"),
    **_norm("blocks/ln_2", f"{_LAYER}.norm2"),
    **_linear("blocks/up", f"{_LAYER}.mlp.fc1"),
    **_linear("blocks/down", f"{_LAYER}.mlp.fc2"),
    "blocks/scale_1": (_SAME, [f"{_LAYER}.layer_scale1.lambda1"]),
    "blocks/scale_2": (_SAME, [f"{_LAYER}.layer_scale2.lambda1"]),
    **_norm("ln_post", "layernorm"),
}
DINOV2_GATED = _linear("blocks/up", f"{_LAYER}.mlp.weights_in") | _linear("blocks/down", f"{_LAYER}.mlp.weights_out")

_LAYER = "layer.{}"
DINOV3 = {
    **_patches("embeddings.patch_embeddings"),
    "class_embedding": (_TOKEN, ["embeddings.cls_token"]),
    "registers": (_ROW, ["embeddings.register_tokens"]),
    **_norm("blocks/ln_1", f"{_LAYER}.norm1"),
    **_linear("blocks/qkv", *(f"{_LAYER}.attention.{part}_proj" for part in "qkv")),
    "blocks/query_bias": (_SAME, [f"{_LAYER}.attention.q_proj.bias"]),
    "blocks/value_bias": (_SAME, [f"{_LAYER}.attention.v_proj.bias"]),
    **_linear("blocks/out", f"{_LAYER}.attention.o_proj"),
    **_norm("blocks/ln_2", f"{_LAYER}.norm2"),
    **_linear("blocks/up", f"{_LAYER}.mlp.up_proj"),
    **_linear("blocks/down", f"{_LAYER}.mlp.down_proj"),
    "blocks/scale_1": (_SAME, [f"{_LAYER}.layer_scale1.lambda1"]),
    "blocks/scale_2": (_SAME, [f"{_LAYER}.layer_scale2.lambda1"]),
    **_norm("ln_post", "norm"),
}
DINOV3_GATED = _linear("blocks/up", f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj")
DINO_IGNORED = re.compile(r"embeddings\.mask_token")  # takes the place of patches in their pretraining only

_LAYER = "encoder.layer.{}"
TIMESFORMER = {
    **_patches("embeddings.patch_embeddings.projection"),
    "class_embedding": (_TOKEN, ["embeddings.cls_token"]),
    "position_embedding": (_ROW, ["embeddings.position_embeddings"]),
    "time_embedding": (_ROW, ["embeddings.time_embeddings"]),
    **_norm("blocks/temporal/ln_1", f"{_LAYER}.temporal_layernorm"),
    **_linear("blocks/temporal/qkv", f"{_LAYER}.temporal_attention.attention.qkv"),
    **_linear("blocks/temporal/out", f"{_LAYER}.temporal_attention.output.dense"),
    **_linear("blocks/temporal/dense", f"{_LAYER}.temporal_dense"),
    **_norm("blocks/ln_1", f"{_LAYER}.layernorm_before"),
    **_linear("blocks/qkv", f"{_LAYER}.attention.attention.qkv"),
    **_linear("blocks/out", f"{_LAYER}.attention.output.dense"),
    **_norm("blocks/ln_2", f"{_LAYER}.layernorm_after"),
    **_linear("blocks/up", f"{_LAYER}.intermediate.dense"),
    **_linear("blocks/down", f"{_LAYER}.output.dense"),
    **_norm("ln_post", "layernorm"),
}
CLASSIFIER_IGNORED = re.compile(r"classifier\.(weight|bias)")

_LAYER = "blocks.{}"
_SWIN_STAGE = {
    **_norm("blocks/ln_1", f"{_LAYER}.layernorm_before"),
    **_linear("blocks/qkv", *(f"{_LAYER}.attention.self.{part}" for part in ("query", "key", "value"))),
    "blocks/position_bias": (_SAME, [f"{_LAYER}.attention.self.relative_position_bias_table"]),
    **_linear("blocks/out", f"{_LAYER}.attention.output.dense"),
    **_norm("blocks/ln_2", f"{_LAYER}.layernorm_after"),
    **_linear("blocks/up", f"{_LAYER}.intermediate.dense"),
    **_linear("blocks/down", f"{_LAYER}.output.dense"),
    **_norm("merge/ln", "downsample.norm"),
    "merge/reduce/kernel": (_TRANSPOSED, ["downsample.reduction.weight"]),
}


def swin(stages: int) -> Table:
    """The table of a Swin transformer with so many stages."""
    table = _patches("embeddings.patch_embeddings.projection")
    table |= _norm("ln_pre", "embeddings.norm") | _norm("ln_post", "layernorm")
    for number in range(stages):
        table |= prefixed(_SWIN_STAGE, f"stage_{number}/", f"encoder.layers.{number}.")
    return table


# Of its classifier and its pretraining, and what follows from the sizes.
SWIN_IGNORED = re.compile(
    r"(swin\.)?(encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.relative_position_index|embeddings\.mask_token)"
    r"|classifier\.(weight|bias)|decoder\..*"
)

_LAYER = "encoder.layer.{}"
_BERT = {
    "token_embedding/embedding": (_SAME, ["embeddings.word_embeddings.weight"]),
    "position_embedding": (_SAME, ["embeddings.position_embeddings.weight"]),
    "type_embedding": (_SAME, ["embeddings.token_type_embeddings.weight"]),
    **_norm("ln_embed", "embeddings.LayerNorm"),
    **_linear("blocks/qkv", *(f"{_LAYER}.attention.self.{part}" for part in ("query", "key", "value"))),
    **_linear("blocks/out", f"{_LAYER}.attention.output.dense"),
    **_norm("blocks/ln_1", f"{_LAYER}.attention.output.LayerNorm"),
    **_linear("blocks/up", f"{_LAYER}.intermediate.dense"),
    **_linear("blocks/down", f"{_LAYER}.output.dense"),
    **_norm("blocks/ln_2", f"{_LAYER}.output.LayerNorm"),
}
# Text towers, by the names that tell them apart.
BERT = _BERT | _linear("pooler", "pooler.dense")
CHINESE_CLIP_TEXT = prefixed(_BERT, "", "text_model.") | {
    "projection/kernel": (_TRANSPOSED, ["text_projection.weight"])
}
CHINESE_CLIP_TEXT_ORIGINAL = prefixed(_BERT, "", "bert.") | {"projection/kernel": (_SAME, ["text_projection"])}
_LAYER = "text_model.encoder.layers.{}"
CLIP_TEXT = {
    "token_embedding/embedding": (_SAME, ["text_model.embeddings.token_embedding.weight"]),
    "position_embedding": (_SAME, ["text_model.embeddings.position_embedding.weight"]),
    **_norm("blocks/ln_1", f"{_LAYER}.layer_norm1"),
    **_linear("blocks/qkv", *(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv")),
    **_linear("blocks/out", f"{_LAYER}.self_attn.out_proj"),
    **_norm("blocks/ln_2", f"{_LAYER}.layer_norm2"),
    **_linear("blocks/up", f"{_LAYER}.mlp.fc1"),
    **_linear("blocks/down", f"{_LAYER}.mlp.fc2"),
    **_norm("ln_final", "text_model.final_layer_norm"),
    "projection/kernel": (_TRANSPOSED, ["text_projection.weight"]),
}
OPENAI_TEXT = {
    "token_embedding/embedding": (_SAME, ["token_embedding.weight"]),
    "position_embedding": (_SAME, ["positional_embedding"]),
    **prefixed(_BLOCK, "blocks/", "transformer.resblocks.{}."),
    **_norm("ln_final", "ln_final"),
    "projection/kernel": (_SAME, ["text_projection"]),
}
# COPE's own names. `fc2` is in no forward pass, and a domain without text leaves out the projection.
COPE_HEADS = {"page": "item_fusion_model", "video": "photo_fusion_model", "live": "live_fusion_model"}
COPE = {
    **prefixed(XCLIP_OWN, "encoder/", "visual_encoder."),
    **prefixed(BERT, "text/", "text_encoder.bert_model."),
    "classes/embedding": (_SAME, ["spu_cls_model.weight"]),
}
for _domain, _head in COPE_HEADS.items():
    COPE |= _linear(f"{_domain}/text", f"{_head}.fc0") | _linear(f"{_domain}/visual", f"{_head}.fc1")
    COPE |= _linear(f"{_domain}/fusion", f"{_head}.attention_pooling.projection")
COPE_IGNORED = re.compile(r"\w+_fusion_model\.(fc2|attention_pooling\.projection)\.(weight|bias)")
# Of the vision tower, of BERT's pooler that Chinese-CLIP leaves out, and of BERT's pretraining.
TEXT_IGNORED = re.compile(
    r"(vision_model|visual)\..*|visual_projection\.weight|logit_scale|logit_bias|(.*\.)?position_ids|cls\..*"
    r"|(bert|text_model)\.pooler\..*|input_resolution|context_length|vocab_size|attn_mask"
)

REFERENCE = {
    **prefixed(_VISION_TRANSFORMER, "encoder/", "image_encoder.model."),
    "logit_scale": (_SAME, ["transformer.logit_scale"]),
    **prefixed(_BLOCK, "pmd/self_blocks/", "transformer.transformer.transformer.layers.{even}."),
    **prefixed(_BLOCK, "pmd/cross_blocks/", "transformer.transformer.transformer.layers.{odd}."),
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
