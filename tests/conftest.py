import gc
import json
import logging
import os
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from data.build import main as build
from tests.data.raw_lpr4m import write_raw
from tests.fixtures import LIGHT, TINY, build_shop, command, make_once, run
from tests.programs import SELDOM

# Sharding is tested on eight virtual devices; a test of one device says so by making a mesh of one.
jax.config.update("jax_num_cpu_devices", 8)
# Compiling a program takes far longer than running it on a few pictures, so it is done with little care, and once: for
# pytest's other workers, for the programs that tests start, and for the next run of the tests.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later releases do not know it and stop
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
COMPILED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rice_jax_tests"
KEPT_SECONDS = 30 * 24 * 3600
for name, value in {
    "jax_platforms": "cpu",
    "jax_compilation_cache_dir": str(COMPILED),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# Grain's worker processes read absl's flags.
flags.FLAGS.mark_as_parsed()
# Files whose tests start programs or compile for eight devices, those that take longest first: pytest's workers begin
# with them, and `scripts/test.sh --fast` leaves them out. Single tests are marked where they stand.
SLOW_FILES = (
    "parallel/test_processes.py",
    "test_detector.py",
    "test_benchmark.py",
    "test_text_run.py",
    "tasks/test_cope_runs.py",
    "test_main.py",
    "train/test_steps.py",
    "test_notebook.py",
    "recognition/test_decoder_texts.py",
    "models/encoders/test_mobilenet.py",
    "input/test_pipeline.py",
    "tasks/test_cope.py",
    "convert/test_hub.py",
    "convert/test_families.py",
    "models/encoders/test_swin.py",
    "models/test_text_in_pmd.py",
    "eval/test_rerank.py",
    "commands/test_train_clips.py",
    "models/encoders/test_vit.py",
    "test_golden.py",
    "eval/test_nearest.py",
    "data/test_simulate.py",
    "data/test_sample_rope.py",
    "models/encoders/test_xclip.py",
    "convert/test_xclip.py",
    "data/test_processes.py",
    "tasks/test_contrast.py",
    "test_golden_encoders.py",
    "data/test_film.py",
    "convert/test_timesformer.py",
    "train/test_detection.py",
    "index/test_update.py",
    "models/test_cope.py",
    "models/test_contract.py",
    "test_golden_cope.py",
    "index/test_cope.py",
    "recognition/test_engine.py",
    "data/test_rope.py",
    "index/test_decoder_texts.py",
    "convert/test_reference.py",
    "data/test_without_tensorflow.py",
    "commands/test_search.py",
    "index/test_text.py",
    "pages/test_report.py",
    "tasks/test_texts.py",
    "index/test_shards.py",
    "losses/test_cosface.py",
    "test_recognize.py",
    "models/encoders/test_timesformer.py",
    "serving/test_live.py",
    "models/test_pmd.py",
    "commands/test_evaluate.py",
    "data/test_variants.py",
    "test_api.py",
    "models/aggregation/test_aggregation.py",
    "test_long_videos.py",
    "input/test_items.py",
    "data/test_sample_start.py",
    "convert/test_swin.py",
    "models/test_detr.py",
    "test_golden_text.py",
    "recognition/test_source.py",
    "eval/test_ranking.py",
    "serving/test_said.py",
    "compat/test_version_0_1.py",
    "train/test_state.py",
    "serving/test_reload.py",
    "test_cope_table.py",
    "losses/test_cope.py",
    "recognition/test_speech.py",
    "serving/test_load_test.py",
    "input/test_triplets.py",
    "data/test_package.py",
    "data/test_sample_encoder.py",
    "test_stream_capacity.py",
    "convert/test_open_clip.py",
    "serving/test_program.py",
    "models/test_fingerprints.py",
    "tasks/test_distill.py",
    "data/test_movingfashion.py",
    "serving/test_server.py",
    "convert/test_clip.py",
    "eval/test_attention.py",
    "losses/test_sigmoid.py",
    "eval/test_products.py",
    "input/test_photos.py",
    "test_accelerator.py",
    "input/test_detection.py",
    "eval/test_scores.py",
    "parallel/test_mesh.py",
    "eval/test_match_weight.py",
    "test_parity_parts.py",
    "eval/test_calibration.py",
    "models/aggregation/test_checkpoints.py",
    "input/test_text_views.py",
    "data/test_lpr4m_rows.py",
    "test_compile_for_tpu.py",
    "tasks/test_detection.py",
    "test_help.py",
    "serving/test_connections.py",
    "eval/test_fusion.py",
    "data/test_speech.py",
    "data/test_img2dataset.py",
    "convert/test_own.py",
    "test_cli.py",
    "input/test_transforms.py",
    "recognition/test_recognizer.py",
    "models/test_create.py",
    "convert/test_text.py",
    "losses/test_contrastive.py",
    "pages/test_domains.py",
    "losses/test_distillation.py",
    "train/test_checkpoint.py",
    "serving/test_work.py",
    "models/test_resample.py",
    "data/test_lpr4m.py",
    "ops/test_boxes.py",
    "test_text_table.py",
    "index/test_products.py",
    "recognition/test_allowed.py",
    "data/test_doctor.py",
    "index/test_smaller.py",
    "serving/test_indexes.py",
    "serving/test_forms.py",
    "index/test_store.py",
    "index/test_sources.py",
    "recognition/test_naming.py",
    "models/test_pmd_golden.py",
    "recognition/test_live_test.py",
    "recognition/test_by_frames.py",
    "commands/test_embed_text.py",
    "clips/test_evaluation.py",
    "train/test_optimizer.py",
    "pages/test_compare.py",
    "recognition/test_container.py",
    "eval/test_place.py",
    "serving/test_tokens.py",
    "recognition/test_products.py",
    "serving/test_live_page.py",
    "clips/test_training.py",
    "serving/test_serve_page.py",
    "pages/test_compare_domains.py",
    "pages/test_report_in_browser.py",
    "index/test_similar.py",
    "pages/test_timeline.py",
)
SLOW_FIXTURES = {"light_reference", "reference"}


def pytest_sessionstart():
    """Deletes compiled programs that no test run has used for long."""
    for path in COMPILED.glob("*"):
        if time.time() - path.stat().st_atime > KEPT_SECONDS:
            path.unlink(missing_ok=True)


def pytest_collection_finish():
    """Keeps the garbage collector from looking again and again at what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items):
    order = {Path(__file__).parent / name: place for place, name in enumerate(SLOW_FILES)}
    for item in items:
        if item.path in order or SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def log():
    """Leaves the package's log as it was: commands send it to stderr, where `caplog` does not look."""
    logger = logging.getLogger("rice_jax")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """Data directory of a tiny LPR4M, built from raw files."""
    return make_once(tmp_path_factory, "shop", build_shop) / "built"


@pytest.fixture(scope="session")
def reference(shop, tmp_path_factory):
    """Workdir and result of a run of one process and one device that nothing disturbs."""
    return undisturbed(tmp_path_factory, "reference", shop, TINY)


@pytest.fixture(scope="session")
def light_reference(shop, tmp_path_factory):
    """The same of a run that trains the first loss alone."""
    return undisturbed(tmp_path_factory, "light_reference", shop, LIGHT)


def undisturbed(factory, name, shop, tiny):
    def train(directory: Path) -> None:
        result = run(command(shop, directory / "run", module="tests.recorded_main", tiny=tiny))
        assert result.returncode == 0, result.stderr
        (directory / "result.json").write_text(json.dumps([result.stdout, result.stderr]))

    directory = make_once(factory, name, train)
    output, errors = json.loads((directory / "result.json").read_text())
    return directory / "run", subprocess.CompletedProcess("rice", 0, output, errors)


@pytest.fixture(scope="session")
def evil_shop(tmp_path_factory):
    """Data sets whose images have names that a page must escape."""
    from tests.pages.reports import EVIL

    def make(directory: Path) -> None:
        [titles] = write_raw(directory / "raw", num_train=2).glob("test_image_title_*.txt")
        lines = titles.read_text(encoding="utf-8").splitlines()
        titles.write_text("".join(f"{line} {EVIL}\n" for line in lines), encoding="utf-8")
        build(["lpr4m", "--raw_dir", str(directory / "raw"), "--data_dir", str(directory / "built")])

    return make_once(tmp_path_factory, "evil_shop", make) / "built"


@pytest.fixture(scope="session")
def live_shop(tmp_path_factory):
    """An index of a fresh model with a decoder, and a calibration."""
    from tests.shop import make_shop

    return make_shop(tmp_path_factory.mktemp("live_shop"))


@pytest.fixture
def one_device(monkeypatch):
    """Runs of `main.run` have one device, for which programs compile faster than for eight."""
    from rice_jax.config import MeshConfig
    from rice_jax.parallel.mesh import create_mesh

    monkeypatch.setattr("rice_jax.main.create_mesh", lambda _: create_mesh(MeshConfig(1, 1), jax.devices()[:1]))


@pytest.fixture
def programs():
    """Programs that have been compiled since."""
    heard = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 17)(jnp.ones(3)).block_until_ready()
    assert heard, "it hears of what is compiled"
    heard.clear()
    yield heard
    jax.monitoring.unregister_event_duration_listener(listen)
