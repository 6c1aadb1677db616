"""RICE (ICL) on the simulated livestreams of `data/sample`, from the small encoder that the repository ships.

The base of the sample's other configs. Hardware: 2 CPU cores, about 3 minutes of training.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.data_dir = "data/built/sample-0"
    config.data.train = "lpr4m/train"
    config.data.query = "lpr4m/query"
    config.data.gallery = "lpr4m/gallery"
    config.data.batch_size = 32
    config.data.num_frames = 4
    config.data.random_frames = True
    config.data.cut_tail = False
    config.data.resize = 144
    config.data.image_crop_min_area = 0.5
    config.data.frame_crop_min_area = 0.6
    config.data.crop_around_box = True
    config.data.color_jitter = 0.2
    config.data.pair_hue = 0.2
    config.data.num_threads = 1

    config.model.image_size = 128
    config.model.dtype = "float32"
    config.model.frozen_stages = 9  # all of the encoder's convolutions, which take most of a step's time
    config.model.init_from = "weights/sample_encoder"
    config.model.pmd.num_heads = 3

    # In so few steps the decoder learns very little (docs/results.md); =1 trains it, with PFR.
    config.loss.pmd_weight = 0.0

    config.optimizer.encoder_learning_rate = 1e-4
    config.optimizer.new_learning_rate = 1e-3
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 10

    config.train.total_steps = 40
    config.train.log_interval_steps = 10
    config.train.checkpoint_interval_steps = 10

    config.eval.batch_size = 32
    config.eval.pixels = True
    return config
