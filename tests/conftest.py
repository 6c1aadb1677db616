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
    "tasks/test_cope_runs.py",
    "test_main.py",
    "test_benchmark.py",
    "train/test_steps.py",
    "tasks/test_cope.py",
    "test_text_run.py",
    "models/test_text_in_pmd.py",
    "convert/test_families.py",
    "convert/test_xclip.py",
    "models/encoders/test_xclip.py",
    "convert/test_hub.py",
    "eval/test_rerank.py",
    "commands/test_train_clips.py",
    "models/encoders/test_swin.py",
    "test_golden.py",
    "train/test_detection.py",
    "test_notebook.py",
    "input/test_pipeline.py",
    "test_golden_cope.py",
    "models/encoders/test_mobilenet.py",
    "data/test_simulate.py",
    "models/test_contract.py",
    "tasks/test_contrast.py",
    "test_golden_encoders.py",
    "convert/test_timesformer.py",
    "tasks/test_texts.py",
    "serving/test_serve_page.py",
    "eval/test_nearest.py",
    "data/test_sample_rope.py",
    "models/encoders/test_vit.py",
    "data/test_film.py",
    "index/test_update.py",
    "data/test_rope.py",
    "models/encoders/test_timesformer.py",
    "index/test_cope.py",
    "pages/test_report.py",
    "models/test_cope.py",
    "data/test_without_tensorflow.py",
    "convert/test_reference.py",
    "index/test_text.py",
    "models/test_pmd.py",
    "convert/test_swin.py",
    "commands/test_evaluate.py",
    "input/test_items.py",
    "compat/test_version_0_1.py",
    "test_golden_text.py",
    "test_api.py",
    "data/test_sample_start.py",
    "losses/test_cosface.py",
    "test_recognize.py",
    "models/test_detr.py",
    "train/test_state.py",
    "serving/test_live.py",
    "models/aggregation/test_aggregation.py",
    "index/test_shards.py",
    "test_cope_table.py",
    "eval/test_ranking.py",
    "input/test_triplets.py",
    "commands/test_search.py",
    "serving/test_load_test.py",
    "test_stream_capacity.py",
    "recognition/test_source.py",
    "data/test_variants.py",
    "serving/test_reload.py",
    "recognition/test_engine.py",
    "serving/test_live_page.py",
    "tasks/test_distill.py",
    "pages/test_domains.py",
    "losses/test_contrastive.py",
    "models/test_fingerprints.py",
    "losses/test_cope.py",
    "data/test_package.py",
    "data/test_movingfashion.py",
    "test_compile_for_tpu.py",
    "eval/test_products.py",
    "input/test_detection.py",
    "serving/test_program.py",
    "input/test_photos.py",
    "models/aggregation/test_checkpoints.py",
    "convert/test_clip.py",
    "pages/test_timeline.py",
    "tasks/test_detection.py",
    "recognition/test_speech.py",
    "input/test_text_views.py",
    "serving/test_server.py",
    "test_cli.py",
    "serving/test_said.py",
    "test_help.py",
    "eval/test_calibration.py",
    "eval/test_attention.py",
    "eval/test_scores.py",
    "data/test_lpr4m_rows.py",
    "data/test_img2dataset.py",
    "parallel/test_mesh.py",
    "pages/test_report_in_browser.py",
    "models/test_pmd_golden.py",
    "convert/test_text.py",
    "models/test_create.py",
    "pages/test_compare.py",
    "train/test_optimizer.py",
    "losses/test_distillation.py",
    "recognition/test_recognizer.py",
    "serving/test_tokens.py",
    "convert/test_open_clip.py",
    "serving/test_connections.py",
    "test_parity_parts.py",
    "train/test_checkpoint.py",
    "eval/test_fusion.py",
    "losses/test_sigmoid.py",
    "index/test_products.py",
    "index/test_store.py",
    "input/test_transforms.py",
    "ops/test_boxes.py",
    "serving/test_work.py",
    "recognition/test_container.py",
    "recognition/test_by_frames.py",
    "recognition/test_naming.py",
    "pages/test_compare_domains.py",
    "recognition/test_products.py",
    "recognition/test_allowed.py",
    "data/test_lpr4m.py",
    "commands/test_embed_text.py",
    "serving/test_forms.py",
    "serving/test_indexes.py",
    "index/test_sources.py",
    "models/test_resample.py",
    "clips/test_evaluation.py",
    "test_long_videos.py",
    "clips/test_training.py",
    "index/test_similar.py",
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
