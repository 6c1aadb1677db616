"""The sample's encoder: blocks on top of MobileNetV2's convolutions (`head`), then with its later convolutions (`full`).

    python -m rice_jax.main --config=configs/sample_pretrain.py:head --workdir=runs/head
    python -m rice_jax.main --config=configs/sample_pretrain.py:full --workdir=runs/full --config.model.init_from=runs/head

`data/sample/encoder/README.md` has the commands that make the data and the weights to start from. Hardware: 2 CPU cores,
0.4 and 1.7 hours with other work beside them.
"""  # noqa: E501

from rice_jax.config import load_config


def get_config(stage: str = "head"):
    """Settings of a stage.

    The blocks are new, so they learn first (`head`), with a large learning rate that would spoil the convolutions. Then
    the convolutions from a stride of 8 on learn with them (`full`).
    """
    if stage not in ("head", "full"):
        raise ValueError(f"stage {stage!r}: expected head or full")
    config = load_config("sample_icl")
    config.data.data_dir = "data/built/clips"
    config.data.batch_size = 64
    config.data.num_frames = 2
    config.data.frame_crop_min_area = 0.3
    config.data.pair_hue = 0.1
    if stage == "head":
        config.model.init_from = "weights/start"
        config.optimizer.encoder_learning_rate = 1e-3
        config.optimizer.warmup_steps = 50
        config.train.total_steps = 300
    else:
        config.model.frozen_stages = 4
        config.optimizer.encoder_learning_rate = 2e-4
        config.optimizer.warmup_steps = 30
        config.train.total_steps = 700
    return config
