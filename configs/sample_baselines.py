"""RICE and the methods of the paper's comparison on the sample shop, in short runs that can be compared.

    scripts/baselines.sh

Each row has the same data, pictures of 96 px, four frames a clip, and 30 steps of 16 pairs. All but `swin`
start from the shipped encoder; `swin` starts from random weights. docs/baselines.md has the scores and says what
"-style" leaves out. Hardware: 2 CPU cores.
"""

from rice_jax.config import load_config

ROWS = ("icl", "all", "timesformer", "swin", "sgmn", "seam", "nvan", "fashionnet", "asymnet")


def get_config(row: str = "icl"):
    """Settings of a row."""
    if row not in ROWS:
        raise ValueError(f"row {row!r}: expected one of {', '.join(ROWS)}")
    config = load_config("sample_icl")
    config.data.data_dir = "data/built/baselines"
    config.data.batch_size = 16
    config.data.resize = 108
    config.model.image_size = 96
    config.optimizer.warmup_steps = 5
    config.train.total_steps = 30
    config.eval.num_frames = 4
    config.eval.batch_size = 64
    config.eval.pixels = False

    aggregation, attention = config.model.aggregation, config.model.aggregation.attention
    if row == "all":
        config.loss.pmd_weight = 1.0
    elif row == "timesformer":
        config.model.architecture = "timesformer"
        config.model.num_frames = 4
    elif row == "swin":
        _make_swin(config.model)
        config.optimizer.encoder_learning_rate = 5e-4
    elif row == "sgmn":
        aggregation.kind = "transformer"
        aggregation.transformer.differences = True
    elif row == "seam":
        aggregation.kind = "attention"
        attention.non_local = "relu"
        config.loss.kind = "sigmoid"
    elif row == "nvan":
        aggregation.kind = "attention"
        attention.non_local = "softmax"
        attention.pooling = "mean"
        config.loss.kind = "triplet"
    elif row == "fashionnet":
        aggregation.kind = "embeddings"
        config.loss.kind = "triplet"
    elif row == "asymnet":
        aggregation.kind = "attention"
        config.loss.kind = "sigmoid"
    return config


def _make_swin(model) -> None:
    """Swin-B's depths and heads' width, a quarter of its width, and windows that divide 96 px as 7 divides 224 px."""
    model.architecture = "swin"
    model.init_from = ""
    model.embed_dim = 128
    model.frozen_stages = 0
    model.swin.width = 32
    model.swin.depths = "2,2,18,2"
    model.swin.heads = "1,2,4,8"
    model.swin.window = 6
