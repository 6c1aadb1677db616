"""The sample's encoder, taught by a larger one: first on plain pictures of products, then on clips.

    python -m rice_jax.main --config=configs/sample_distill.py:pictures --workdir=runs/pictures
    python -m rice_jax.main --config=configs/sample_distill.py:clips --workdir=runs/clips --config.model.init_from=runs/pictures

`data/sample/README.md` has the commands that make the data and the teacher's embeddings. Hardware: 2 CPU cores.
"""  # noqa: E501

from rice_jax.config import load_config


def get_config(stage: str = "pictures"):
    """Settings of a stage.

    The embeddings of pictures that show little but a product teach the encoder what is similar to what, also for
    products that it has never seen (`pictures`). From clips it then learns to find the product among others (`clips`).
    """
    if stage not in ("pictures", "clips"):
        raise ValueError(f"stage {stage!r}: expected pictures or clips")
    config = load_config("sample_icl")
    config.data.teacher = "data/teacher"
    config.data.batch_size = 64
    config.data.pair_hue = 0.0
    config.model.frozen_stages = 4
    config.loss.distill_weight = 1.0
    config.loss.distill_dim = 256
    config.optimizer.encoder_learning_rate = 3e-4
    config.optimizer.warmup_steps = 100
    config.train.log_interval_steps = 25
    config.train.checkpoint_interval_steps = 100
    if stage == "pictures":
        # The teacher saw the whole picture.
        config.data.data_dir = "data/built/pictures"
        config.data.num_frames = 1
        config.data.crop_around_box = False
        config.data.color_jitter = 0.1
        config.loss.distill_direct_weight = 1.0
        config.train.total_steps = 2_000
    else:
        config.data.data_dir = "data/built/clips"
        config.data.num_frames = 2
        config.data.frame_crop_min_area = 0.2
        config.train.total_steps = 4_000
    return config
