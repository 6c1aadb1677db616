"""COPE on ROPE, from X-CLIP ViT-B/16 and a BERT of three layers: one representation of pages, videos, and live clips.

    rice convert xclip-base-patch16 weights/xclip_b16
    rice convert text rbt3 weights/rbt3
    python -m rice_jax.main --config=configs/cope.py --workdir=runs/cope

An epoch is 187,431 products, so 50,000 steps are 34 of them. Rates, decay, clipping, and schedule are the reference's.
`--config.model.text=off` leaves titles out; set `--config.optimizer.text_learning_rate=0` then, too. docs/cope.md says
what else is the reference's. Hardware: not yet run. Score: not yet run.
"""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.task = "cope"
    config.data.domains = "rope/pages,rope/videos,rope/lives"
    config.data.batch_size = 128
    config.data.num_frames = 8
    config.data.resize = 224
    config.data.crop = "video"
    config.data.frame_crop_min_area = 0.64
    config.data.cut_tail = False

    config.model.architecture = "xclip"
    config.model.patch_size = 16
    config.model.num_frames = 8
    config.model.pixels = "imagenet"
    config.model.init_from = "weights/xclip_b16"
    config.model.text = "tower"
    config.model.text_init_from = "weights/rbt3"
    config.model.text_tower.layers = 3
    config.model.text_tower.head = "pooler"
    config.model.text_tower.embed_dim = 768
    config.model.cope.num_classes = 187_431  # for compile_for_tpu.py

    config.loss.pmd_weight = 0.0

    config.optimizer.kind = "adamw"
    config.optimizer.text_learning_rate = 5e-6
    config.optimizer.encoder_learning_rate = 1e-5
    config.optimizer.new_learning_rate = 5e-3
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 5.0
    config.optimizer.warmup_steps = 1_000

    config.train.total_steps = 50_000

    config.eval.num_frames = 8
    return config
