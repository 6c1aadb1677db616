import ast
import copy
import dataclasses
import re
from pathlib import Path

import pytest

from rice_jax.config import Config, ConfigError, DataConfig, default_config, find_config, load_config
from rice_jax.config.command_line import with_config_path
from rice_jax.config.fields import list_settings
from rice_jax.config.upgrade import upgrade
from rice_jax.models.detr import DetrConfig
from rice_jax.tasks import TASKS, resolve
from tests.fixtures import ROOT
from tests.settings import small_config, small_values

# {task: its configs}
CONFIGS = {
    "retrieval": [
        *("lpr4m", "lpr750k", "movingfashion", "sample", "sample_icl"),
        *("sample_baselines", "sample_pretrain", "sample_distill"),
    ],
    "detection": ["detector_frame", "detector_clip", "sample_detector"],
    "domains": ["rope"],
    "cope": ["cope", "sample_cope"],
}
BETWEEN_DOMAINS = "domains", "cope"
WITHOUT_GALLERY = "detection", *BETWEEN_DOMAINS
FILES = [name for names in CONFIGS.values() for name in names]
NUM_EXAMPLES = {"lpr750k": 641_821, "lpr4m": 4_013_617, "movingfashion": 13_504}  # with which their docstrings count


def load(name: str, *arguments: str) -> Config:
    return resolve(load_config(name, *arguments).to_dict())


@pytest.mark.parametrize("name", FILES)
def test_every_config_resolves_and_names_its_data(name):
    config = load(name)
    data, task = config.data, config.task
    assert name in CONFIGS[task]
    assert all((data.train, data.query)) == (task not in BETWEEN_DOMAINS)
    assert bool(data.gallery) == (task not in WITHOUT_GALLERY)
    assert bool(data.detect) == (task == "detection")
    assert bool(data.domains) == (task in BETWEEN_DOMAINS)


def test_every_config_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_config_repeats_a_default(name):
    """Every line of a file of differences changes something."""
    text = find_config(name).read_text()
    lines = [line.strip() for line in text.splitlines()]
    parent = re.search(r'load_config\("(\w+)"', text)
    default = load_config(parent[1]) if parent else default_config()
    for line in lines:
        if not line.startswith("config."):
            continue
        changed = copy.deepcopy(default)
        exec(line, {"config": changed, "kind": "frame", "BOXES": "boxes"})
        if name == "sample_detector" and line.startswith("config.model.detector.kind"):
            continue  # its argument may be the default
        assert changed.to_dict() != default.to_dict(), line


@pytest.mark.parametrize("name", FILES)
def test_a_config_imports_nothing_but_the_settings(name):
    for node in ast.walk(ast.parse(find_config(name).read_text())):
        assert not isinstance(node, ast.Import)
        assert not isinstance(node, ast.ImportFrom) or node.module == "rice_jax.config"


def test_a_config_works_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from rice_jax.config import load_config\n\n\n"
        "def get_config(steps='7'):\n"
        "    config = load_config('sample')\n"
        "    config.train.total_steps = 30 + int(steps)\n"
        "    return config\n"
    )
    assert load("mine.py").train.total_steps == 37
    assert load(str(tmp_path / "mine.py"), "9").train.total_steps == 39
    assert load_config("lpr4m").to_dict() == load_config(str(ROOT / "configs" / "lpr4m.py")).to_dict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", r"--config=mine: found no such config, expected a \.py file or one of .*lpr4m, .*sample"),
        ("configs/mine.py", r"configs/mine.py: found no such file, expected a config file"),
        ("base", "found no such config"),
    ],
)
def test_a_config_that_is_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        find_config(name)


def test_every_stage_of_the_sample_encoder_resolves():
    head, full = (load("sample_pretrain", stage) for stage in ("head", "full"))
    assert head.model.init_from and head.model.frozen_stages > full.model.frozen_stages
    with pytest.raises(ValueError, match="stage 'deep': expected head or full"):
        load_config("sample_pretrain", "deep")


