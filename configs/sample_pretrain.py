"""The sample's encoder from nothing, in three stages that each start from the one before: close, near and far.

    python -m rice_jax.main --config=configs/sample_pretrain.py:close --workdir=runs/close --config.data.data_dir=DATA
    python -m rice_jax.main --config=configs/sample_pretrain.py:near --workdir=runs/near --config.model.init_from=runs/close …
    python -m rice_jax.main --config=configs/sample_pretrain.py:far --workdir=runs/far --config.model.init_from=runs/near …

The exact commands, their data and their results stand in `data/sample/encoder/README.md`. Hardware: 2 CPU cores.
"""  # noqa: E501

from configs import sample


def get_config(stage: str = "close"):
    """Settings of a stage.

    A small vision transformer does not learn from cluttered frames at once: its loss stays at that of chance. It does
    from windows that hold little but the product (`close`), then from windows of any size around it (`near`), then from
    whole frames of whole clips, as they are evaluated (`far`).
    """
    config = sample.get_config()
    config.data.cut_tail = False
    config.data.random_frames = True
    config.data.image_crop_min_area = 0.5
    config.data.color_jitter = 0.2
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.encoder_learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    if stage == "far":
        config.data.num_frames = 4
        config.data.frame_crop_min_area = 0.5
        config.train.total_steps = 3_000
        return config
    config.data.num_frames = 1
    config.data.boxed_frames = True
    config.data.crop_around_box = True
    if stage == "near":
        config.data.frame_crop_min_area = 0.02
        config.train.total_steps = 4_000
    elif stage == "close":
        config.data.frame_crop_min_area = 0.01
        config.data.frame_crop_max_area = 0.02
        config.train.total_steps = 600
    else:
        raise ValueError(f"stage {stage!r}: expected close, near or far")
    return config
