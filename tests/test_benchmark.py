import re

import jax
import numpy as np
import pytest
from flax import nnx

from rice_jax.models.rice import Rice
from rice_jax.train.state import create_params
from rice_jax.train.steps import retrieval_loss
from scripts import benchmark, data_speed
from tests.settings import small_config
from tests.train.test_steps import batch, mesh_of

# Wide enough for matrix products to outweigh what grows with the width and not with its square.
SIZES = {
    "data.batch_size": 4,
    "data.num_frames": 3,
    "data.resize": 32,
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.width": 256,
    "model.layers": 2,
    "model.heads": 4,
    "model.embed_dim": 32,
    "model.pmd.num_heads": 4,
}


def arguments(**more):
    return [f"--config.{name}={value}" for name, value in (SIZES | more).items()]


def test_our_step_does_little_more_than_the_least_and_the_naive_one_much_more(capsys):
    benchmark.main(["flops", *arguments()])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: [float(x) for x in re.findall(r"[\d.]+", line)] for line in lines[1:4]}
    (least, ours, naive) = (np.reshape(rows[name], (3, 2)) for name in ("least", "ours", "naive"))
    np.testing.assert_array_equal(least[:, 1], 1)
    assert np.all(ours[:, 1] > 1) and np.all(ours[:, 1] < 1.05), "of ICL, of PMD and PFR, and of both"
    assert naive[0, 0] == ours[0, 0] and naive[1, 0] > 4 * ours[1, 0]
    terms = sum(float(line.split()[-1]) for line in lines[6:])
    assert terms == pytest.approx(least[2, 0], rel=1e-2)


def test_recomputing_activations_needs_less_memory(capsys):
    benchmark.main(["memory", *arguments(**{"model.layers": 6, "model.width": 32})])
    _, kept, recomputed = (line.split()[1:] for line in capsys.readouterr().out.splitlines())
    assert kept[0] == recomputed[0] and float(recomputed[1]) < 0.5 * float(kept[1])


def test_the_naive_step_computes_the_same():
    config = small_config(data__batch_size=16, model__layers=4, model__pmd__num_pairs=2)
    params = create_params(config.model, mesh_of(1), seed=0)

    def loss_and_gradients(model):
        graphdef = nnx.split(nnx.eval_shape(lambda: model(config.model, rngs=nnx.Rngs(0))))[0]
        loss = lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch())

    def assert_same(ours, naive):
        np.testing.assert_allclose(ours, naive, rtol=1e-4, atol=1e-4 * np.abs(naive).max() + 1e-7)

    jax.tree.map(assert_same, loss_and_gradients(Rice), loss_and_gradients(benchmark.NaiveRice))


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.model.widht=3", "ConfigError: config.model: unknown keys ['widht']"),
        ("--config.modle.width=3", 'KeyError: \'Key "modle.width"'),
        ("--config.model.width=x", "ConfigError: config.model.width: found 'x' (str), expected int"),
        ("--config.loss.pmd_weight=0", "ConfigError: config.loss.pmd_weight: found 0, expected more"),
        ("--width=3", "found --width=3, expected --config.x.y=value"),
    ],
)
def test_bad_settings(capsys, flag, expected):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["flops", flag])
    assert expected in f"{stopped.value}{capsys.readouterr().err}"


SPEEDS = data_speed.Speeds(
    cores=2,
    indexed=data_speed.Speed(9_000.0, 10_000.0),
    built_by_one=data_speed.Speed(40.0, 60.0),
    built_by_all=data_speed.Speed(70.0, 50.0),
    pictures_per_pair=8.75,
    decoded=[data_speed.Speed(1500.0, speed) for speed in (500.0, 1000.0, 2000.0)],
    fast_decoded=[data_speed.Speed(1800.0, speed) for speed in (800.0, 1250.0, 2400.0)],
    resized=[data_speed.Speed(900.0, speed) for speed in (250.0, 800.0, 1000.0)],
    read=[data_speed.Speed(700.0, speed) for speed in (400.0, 500.0, 600.0)],
)


def test_what_follows_from_the_speeds():
    assert data_speed.ratio(SPEEDS.read, SPEEDS.decoded) == 0.5, "of 0.8, 0.5 and 0.3, not of the medians' ratio"
    index, clips = data_speed.build_hours(SPEEDS, 20)
    assert index == pytest.approx(473_402_226 / 200_000 / 3600)
    assert clips == pytest.approx(4_013_617 / 1000 / 3600)
    assert data_speed.pairs_per_second(0.4 * 197e12) == 8
    report = data_speed.report(SPEEDS, 315.2e9)
    assert "takes 2,000 pairs and 17,500 pictures a second (8.75 a pair): 35 cores" in report
    assert re.search(r"clips stored, --workers 2 +70.0 +50.0\n", report)
    assert re.search(r"training input, 2 threads +700.0 +500.0 +0.50 +0.40\n", report)
    assert re.search(r"\n16 +0.8 +1.4\n", report)


def test_data_is_measured(capsys):
    small = ["--config.data.batch_size=4", "--config.model.image_size=32"]
    benchmark.main(["data", "--clips=24", "--rounds=1", "--seconds=0.1", "--cores=1", *small])
    out = capsys.readouterr().out
    for name in ("indexed, 1 process", "decoding, Pillow, 1 process", "simplejpeg, 1 process", "input, 1 thread"):
        (found,) = re.findall(rf"{name}\w* +(.+)\n", out)
        assert len(found.split()) >= 2 and all(float(number) > 0 for number in found.split()), found
    (pictures_per_pair,) = map(float, re.findall(r"\((.+) a pair\)", out))
    assert 7 < pictures_per_pair < 10, "an image and 1 to 10 frames, 7.75 on average"


def test_too_few_clips_to_tell_the_speed_of_a_build(tmp_path, monkeypatch):
    clock, core_clock = iter(range(100)), iter([0, 9, 10, 19, 20, 25, 30, 32])  # 9 s, 9 s to warm up, 5 s and 2 s
    monkeypatch.setattr(data_speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(data_speed, "_core_seconds", lambda who: next(core_clock))
    monkeypatch.setattr(data_speed.subprocess, "run", lambda *args, **kwargs: None)
    speed = data_speed._build_speed(tmp_path, tmp_path, tmp_path, difference=12, workers=1, rounds=1)
    np.testing.assert_array_equal(speed, (np.nan, 4.0))