def test_both_stages_of_distillation_resolve():
    pictures, clips = (load("sample_distill", stage) for stage in ("pictures", "clips"))
    assert pictures.loss.distill_weight and clips.loss.distill_weight and pictures.loss.distill_direct_weight
    assert pictures.model.encoder == clips.model.encoder
    with pytest.raises(ValueError, match="stage 'frames': expected pictures or clips"):
        load_config("sample_distill", "frames")


@pytest.mark.parametrize("name", ["lpr4m", "lpr750k", "movingfashion"])
def test_the_rows_that_are_published_are_configs(name):
    """`PATH:LOSSES` chooses the losses; a name alone means all three."""
    assert load(name) == load(name, "full")
    parts = {losses: TASKS["retrieval"].model(load(name, losses)) for losses in ("icl", "pmd", "full")}
    assert {losses: (bool(part.pmd), bool(part.pfr)) for losses, part in parts.items()} == {
        "icl": (False, False),
        "pmd": (True, False),
        "full": (True, True),
    }
    for wrong in ("pfr", *(["ipd"] if name == "movingfashion" else [])):
        with pytest.raises(ValueError, match=f"losses '{wrong}': expected icl, pmd"):
            load_config(name, wrong)


@pytest.mark.parametrize(("name", "suffix"), [("lpr4m", ""), ("lpr750k", "_750k")])
def test_ipd_reads_what_the_detector_writes(name, suffix):
    config, detector = load(name, "ipd"), load("detector_clip")
    directory = f"runs/detector_clip/detections-{detector.train.total_steps}"
    assert config.model.ipd == "detector" and config.loss.pmd_weight and config.loss.pfr_weight
    assert config.data.train_boxes == f"{directory}/lpr4m-train{suffix}.jsonl"
    assert config.data.query_boxes == f"{directory}/lpr4m-query{suffix}.jsonl"
    # `tasks.detections` names the file by the data set.
    assert config.data.train.replace("/", "-") == f"lpr4m-train{suffix}"


@pytest.mark.parametrize(
    ("name", "steps", "pairs", "epochs", "rates"),
    [
        ("lpr750k", 5_000, 384, 2.99, (1e-6, 1e-4)),
        ("lpr4m", 47_035, 256, 3.00, (1e-7, 1e-4)),
        ("movingfashion", 5_000, 384, 142, (1e-6, 1e-4)),
    ],
)
def test_a_config_trains_what_its_docstring_says(name, steps, pairs, epochs, rates):
    """The recipes of docs/reference.md, section 5."""
    config, text = load(name), " ".join(find_config(name).read_text().split())
    assert (config.train.total_steps, config.data.batch_size) == (steps, pairs)
    assert (config.optimizer.encoder_learning_rate, config.optimizer.new_learning_rate) == rates
    assert steps * pairs / NUM_EXAMPLES[name] == pytest.approx(epochs, rel=0.003)
    assert f"{steps:,} steps of {pairs} pairs" in text and f"are {epochs:g} epochs" in text
    assert "1e-7 for the encoder" in text or "1e-6 for the encoder" in text


def test_both_detectors_of_the_sample_resolve():
    for kind in ("frame", "clip"):
        assert load("sample_detector", kind).model.detector.kind == kind
    with pytest.raises(ValueError, match="detector 'video': expected frame or clip"):
        load_config("sample_detector", "video")


def test_a_setting_that_is_not_given_has_its_default():
    assert resolve({}) == Config() == resolve(default_config().to_dict())
    assert resolve({"data": {"batch_size": 8}}) == dataclasses.replace(Config(), data=DataConfig(batch_size=8))


def test_every_setting_is_documented():
    for name, field in list_settings(Config).items():
        assert field.metadata["doc"].endswith((".", ")")), name


