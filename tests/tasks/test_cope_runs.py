"""Runs of task "cope": interrupted, with new products, from another run's weights, in one process and in two."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from rice_jax.config import Config, ConfigError, MeshConfig, load_config
from rice_jax.config.command_line import override
from rice_jax.config.cope import DOMAINS
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.results import Row, read_results
from rice_jax.files import leaving_no_trace
from rice_jax.index.model import read_settings
from rice_jax.input.digest import training_digests
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.main import run as run_main
from rice_jax.models.create import abstract_params, create_model, create_params, model_class
from rice_jax.models.text_weights import tokenizer_folder
from rice_jax.models.weights import CHECKPOINTS, CheckpointError, load_weights, read_config
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks import TASKS, resolve
from rice_jax.tasks import cope as task_module
from rice_jax.tasks.cope import PRODUCTS
from rice_jax.tasks.start import initial_params, resume_run
from rice_jax.tasks.task import Run
from rice_jax.train import checkpoint
from rice_jax.train.optimizer import create_optimizer
from tests.data.raw_rope import product_of
from tests.fixtures import SIZES, command
from tests.input.rope import BUILT, write_rope
from tests.parallel.test_processes import finish, metrics, start_two
from tests.text_model import write_text_model

SAME = "loss", "accuracy", "page-live", "class-page", "class-live", "gradient_norm", "new_learning_rate"
STEPS, KNOWN, GROWN = 6, 14, 17  # training products before and after; two of them are in one domain
FLAGS = SIZES | {
    "data.num_frames": 3,
    "eval.num_frames": 3,
    "data.pair_hue": 0.2,
    "model.num_frames": 3,
    "model.init_from": "",
    "model.integration_heads": 2,
    "model.dtype": "float32",
    "model.text_tower.layers": 12,
    "model.text_tower.head": "projection",
    "model.text_tower.embed_dim": 512,
    "model.cope.embed_dim": 8,
    "model.cope.max_tokens": 6,
    "loss.cope.sampled_classes": 8,
    "optimizer.encoder_learning_rate": 1e-3,
    "optimizer.text_learning_rate": 5e-4,
    "eval.pixels": False,
}
FLAGS.pop("model.pmd.num_heads")


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """The class matrix grows when there are new products, and not only the part of it that is in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "CLASS_ROWS", 4)
        yield


@pytest.fixture(scope="module")
def ropes(tmp_path_factory):
    """Two data sets: of some products, and of more."""
    found = []
    for count in (KNOWN, GROWN):
        directory = tmp_path_factory.mktemp(f"rope-{count}")
        write_rope(directory, num_train=count)
        found.append(directory / BUILT)
    return found


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def flags_of(text_model):
    return lambda data_dir, **changes: (
        FLAGS
        | {"data.data_dir": data_dir, "model.text_init_from": text_model}
        | {name.replace("__", "."): value for name, value in changes.items()}
    )


@pytest.fixture(scope="module")
def settings(flags_of):
    def resolved(data_dir, workdir=None, **changes) -> Config:
        flags = [f"--config.{name}={value}" for name, value in flags_of(data_dir, **changes).items()]
        return resolve(override(load_config("cope").to_dict(), flags), workdir)

    return resolved


