"""Checkpoints on disk: their manifest, damage, older versions, changed settings and changed data."""

import functools
import logging
import operator
import random
import shutil

import jax
import jax.numpy as jnp
import pytest

from rice_jax.files import MANIFEST, find_damage, sha256
from rice_jax.models.weights import UNLISTED, CheckpointError, load_weights, newest_step, parameter_names
from rice_jax.train import checkpoint
from tests.settings import small_config

CONFIG = small_config()
DATA = {"lpr4m/train": "0" * 64}
EMBEDDING = {"encoder": {"kernel": jnp.arange(64.0).reshape(8, 8)}}
MOMENTS = {"count": jnp.int32(1), "mu": EMBEDDING}


def save(workdir, *steps, config=None, keep=5):
    """Saves checkpoints whose parameters are `EMBEDDING` plus their step."""
    with checkpoint.open_checkpoints(workdir, keep) as checkpoints:
        for step in steps:
            params = jax.tree.map(functools.partial(operator.add, step), EMBEDDING)
            checkpoint.save(checkpoints, step, params, MOMENTS, config or CONFIG.to_dict(), DATA)


def restore(workdir, config=CONFIG, data=DATA):
    """The newest step, and the first number of its parameters."""
    with checkpoint.open_checkpoints(workdir, keep=5) as checkpoints:
        step = checkpoints.latest_step()
        params, _ = checkpoint.restore(checkpoints, step, EMBEDDING, MOMENTS, config.to_dict(), data)
    return step, float(params["encoder"]["kernel"][0, 0])


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, 2, 4)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_a_checkpoint_lists_all_files_that_orbax_reads(saved):
    directory = saved / "checkpoints" / "4"
    assert {path.name for path in directory.iterdir()} == {*checkpoint.ITEMS, "data", MANIFEST, *UNLISTED}
    assert not find_damage(directory)
    for path in files_of(directory):
        if path.name not in (MANIFEST, *UNLISTED):
            whole = path.read_bytes()
            path.write_bytes(whole + b"x")
            assert str(path.relative_to(directory)) in find_damage(directory, contents=False)
            path.write_bytes(whole)
    assert not find_damage(directory)
    assert restore(saved) == (4, 4.0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(directory):
    return max(files_of(directory), key=lambda path: path.stat().st_size)


def empty_all(newest):
    for path in files_of(newest):
        path.write_bytes(b"")


def empty_directory(newest):
    shutil.rmtree(newest)
    newest.mkdir()


def become_a_file(newest):
    shutil.rmtree(newest)
    newest.touch()


DAMAGES = {
    "a bit of the weights": lambda newest: flip(largest(newest / "weights")),
    "a bit of the optimizer": lambda newest: flip(largest(newest / "optimizer")),
    "a bit of the settings": lambda newest: flip(largest(newest / "config")),
    "a cut file": lambda newest: largest(newest / "weights").write_bytes(largest(newest / "weights").read_bytes()[:9]),
    "empty files": empty_all,
    "an empty directory": empty_directory,
    "a file": become_a_file,
    "no weights": lambda newest: shutil.rmtree(newest / "weights"),
    "no optimizer": lambda newest: shutil.rmtree(newest / "optimizer"),
    "a missing file": lambda newest: largest(newest / "weights").unlink(),
    "a manifest of garbage": lambda newest: (newest / MANIFEST).write_text("[1, 2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(run, caplog, name):
    DAMAGES[name](run / "checkpoints" / "4")
    assert restore(run) == (2, 2.0)
    assert f"{run}/checkpoints/4: is damaged (" in caplog.text
    assert "the run goes on from step 2, so 2 steps are lost and done again" in caplog.text
    assert (run / "damaged-checkpoint-4").exists(), "nothing is deleted"
    save(run, 4)  # the place is free
    assert restore(run) == (4, 4.0)


def test_what_orbax_writes_for_itself_does_not_matter(run, caplog):
    for name in UNLISTED:
        (run / "checkpoints" / "4" / name).write_bytes(b"")
    assert restore(run) == (4, 4.0) and load_weights(run)[0]["encoder"]["kernel"][0, 0] == 4
    assert "damaged" not in caplog.text


def test_without_a_whole_checkpoint_nothing_starts_over(run):
    for step in "24":
        flip(largest(run / "checkpoints" / step / "weights"))
    with pytest.raises(CheckpointError, match=r"found no whole checkpoint \(4: weights/.* 2: weights/.*delete .*"):
        restore(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]


def test_inference_checks_the_weights_too(run, caplog):
    newest = run / "checkpoints" / "4"
    flip(largest(newest / "optimizer"))
    assert load_weights(run)[0]["encoder"]["kernel"][0, 0] == 4, "the optimizer does not matter here"
    flip(largest(newest / "weights"))
    with pytest.raises(CheckpointError, match=r"checkpoints/4: is damaged: weights/.*use an older checkpoint"):
        load_weights(run)
    assert load_weights(run / "checkpoints" / "2")[0]["encoder"]["kernel"][0, 0] == 2
    empty_directory(newest)
    assert newest_step(run) == 2
    assert load_weights(run)[0]["encoder"]["kernel"][0, 0] == 2
    assert f"{newest}: is not used, since it is not complete: config is missing" in caplog.text


def test_every_flipped_bit_is_noticed(run):
    directory, rng = run / "checkpoints" / "4", random.Random(0)
    paths = [path for path in files_of(directory) if path.name not in UNLISTED]
    for path in rng.choices(paths, [path.stat().st_size for path in paths], k=100):
        whole = path.read_bytes()
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert find_damage(directory)
        path.write_bytes(whole)


def test_a_checkpoint_without_a_manifest(run, caplog):
    """Version 0.2 wrote none, and had the position in the data as an item."""
    directory = run / "checkpoints" / "4"
    (directory / MANIFEST).unlink()
    shutil.rmtree(directory / "data")
    (directory / "position").mkdir()
    (directory / "position" / "metadata").write_text('{"examples": 32}')
    assert restore(run) == (4, 4.0) and not caplog.text
    for path in files_of(directory / "weights"):
        path.write_bytes(path.read_bytes()[:20])
    for read in (restore, load_weights, parameter_names):
        with pytest.raises(CheckpointError, match=r"checkpoints/4: cannot be read \(.*\); copy it again") as error:
            read(run)
        assert len(str(error.value).splitlines()) == 1


def test_settings_that_a_checkpoint_does_not_know_have_their_defaults(tmp_path):
    """A new setting in an old group, and a new group."""
    values = CONFIG.to_dict()
    del values["optimizer"]["clip_norm"], values["model"]["pfr"], values["loss"]["detection"]
    save(tmp_path, 2, config=values)
    assert restore(tmp_path) == (2, 2.0)
    for setting, default in {"optimizer__clip_norm": 0.0, "model__pfr__init": "random"}.items():
        changed = small_config(**{setting: {0.0: 1.0, "random": "ones"}[default]})
        name = setting.replace("__", ".")
        with pytest.raises(CheckpointError, match=f"config.{name}: checkpoint has {default!r}, this run has"):
            restore(tmp_path, changed)


def test_training_may_become_longer_but_not_shorter(run, caplog):
    with caplog.at_level(logging.WARNING):
        assert restore(run, small_config(train__total_steps=10)) == (4, 4.0)
    assert "was planned for 6 steps and now has 10 (config.train.total_steps)" in caplog.text
    assert "Learning rates depend on it" in caplog.text
    with pytest.raises(CheckpointError, match="config.train.total_steps: checkpoint has 6, this run has 5"):
        restore(run, small_config(train__total_steps=5))


def test_other_data_is_refused(run):
    with pytest.raises(CheckpointError, match="the training data lpr4m/train has changed since this checkpoint"):
        restore(run, data={"lpr4m/train": "1" * 64})


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