def test_domains_are_named_with_commas_between():
    config = small_config(
        task="domains", data__domains="rope/pages, rope/lives", data__train="", data__query="", data__gallery=""
    )
    assert config.data.domain_names == ("rope/pages", "rope/lives")
    assert small_config().data.domain_names == ()


def test_the_input_pipeline_is_told_what_the_model_decides():
    config = small_config(model__image_size=8, model__ipd="boxes", eval__num_frames=7, seed=3)
    for part, num_frames in [(config.input, 3), (config.eval_input, 7)]:
        assert (part.image_size, part.patch_size, part.ipd, part.seed) == (8, 8, "boxes", 3)
        assert part.num_frames == num_frames and part.batch_size == 8
    assert config.model.num_tokens == 2


def test_the_task_is_chosen_by_name_alone():
    """A detector has neither decoder nor head, whatever the other settings say."""
    for kind in ("frame", "clip"):
        settings = dict(model__detector__kind=kind, model__detector__num_boxes=2, data__batch_size=1)
        config = small_config(task="detection", **settings)
        model = TASKS[config.task].model(config)
        assert isinstance(model, DetrConfig) and model.decoder.kind == kind
        assert config.input.num_boxes == 2
    model = TASKS["retrieval"].model(small_config(model__detector__kind="frame"))
    assert model.pmd and model.pfr


def test_a_loss_without_weight_leaves_its_module_out_and_unchecked():
    config = small_config(loss__pfr_weight=0.0, model__pmd__num_heads=1)
    model = TASKS[config.task].model(config)
    assert model.pmd and not model.pfr
    config = small_config(loss__pmd_weight=0.0, data__batch_size=2, model__pmd__num_heads=5)
    model = TASKS[config.task].model(config)
    assert not model.pmd and not model.pfr


def domains(values: dict, names: str) -> None:
    values["task"] = "domains"
    values["data"].update(domains=names, train="", query="", gallery="")


