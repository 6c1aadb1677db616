"""RICE on all of LPR4M, from CLIP ViT-B/32, as the article trains it.

    python -m rice_jax.main --config=configs/lpr4m.py:LOSSES --workdir=runs/lpr4m-LOSSES \
        --config.model.init_from=weights/clip_b32

LOSSES is `icl`, `pmd` (ICL, PMD), `full` (ICL, PMD, PFR; the default), or `ipd` (the same on the patches that a
detector finds). The article credits PMD with +2.3 rank-1, PFR with +0.9, and IPD with +1.0; no other published score is
known.

47,035 steps of 256 pairs are 3 epochs of the 4,013,617 clips, with Adam (no weight decay) at learning rates of 1e-7 for
the encoder and 1e-4 for new modules, and a cosine schedule. The warm-up of 500 steps is the reference's. `ipd` reads
the boxes of `configs/detector_clip.py`; run `rice detect` on lpr4m/train and on lpr4m/query first. Hardware: the
article's 8 GPUs took about 90 hours. Score: not yet run.
"""

from rice_jax.config import load_config

BOXES = "runs/detector_clip/detections-20000/lpr4m"  # where `rice detect` writes them


def get_config(losses: str = "full"):
    """Settings for the losses "icl", "pmd", "full", or "ipd"."""
    config = load_config("lpr750k", losses)
    config.data.train = "lpr4m/train"
    config.data.query = "lpr4m/query"
    config.data.gallery = "lpr4m/gallery"
    config.data.batch_size = 256
    # Nearly all frames and images fit: their shorter side is 256.
    config.data.device_resize_height = 455
    config.data.device_resize_width = 256
    if losses == "ipd":
        config.data.train_boxes = f"{BOXES}-train.jsonl"
        config.data.query_boxes = f"{BOXES}-query.jsonl"

    config.optimizer.encoder_learning_rate = 1e-7
    config.optimizer.weight_decay = 0.0
    config.train.total_steps = 47_035
    return config
