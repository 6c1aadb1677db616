"""The sample's encoder from random weights, in four stages that each start from the last: close, near, far and wide.

    python -m rice_jax.main --config=configs/sample_pretrain.py:close --workdir=runs/close
    python -m rice_jax.main --config=configs/sample_pretrain.py:near --workdir=runs/near --config.model.init_from=runs/close
    python -m rice_jax.main --config=configs/sample_pretrain.py:far --workdir=runs/far --config.model.init_from=runs/near
    python -m rice_jax.main --config=configs/sample_pretrain.py:wide --workdir=runs/wide --config.model.init_from=runs/far

`data/sample/encoder/README.md` has the exact commands, their data and their results. Hardware: 2 CPU cores.
"""  # noqa: E501

from rice_jax.config import load_config


def get_config(stage: str = "close"):
    """Settings of a stage.

    From cluttered frames alone, a small vision transformer does not learn: its loss stays at chance level. It learns
    from windows that show little but the product (`close`), then from windows of any size around it (`near`), then from
    several larger frames of a clip, with or without the product (`far`), and finally from more products, by their
    variants (`wide`).
    """
    config = load_config("sample")
    config.data.data_dir = "data/built/pretrain"
    config.data.batch_size = 64
    config.optimizer.warmup_steps = 100
    config.train.log_interval_steps = 25
    config.train.checkpoint_interval_steps = 200
    if stage in ("far", "wide"):
        config.data.num_frames = 2
        config.data.resize = 108
        config.data.frame_crop_min_area = 0.2
        config.data.pair_hue = 0.1
        config.model.image_size = 96
        config.optimizer.encoder_learning_rate = 3e-4
        config.train.total_steps = 1_400
        if stage == "wide":
            config.train.total_steps = 4_000
        return config
    if stage not in ("close", "near"):
        raise ValueError(f"stage {stage!r}: expected close, near, far or wide")
    config.data.num_frames = 1
    config.data.boxed_frames = True
    config.data.pair_hue = 0.0
    config.data.resize = 72
    config.model.image_size = 64
    config.optimizer.encoder_learning_rate = 5e-4
    if stage == "close":
        config.data.frame_crop_min_area = 0.01
        config.data.frame_crop_max_area = 0.02
        config.model.init_from = ""
        config.train.total_steps = 600
    else:
        config.data.frame_crop_min_area = 0.02
        config.train.total_steps = 3_500
    return config