def detector(values: dict, **changes) -> None:
    values["task"] = "detection"
    values["model"]["detector"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Names.
        (lambda v: v["model"].update(widht=3), "config.model.widht: unknown, expected one of the settings image_size,"),
        (lambda v: v["model"]["pmd"].update(x=3), "config.model.pmd.x: unknown, expected one of the settings num_pair"),
        (lambda v: v.update(losses={}), "config.losses: unknown, expected one of the groups task, seed, data, model,"),
        (lambda v: v["data"].update(image_size=3), "config.data.image_size: unknown"),
        (lambda v: v.update(task="rope"), "config.task: found 'rope', expected one of 'retrieval', 'domains', 'detec"),
        (lambda v: v["model"].update(architecture="vitt"), "found 'vitt', .* 'vit', 'swin', .*'timesformer', 'xclip'"),
        # Numbers that no run can use.
        (lambda v: v.update(seed=-1), "config.seed: found -1, expected 0 to 2147483647"),
        (lambda v: v.update(seed=2**31), "config.seed: found 2147483648, expected 0 to 2147483647"),
        (
            lambda v: v["optimizer"].update(encoder_learning_rate=float("nan")),
            "config.optimizer.encoder_learning_rate: found nan, expected a finite number",
        ),
        (lambda v: v["optimizer"].update(new_learning_rate=float("inf")), "found inf, expected a finite number"),
        (lambda v: v["optimizer"].update(new_learning_rate=-1e-4), "found -0.0001, expected 0 or more"),
        (lambda v: v["optimizer"].update(weight_decay=-0.1), "weight_decay: found -0.1, expected 0 or more"),
        (lambda v: v["model"].update(logit_scale=float("nan")), "logit_scale: found nan, expected a finite number"),
        # Types.
        (lambda v: v["data"].update(batch_size="8"), r"config.data.batch_size: found '8' \(str\), expected int"),
        (lambda v: v["data"].update(cut_tail=1), r"config.data.cut_tail: found 1 \(int\), expected bool"),
        (lambda v: v["data"].update(batch_size=True), r"config.data.batch_size: found True \(bool\), expected int"),
        (lambda v: v["data"].update(batch_size=8.0), r"config.data.batch_size: found 8.0 \(float\), expected int"),
        (lambda v: v["data"].update(train=None), r"config.data.train: found None \(NoneType\), expected str"),
        (lambda v: v["loss"].update(match_scale="x"), r"config.loss.match_scale: found 'x' \(str\), expected float"),
        (lambda v: v.update(task=3), r"config.task: found 3 \(int\), expected str"),
        (lambda v: v.update(model=3), r"config.model: found 3, expected a group of settings"),
        (lambda v: v["model"].update(pmd=3), r"config.model.pmd: found 3, expected a group of settings"),
        # Values.
        (lambda v: v["data"].update(crop="clip"), r"config.data.crop: found 'clip', expected 'frame' or 'video'"),
        (lambda v: v["data"].update(image_crop_min_area=0.0), "image_crop_min_area: found 0.0, expected above 0 to 1"),
        (lambda v: v["data"].update(pair_hue=1.5), "config.data.pair_hue: found 1.5, expected 0 to 1"),
        (lambda v: v["data"].update(batch_size=0), r"config.data.batch_size: found 0, expected 1 or more"),
        (lambda v: v["model"].update(dtype="float16"), r"model.dtype: found 'float16', expected 'float32' or 'bfloat"),
        (lambda v: v["model"].update(remat="all"), r"model.remat: found 'all', expected 'none', 'dots' or 'full'"),
        (lambda v: v["loss"].update(pfr_weight=-1), r"config.loss.pfr_weight: found -1.0, expected 0 or more"),
        (lambda v: v["loss"].update(pmd_weight=-1), r"config.loss.pmd_weight: found -1.0, expected 0 or more"),
        (lambda v: v["loss"].update(num_negatives=0), r"config.loss.num_negatives: found 0, expected 1 or more"),
        (lambda v: v["loss"].update(match_scale=0), r"config.loss.match_scale: found 0.0, expected above 0"),
        (lambda v: v["loss"].update(negatives="shard"), r"config.loss.negatives: found 'shard', expected 'batch' or"),
        (lambda v: v["loss"]["detection"].update(l1_weight=-1), r"config.loss.detection.l1_weight: found -1.0, expect"),
        (lambda v: v["model"]["pmd"].update(num_pairs=0), r"pmd.num_pairs: found 0, expected 1 or more"),
        (lambda v: v["model"]["pmd"].update(attention_dropout=1), r"attention_dropout: found 1.0, expected 0 to below"),
        (lambda v: v["model"]["pfr"].update(init="zeros"), r"pfr.init: found 'zeros', expected 'random' or 'ones'"),
        (lambda v: v["model"].update(ipd="on"), r"model.ipd: found 'on', expected 'off', 'boxes' or 'detector'"),
        (lambda v: v["model"].update(ipd_use="cut"), r"config.model.ipd_use: found 'cut', expected 'mask' or 'crop'"),
        (lambda v: v["model"].update(ipd_margin=-0.1), r"config.model.ipd_margin: found -0.1, expected 0 or more"),
        (lambda v: detector(v, kind="none"), r"detector.kind: found 'none', expected 'frame' or 'clip'"),
        (lambda v: detector(v, num_boxes=0), r"detector.num_boxes: found 0, expected 1 or more"),
        (lambda v: detector(v, layers=0), r"detector.layers: found 0, expected 1 or more"),
        (lambda v: detector(v, temporal_layers=-1), r"detector.temporal_layers: found -1, expected 0 or more"),
        (lambda v: v["eval"].update(min_score=2), r"config.eval.min_score: found 2.0, expected 0 to 1"),
        (lambda v: v["eval"].update(draw_clips=-1), r"config.eval.draw_clips: found -1, expected 0 or more"),
        (lambda v: v["eval"].update(rerank=-1), r"config.eval.rerank: found -1, expected 0 or more"),
        (lambda v: v["train"].update(log_interval_steps=0), r"train.log_interval_steps: found 0, expected 1 or more"),
        (lambda v: v["train"].update(grad_cache_chunks=0), r"train.grad_cache_chunks: found 0, expected 1 or more"),
        (lambda v: v["optimizer"].update(beta2=1), r"config.optimizer.beta2: found 1.0, expected 0 to below 1"),
        (lambda v: v["index"].update(change="clear"), r"index.change: found 'clear', expected 'add', 'mirror' or 'rem"),
        # Settings that exclude each other, whatever the task.
        (lambda v: v["data"].update(frame_crop_min_area=0.6, frame_crop_max_area=0.5), "found 0.6 and 0.5, expected 0"),
        (lambda v: v["data"].update(crop_around_box=True), "config.data.crop_around_box: expected with"),
        (lambda v: v["data"].update(resize=8), r"config.data.resize: found 8, expected model.image_size \(16\)"),
        (lambda v: v["data"].update(device_resize_height=99), r"found 99 and 0, expected both 0, or both .* \(16\) or"),
        (lambda v: v["data"].update(query_boxes="x"), r"config.model.ipd='off', which does not read them"),
        (lambda v: v["model"].update(ipd="detector"), r"found config.data.train_boxes='' and .*, expected the files"),
        (lambda v: v["model"].update(patch_size=5), r"config.model.image_size: found 16, expected a multiple"),
        (lambda v: v["model"].update(heads=3), r"config.model.width: found 32, expected a multiple of heads \(3\)"),
        (lambda v: detector(v, num_boxes=5), r"detector.num_boxes: found 5, expected at most num_queries \(4\)"),
        (lambda v: detector(v, heads=3), r"detector.width: found 32, expected a multiple of heads \(3\) and of 8"),
        (lambda v: detector(v, width=12), r"detector.width: found 12, expected a multiple of heads \(2\) and of 8"),
        (lambda v: v["train"].update(total_steps=2), r"config.train.total_steps: found 2, expected more than"),
        (lambda v: v["train"].update(grad_cache_chunks=3), r"grad_cache_chunks: found 3, .* of config.data.batch_size"),
        (lambda v: v["mesh"].update(fsdp=-1), r"config.mesh.data and fsdp: found -1 and -1, expected 1 or more, or -1"),
        (lambda v: v["mesh"].update(data=0), r"config.mesh.data and fsdp: found 0 and 1, expected 1 or more, or -1"),
        # Retrieval.
        (lambda v: v["data"].update(batch_size=1), r"config.data.batch_size: found 1, expected 2 or more"),
        (lambda v: v["data"].update(batch_size=3), r"config.data.batch_size: found 3, expected 4 or more: every image"),
        (lambda v: v["model"]["pmd"].update(num_heads=3), r"pmd.num_heads: found 3, expected a divisor of width 32"),
        (lambda v: v["model"]["pmd"].update(num_heads=1), r"pmd.num_heads: found 1, expected 2 or more: PFR halves"),
        (lambda v: v["model"]["pmd"].update(num_pairs=2), r"pmd.num_pairs: found 2, expected 1 to 1: each starts from"),
        (
            lambda v: (v["loss"].update(pmd_weight=0.0), v["eval"].update(rerank=5)),
            "config.eval.rerank: found 5, expected 0 with config.loss.pmd_weight=0",
        ),
        (
            lambda v: v["data"].update(domains="a,b"),
            "config.data.domains: found 'a,b' with config.task='retrieval', which does not read it",
        ),
        # Domains.
        (lambda v: domains(v, "rope/pages"), "config.data.domains: found 'rope/pages', expected two sets or more"),
        (lambda v: domains(v, "a, b,a"), "config.data.domains: found 'a, b,a', expected two .* each once"),
        (lambda v: domains(v, "a,b,"), "config.data.domains: found 'a,b,', expected two sets or more"),
        (lambda v: domains(v, ""), "config.data.domains: found '', expected two sets or more"),
        (
            lambda v: (domains(v, "a,b"), v["data"].update(train="lpr4m/train")),
            "config.data.domains: found 'a,b' beside train, query or gallery",
        ),
        (
            lambda v: (domains(v, "a,b"), v["eval"].update(rerank=5)),
            "config.data.domains: expected with config.model.ipd='off' and config.eval.rerank=0, found 'off' and 5",
        ),
        # Detection.
        (lambda v: (detector(v), v["model"].update(ipd="boxes")), r"config.model.ipd: found 'boxes', expected 'off'"),
        (lambda v: (detector(v), v["train"].update(grad_cache_chunks=2)), r"found 2, expected 1 with .*='detection'"),
        (
            lambda v: (detector(v), v["data"].update(domains="a,b")),
            "config.data.domains: found 'a,b' with config.task='detection', which does not read it",
        ),
    ],
)
def test_bad_settings(change, message):
    values = small_values()
    change(values)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(values)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_fine_for_shares():
    config = resolve({"data": {"image_crop_min_area": 1}, "optimizer": {"clip_norm": 2}})
    assert config.optimizer.clip_norm == 2.0 and type(config.optimizer.clip_norm) is float
    assert type(config.data.image_crop_min_area) is float