@pytest.fixture(scope="module")
def whole(ropes, settings, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("cope") / "run"
    run_main(settings(ropes[0]), workdir, "train")
    return workdir


def copy_until(workdir, to, step: int):
    """A run as it was when it was killed after saving a step."""
    shutil.copytree(workdir, to)
    for path in (to / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
    return to


def run_of(config: Config, workdir, devices: int = 8) -> Run:
    """What `main.run` makes of a configuration."""
    config = TASKS["cope"].prepare(config, workdir)
    mesh, model = create_mesh(MeshConfig(-1, 4), jax.devices()[:devices]), TASKS["cope"].model(config)
    return Run(config, workdir, mesh, model, create_model(model, mesh), abstract_params(model, mesh))


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(whole, ropes, settings, tmp_path):
    workdir = copy_until(whole, tmp_path / "run", 4)
    (workdir / "results.json").unlink()
    run_main(settings(ropes[0]), workdir, "train")
    (saved, _), (expected, _) = load_weights(workdir), load_weights(whole)
    assert expected["classes"]["embedding"].shape == (12, 8)
    jax.tree.map(np.testing.assert_array_equal, saved, expected)
    found = metrics(workdir)
    for step, line in metrics(whole).items():
        assert {name: found[step][name] for name in SAME} == {name: line[name] for name in SAME}


def test_a_run_logs_each_loss_and_rate_and_evaluates_with_texts_and_without(whole, ropes, settings):
    last = metrics(whole)[STEPS]
    assert last.keys() >= {"page-video", "page-live", "video-live", *(f"class-{name}" for name in DOMAINS), "accuracy"}
    assert {name for name in last if name.endswith("_learning_rate")} == {
        *("encoder_learning_rate", "new_learning_rate", "text_learning_rate")
    }
    rows = [Row(step, ranking) for step in (0, STEPS) for ranking in ("embedding", "without_text")]
    results = read_results(whole / "results.json", DomainResult)
    assert list(results) == rows
    assert [row.label for row in rows][2:] == ["after 6 steps", "after 6 steps, without texts"]
    assert all(len(result.retrieval) == len(result.one_shot) == 6 for result in results.values())
    assert "Without" not in TASKS["cope"].summary(run_of(settings(ropes[0]), whole), 5)
    summary = TASKS["cope"].summary(run_of(settings(ropes[0]), whole), STEPS)
    assert "After 6 steps.\n" in summary and "After 6 steps, without texts.\n" in summary
    saved = read_config(whole / "checkpoints" / str(STEPS))
    assert saved["model"]["cope"]["num_classes"] == 12 and saved["data"]["products"] == str(whole / PRODUCTS)
    products = (whole / PRODUCTS).read_text().splitlines()
    assert products == sorted(product_of(product) for product in range(KNOWN) if product not in (0, 5))


def test_a_run_keeps_its_tokenizer_and_can_be_moved(whole, text_model, tmp_path):
    moved = shutil.copytree(whole, tmp_path / "moved")
    assert tokenizer_folder(moved) == tokenizer_folder(moved / CHECKPOINTS / str(STEPS)) == moved / "tokenizer"
    assert read_settings(moved).tokenizer == str(moved / "tokenizer")
    kept, first = (Tokenizer(str(place / "tokenizer"), 8) for place in (moved, text_model))
    assert kept.digest == first.digest


def test_evaluation_needs_neither_the_products_nor_their_centers(whole, ropes, settings, tmp_path):
    workdir = copy_until(whole, tmp_path / "run", STEPS)
    (workdir / PRODUCTS).unlink()
    before = read_results(workdir / "results.json", DomainResult)
    run_main(settings(ropes[0]), workdir, "eval")
    after = read_results(workdir / "results.json", DomainResult)
    assert [row for row in after if row.step == STEPS] == [row for row in before if row.step == STEPS]
    for row, result in before.items():
        assert after[row].retrieval.keys() == result.retrieval.keys()
        for pair, expected in result.retrieval.items():
            assert after[row].retrieval[pair].score.rank == expected.score.rank


def test_new_products_get_fresh_centers_and_all_else_goes_on(whole, ropes, settings, tmp_path, caplog):
    workdir = copy_until(whole, tmp_path / "run", STEPS)
    run = run_of(settings(ropes[1], train__total_steps=8), workdir)
    data = training_digests(run.config.input)
    names = (workdir / PRODUCTS).read_text().splitlines()
    assert names[:12] == (whole / PRODUCTS).read_text().splitlines() and len(names) == 15
    pretrained = model_class(run.model).PRETRAINED
    optimizer = create_optimizer(run.config.optimizer, 8, pretrained, run.mesh)
    with checkpoint.open_checkpoints(workdir, keep=2) as checkpoints:
        state = resume_run(run, checkpoints, STEPS, optimizer, data)
        (workdir / PRODUCTS).write_text("".join(f"{name}\n" for name in reversed(names)))
        with pytest.raises(CheckpointError, match=r"products.txt: found other products in its first 12 lines than at"):
            resume_run(run, checkpoints, STEPS, optimizer, data)
        few = dataclasses.replace(run.config.model.cope, num_classes=9)
        fewer = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, cope=few))
        (workdir / PRODUCTS).write_text("".join(f"{name}\n" for name in names[:9]))
        with pytest.raises(CheckpointError, match="found other products in its first 12 lines"):
            resume_run(dataclasses.replace(run, config=fewer), checkpoints, STEPS, optimizer, data)
    assert "the data have 3 new products, 15 in all; their centers start fresh, and all else goes on" in caplog.text
    saved, _ = load_weights(workdir)
    rows = state.params["classes"]["embedding"]
    assert rows.shape == (16, 8) and saved["classes"]["embedding"].shape == (12, 8)
    np.testing.assert_array_equal(rows[:12], saved["classes"]["embedding"])
    fresh = create_params(run.model, run.mesh, run.config.seed)["classes"]["embedding"]
    np.testing.assert_array_equal(rows[12:], fresh[12:])
    rest = {name: part for name, part in saved.items() if name != "classes"}
    jax.tree.map(np.testing.assert_array_equal, {name: state.params[name] for name in rest}, rest)
    moments = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if "classes" in jax.tree_util.keystr(path) and np.ndim(leaf) == 2
    ]
    assert len(moments) == 2 and all(np.any(x[:12], axis=1).sum() >= 8 and not np.any(x[12:]) for x in moments)
    assert state.step == STEPS


