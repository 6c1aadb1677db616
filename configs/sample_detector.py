"""Both detectors on the simulated livestreams of `data/sample`, from the small encoder that the repository ships.

    scripts/detectors.sh

Frames without the product are only in the evaluation; `--config.data.train=lpr4m/train` trains on some, too. Hardware:
2 CPU cores, 0.9 seconds a step, about 8 minutes each. Scores: docs/detection.md.
"""

from rice_jax.config import load_config


def get_config(kind: str = "clip"):
    """Settings of the single-frame ("frame") or multi-frame ("clip") detector, on the same frames a step."""
    if kind not in ("frame", "clip"):
        raise ValueError(f"detector {kind!r}: expected frame or clip")
    config = load_config("sample_icl")
    config.task = "detection"
    config.data.train = "lpr4m/detection_train"
    config.data.query = "lpr4m/detection_test"
    config.data.gallery = ""
    config.data.detect = "lpr4m/query"
    config.data.batch_size = 16
    config.data.num_frames = 6
    config.data.resize = 108
    config.data.crop_around_box = False
    config.data.frame_crop_min_area = 0.5
    config.data.pair_hue = 0.0
    config.data.crop = "video"

    config.model.image_size = 96
    config.model.detector.kind = kind
    config.model.detector.width = 192
    config.model.detector.heads = 6
    config.model.detector.layers = 3
    config.model.detector.temporal_layers = 1

    config.optimizer.new_learning_rate = 5e-4
    config.optimizer.weight_decay = 1e-4
    config.train.total_steps = 450
    config.train.checkpoint_interval_steps = 100
    config.eval.batch_size = 16
    config.eval.num_frames = 6
    config.eval.pixels = False
    return config
