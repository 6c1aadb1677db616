"""Every setting with its default: RICE on CLIP ViT-B/32 as the reference trains it. Other files say only what differs.

What each setting means stands beside its name in `rice_jax/config.py`. Not a run by itself: it names no data set.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.data_dir = "data/built"
    config.data.train = ""
    config.data.query = ""
    config.data.gallery = ""
    config.data.domains = ""
    config.data.detect = ""
    config.data.batch_size = 96
    config.data.num_frames = 10
    config.data.resize = 256
    config.data.crop = "frame"
    config.data.image_crop_min_area = 1.0
    config.data.frame_crop_min_area = 1.0
    config.data.frame_crop_max_area = 1.0
    config.data.color_jitter = 0.0
    config.data.pair_hue = 0.0
    config.data.cut_tail = True
    config.data.crop_around_box = False
    config.data.boxed_frames = False
    config.data.random_frames = False
    config.data.train_boxes = ""
    config.data.query_boxes = ""
    config.data.box_min_score = 0.5
    config.data.device_resize_height = 0
    config.data.device_resize_width = 0
    config.data.num_workers = 0
    config.data.num_threads = 16

    config.model = ConfigDict()
    config.model.image_size = 224
    config.model.patch_size = 32
    config.model.width = 768
    config.model.layers = 12
    config.model.heads = 12
    config.model.embed_dim = 512
    config.model.logit_scale = 4.0
    config.model.dtype = "bfloat16"
    config.model.remat = "none"
    config.model.unroll = False
    config.model.init_from = ""
    config.model.ipd = "off"
    config.model.ipd_use = "mask"
    config.model.ipd_margin = 0.2
    config.model.detector = ConfigDict()
    config.model.detector.kind = "none"
    config.model.detector.num_queries = 10
    config.model.detector.num_boxes = 1
    config.model.detector.width = 256
    config.model.detector.layers = 6
    config.model.detector.heads = 8
    config.model.detector.temporal_layers = 2
    config.model.pmd = ConfigDict()
    config.model.pmd.num_pairs = 1
    config.model.pmd.num_heads = 12
    config.model.pmd.attention_dropout = 0.1
    config.model.pfr = ConfigDict()
    config.model.pfr.mask_padding = True
    config.model.pfr.init = "random"

    config.loss = ConfigDict()
    config.loss.mask_same_image = True
    config.loss.pmd_weight = 1.0
    config.loss.pfr_weight = 1.0
    config.loss.num_negatives = 3
    config.loss.negatives = "batch"
    config.loss.match_scale = 10.0
    config.loss.detection = ConfigDict()
    config.loss.detection.no_object_weight = 0.1
    config.loss.detection.l1_weight = 5.0
    config.loss.detection.giou_weight = 2.0

    config.optimizer = ConfigDict()
    config.optimizer.encoder_learning_rate = 1e-6
    config.optimizer.new_learning_rate = 1e-4
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.clip_norm = 0.0
    config.optimizer.warmup_steps = 500

    config.train = ConfigDict()
    config.train.total_steps = 5_000
    config.train.log_interval_steps = 50
    config.train.checkpoint_interval_steps = 500
    config.train.eval_interval_steps = 0
    config.train.keep_checkpoints = 2
    config.train.grad_cache_chunks = 1

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.num_frames = 10
    config.eval.pixels = False
    config.eval.rerank = 0
    config.eval.rerank_keep_tokens = True
    config.eval.min_score = 0.05
    config.eval.draw_clips = 0

    config.index = ConfigDict()
    config.index.images = ""
    config.index.directory = ""
    config.index.change = "add"

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config