def test_settings_that_version_0_1_saved():
    """It named no task, derived settings in place, and had None where a model lacks a part."""
    old = Config().to_dict()
    del old["task"]
    old["data"] |= {"image_size": 224, "patch_size": 32, "ipd": "off", "ipd_use": "mask", "ipd_margin": 0.2, "seed": 0}
    old["data"] |= {"num_boxes": None}
    old["model"] |= {"pmd": None, "pfr": None, "detector": None}
    old["loss"]["detection"] = None
    assert resolve(upgrade(old)) == Config()
    assert upgrade(old | {"data": old["data"] | {"domains": "a,b"}})["task"] == "domains"
    assert upgrade(old | {"model": old["model"] | {"detector": {"kind": "frame"}}})["task"] == "detection"
    assert upgrade({"model": {"width": 32, "pmd": None}}) == {"model": {"width": 32}}
    new = Config().to_dict()
    assert upgrade(new) == new


def test_the_files_lie_in_the_package_or_beside_it():
    assert find_config("lpr4m") in (ROOT / "configs" / "lpr4m.py", ROOT / "rice_jax" / "configs" / "lpr4m.py")
    assert find_config("configs/lpr4m.py") == Path("configs/lpr4m.py")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lpr4m:pfr", "--config=lpr4m:pfr: losses 'pfr': expected icl, pmd, full or ipd"),
        ("sample:icl", "--config=sample:icl: get_config.. takes 0 positional arguments but 1 was given"),
    ],
)
def test_an_argument_that_a_config_refuses(value, message):
    with pytest.raises(ConfigError, match=message):
        with_config_path(["rice", f"--config={value}"])


def test_a_config_by_its_name():
    name = str(ROOT / "configs" / "sample_pretrain.py")
    assert with_config_path(["rice", "--config=sample_pretrain:head"]) == ["rice", f"--config={name}:head"]
    assert with_config_path(["rice", "--config", "sample_pretrain", "--x"]) == ["rice", "--config", name, "--x"]
    for argument in (f"--config={name}", f"--config={name}:head", "--config.mesh.fsdp=8", "--workdir=a", "--config"):
        assert with_config_path([argument]) == [argument]
    with pytest.raises(ConfigError, match="--config=lpr4n: found no such config, expected a .py file or .*lpr4m"):
        with_config_path(["--config=lpr4n"])
