"""The multi-frame detector of the intended product on LPR4M, which sees the frames of a clip together.

    python -m rice_jax.main --config=configs/detector_clip.py --workdir=runs/detector_clip \
        --config.model.init_from=runs/lpr4m

It can also start from a single-frame detector, whose weights it includes. The frames of a clip share one crop and flip,
so that motion is preserved. Hardware: any. Score: not yet run.
"""

from rice_jax.config import load_config


def get_config():
    config = load_config("detector_frame")
    config.data.num_frames = 10
    config.data.cut_tail = True
    config.data.crop = "video"
    config.model.detector.kind = "clip"
    return config
