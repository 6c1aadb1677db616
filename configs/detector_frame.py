"""The single-frame detector of the intended product on LPR4M, from RICE's or CLIP's encoder.

    python data/build.py lpr4m --raw_dir RAW --data_dir data/built --configs detection_train,detection_test
    python -m rice_jax.main --config=configs/detector_frame.py --workdir=runs/detector_frame \
        --config.model.init_from=runs/lpr4m

Hardware: any. Score: not yet run; we know of no published score.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.task = "detection"
    config.data.train = "lpr4m/detection_train"
    config.data.query = "lpr4m/detection_test"
    config.data.detect = "lpr4m/query"
    config.data.num_frames = 4
    config.data.random_frames = True
    config.data.cut_tail = False
    config.data.frame_crop_min_area = 0.4
    config.data.color_jitter = 0.2

    config.model.detector.kind = "frame"

    config.optimizer.encoder_learning_rate = 1e-5
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.1
    config.train.total_steps = 20_000
    return config