def test_a_new_run_takes_the_centers_of_products_that_it_shares(whole, ropes, settings, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / PRODUCTS).write_text(f"other\n{product_of(7)}\n")  # of a user, in an order of his own
    run = run_of(settings(ropes[1], tmp_path / "new", model__init_from=whole), tmp_path / "new")
    params = initial_params(run)
    own = (tmp_path / "new" / PRODUCTS).read_text().splitlines()
    theirs = (whole / PRODUCTS).read_text().splitlines()
    saved, _ = load_weights(whole)
    fresh = create_params(run.model, run.mesh, run.config.seed)["classes"]["embedding"]
    for row, product in enumerate(own):
        expected = saved["classes"]["embedding"][theirs.index(product)] if product in theirs else fresh[row]
        np.testing.assert_array_equal(params["classes"]["embedding"][row], expected)
    assert "has centers of 12 of the 16 products; the others start fresh" in caplog.text
    np.testing.assert_array_equal(params["live"]["visual"]["kernel"], saved["live"]["visual"]["kernel"])
    assert "1 of its 16 products have no items in the data any more" in caplog.text


def test_two_processes_give_the_numbers_of_one(whole, ropes, flags_of, tmp_path):
    flags = [f"--config.{name}={value}" for name, value in flags_of(ropes[0], train__total_steps=STEPS).items()]
    arguments = command(ropes[0], tmp_path, *flags, "--config.mesh.fsdp=2", config="configs/cope.py", tiny={})
    running = start_two(arguments, 2)
    outputs = finish(running)
    assert [process.returncode for process in running] == [0, 0], outputs
    expected = metrics(whole)
    for step, line in metrics(tmp_path).items():
        for name in SAME:
            assert line[name] == pytest.approx(expected[step][name], rel=5e-5), (step, name)
    (saved, _), (wanted, _) = load_weights(tmp_path), load_weights(whole)
    found = saved["classes"]["embedding"][:12]
    np.testing.assert_allclose(found, wanted["classes"]["embedding"][:12], rtol=1e-3, atol=1e-5)


def test_a_failed_start_leaves_nothing(ropes, settings, tmp_path):
    workdir = tmp_path / "new" / "run"
    with (
        pytest.raises(ConfigError, match="sampled_classes: found 99, expected at most the 12 products of the data"),
        leaving_no_trace(workdir, CHECKPOINTS, file=PRODUCTS),
    ):
        workdir.mkdir(parents=True)
        run_main(settings(ropes[0], loss__cope__sampled_classes=99), workdir, "train")
    assert not list(tmp_path.iterdir())
