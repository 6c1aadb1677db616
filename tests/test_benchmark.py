import importlib.util
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax.config import ConfigError
from rice_jax.models.create import create_params
from rice_jax.models.encoders.vit import Vit
from rice_jax.models.rice import Rice
from rice_jax.tasks.retrieval import retrieval_loss
from scripts import benchmark
from scripts.benchmarks import data_speed, encode_speed, peaks, rank_speed, step_speed, timing
from scripts.benchmarks.least import encoder_operations, encoder_parameters, least_operations
from scripts.benchmarks.naive import NaiveRice, PairwiseRice
from tests import programs
from tests.settings import model_of, small_config
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


def run(capsys, *arguments):
    """What a table says, row by row, as JSON and as text."""
    benchmark.main(arguments)
    about, header, *cells, result = capsys.readouterr().out.splitlines()
    result = json.loads(result)
    assert len(cells) == len(result["rows"])
    assert header.split() == " ".join(name.replace("_", " ") for name in result["rows"][0]).split()
    return result, cells


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
    _, none, dots, full = (line.split() for line in capsys.readouterr().out.splitlines())
    assert none[1] == dots[1] == full[1]
    assert float(full[2]) < 0.5 * float(none[2]) and float(full[2]) < float(dots[2]) < float(none[2])


def test_the_naive_steps_compute_the_same():
    config = small_config(data__batch_size=16, model__layers=4, model__pmd__num_pairs=2)
    params = create_params(model_of(config), mesh_of(1), seed=0)

    def loss_and_gradients(model):
        graphdef = nnx.split(nnx.eval_shape(lambda: model(model_of(config), rngs=nnx.Rngs(0))))[0]
        loss = lambda params, rows: retrieval_loss(graphdef, params, rows, config.loss)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch())

    def assert_same(ours, naive):
        np.testing.assert_allclose(ours, naive, rtol=1e-4, atol=1e-4 * np.abs(naive).max() + 1e-7)

    ours = loss_and_gradients(Rice)
    for naive in (NaiveRice, PairwiseRice):
        jax.tree.map(assert_same, ours, loss_and_gradients(naive))


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.model.widht=3", "ConfigError: config.model.widht: unknown, expected one of the settings image_size"),
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
    indexed=timing.Speed(9_000.0, 10_000.0),
    built_by_one=timing.Speed(40.0, 60.0),
    built_by_all=timing.Speed(70.0, 50.0),
    pictures_per_pair=8.75,
    decoded=[timing.Speed(1500.0, speed) for speed in (500.0, 1000.0, 2000.0)],
    fast_decoded=[timing.Speed(1800.0, speed) for speed in (800.0, 1250.0, 2400.0)],
    resized=[timing.Speed(900.0, speed) for speed in (250.0, 800.0, 1000.0)],
    read=[timing.Speed(700.0, speed) for speed in (400.0, 500.0, 600.0)],
)


def test_what_follows_from_the_speeds():
    assert timing.ratio(SPEEDS.read, SPEEDS.decoded).per_core_second == 0.5, (
        "of 0.8, 0.5 and 0.3, not of the medians' ratio"
    )
    index, clips = data_speed.build_hours(SPEEDS, 20)
    assert index == pytest.approx(473_402_226 / 200_000 / 3600)
    assert clips == pytest.approx(4_013_617 / 1000 / 3600)
    assert data_speed.pairs_per_second(0.4 * 197e12) == 8
    report = data_speed.report(SPEEDS, 315.2e9)
    assert "takes 2,000 pairs and 17,500 pictures a second (8.75 a pair): 35 cores" in report
    assert re.search(r"clips stored, --workers 2 +70.0 +50.0\n", report)
    assert re.search(r"training input, 2 threads +700.0 +500.0 +0.50 +0.40\n", report)
    assert re.search(r"\n16 +0.8 +1.4\n", report)
    result = json.loads(report.splitlines()[-1])
    assert result["rows"][-1] == {
        "name": "pictures of the training input, 2 threads",
        "per_second": 700.0,
        "per_core_second": 500.0,
    }
    assert result["v5e-8"]["cores"] == 35 and result["hours"][1]["clips"] == pytest.approx(1.4, abs=0.05)


def test_data_is_measured(capsys, monkeypatch):
    built = []

    def build(command, **_):
        """Forks the builder, which spares an import for each of its runs."""
        assert command[:2] == [sys.executable, data_speed.ROOT / "data/build.py"] and command[1].exists()
        built.append(programs.run([sys.executable, "-m", "data.build", *map(str, command[2:])]))
        assert built[-1].returncode == 0, built[-1].stderr

    monkeypatch.setattr(data_speed, "subprocess", types.SimpleNamespace(run=build))
    small = ["--config.data.batch_size=4", "--config.model.image_size=32"]
    benchmark.main(["data", "--clips=24", "--rounds=1", "--seconds=0.1", "--cores=1", *small])
    out = capsys.readouterr().out
    for name in ("indexed, 1 process", "decoding, Pillow, 1 process", "simplejpeg, 1 process", "input, 1 thread"):
        (found,) = re.findall(rf"{name}\w* +(.+)\n", out)
        assert len(found.split()) >= 2 and all(float(number) > 0 for number in found.split()), found
    (pictures_per_pair,) = map(float, re.findall(r"\((.+) a pair\)", out))
    assert 7 < pictures_per_pair < 10, "an image and 1 to 10 frames, 7.75 on average"
    assert len(built) == 4, "of few and of many clips, once to make the index and once to measure"


def test_too_few_clips_to_tell_the_speed_of_a_build(tmp_path, monkeypatch):
    clock, core_clock = iter(range(100)), iter([0, 9, 10, 19, 20, 25, 30, 32])  # 9 s, 9 s to warm up, 5 s and 2 s
    monkeypatch.setattr(data_speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(data_speed, "_core_seconds", lambda who: next(core_clock))
    monkeypatch.setattr(data_speed.subprocess, "run", lambda *args, **kwargs: None)
    speed = data_speed._build_speed(tmp_path, tmp_path, tmp_path, difference=12, workers=1, rounds=1)
    np.testing.assert_array_equal(speed, (np.nan, 4.0))


class Clock:
    """Stands still until a task takes its time."""

    def __init__(self):
        self.seconds = 0.0

    def task(self, durations, calls):
        def work(times):
            calls.append(times)
            self.seconds += times * next(durations)

        return work


def test_tasks_take_turns(monkeypatch):
    clock, fast, slow = Clock(), [], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.seconds)
    monkeypatch.setattr(timing.time, "process_time", lambda: 2 * clock.seconds)
    durations = {  # compiles; tells how often; in each round, not measured and measured
        "fast": iter([9.0, 0.5, 9.0, 0.5, 9.0, 1.0]),
        "slow": iter([9.0, 3.0, 9.0, 2.0, 9.0, 8.0]),
    }
    tasks = {"fast": clock.task(durations["fast"], fast), "slow": clock.task(durations["slow"], slow)}
    results = timing.take_turns(tasks, units=4, rounds=2, seconds=2.0)
    assert (fast, slow) == ([1, 1, 1, 4, 1, 4], [1] * 6)
    assert results == {"fast": [(8, 4), (4, 2)], "slow": [(2, 1), (0.5, 0.25)]}
    assert timing.median(results["fast"]) == (6, 3)
    assert timing.ratio(results["fast"], results["slow"]) == (6, 6), "of 4 and 8"


def test_unknown_values_stay_empty(capsys):
    timing.print_rows({"name": "", "pictures_per_second": ".1f"}, [{"name": "a", "pictures_per_second": None}], cores=2)
    about, header, row, result = capsys.readouterr().out.splitlines()
    assert (about, header.split(), row.split()) == ("cores 2", ["name", "pictures", "per", "second"], ["a"])
    assert json.loads(result) == {"cores": 2, "rows": [{"name": "a", "pictures_per_second": None}]}


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    device = types.SimpleNamespace(device_kind=kind)
    assert peaks.peak_operations(device, "bfloat16") == peak
    assert peaks.peak_operations(device, "float32") is None


@pytest.mark.parametrize("frames", [0, 3])
def test_all_rank_alike(frames):
    data = rank_speed.make_data(rank_speed.Size(queries=50, images=333, galleries=7, frames=frames))
    np.testing.assert_allclose(np.linalg.norm(data.images, axis=1), 1, rtol=1e-6)
    ours, (ranks, first, scores) = rank_speed.rank(data), rank_speed.rank_with_numpy(data)
    np.testing.assert_array_equal(ours.rank, ranks)
    np.testing.assert_array_equal([[int(name[1:]) for name, _ in top] for top in ours.top], first)
    np.testing.assert_allclose([[score for _, score in top] for top in ours.top], scores, atol=1e-6)
    own, top, images = rank_speed.name_with_numpy(data)
    assert tuple(own) == ours.truth_ranks and tuple(images) == ours.images
    assert [[name for name, _ in of_query] for of_query in top] == [[name for name, _ in best] for best in ours.top]
    if "faiss" in rank_speed.methods() and not frames:
        np.testing.assert_array_equal(rank_speed.find_with_faiss(data), first)


def test_ranking_is_measured(capsys):
    result, cells = run(capsys, "rank", "--sizes=1000x5000x1", "--rounds=1", "--cores=1")
    rows = {row["by"]: row for row in result["rows"]}
    assert rows.keys() == rank_speed.methods().keys()
    assert result["cores"] == 1 and cells[0].split()[:5] == ["1,000", "5,000", "1", "0", "ours"]
    assert rows["numpy"]["GiB_beside_data"] > 1000 * 5000 * 4 / 2**30, "all scores"
    assert all(0 < row["GiB_in_all"] < 2 and row["seconds"] > 0 for row in rows.values())
    assert rows["ours"]["of_our_seconds"] == rows["ours"]["of_our_core_seconds"] == 1


@pytest.mark.parametrize("size", ["20x30", "20x30x0", "20x30xa"])
def test_bad_sizes(capsys, size):
    with pytest.raises(SystemExit):
        benchmark.main(["rank", f"--sizes={size}"])
    assert f"found {size}, expected queries x images x galleries" in capsys.readouterr().err


def test_pushing_frames_is_measured(capsys):
    small = {"model.width": 32, "model.layers": 2, "model.heads": 2, "model.pmd.num_heads": 2, "model.image_size": 64}
    settings = [f"--config.{name}={value}" for name, value in small.items()]
    result, cells = run(capsys, "live", "--images=20", "--rerank=5", "--frames=8", "--cores=1", *settings)
    assert [row["re-ranked"] for row in result["rows"]] == [0, 5] and result["images"] == 20
    assert cells[0].split()[:3] == ["as", "set", "0"]
    for row in result["rows"]:
        assert 0 < row["median_ms"] <= row["p99_ms"] <= row["longest_ms"] and row["core_ms"] > 0


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 1.05),
        # Queries of the patches, which are not needed, are computed with the keys and values.
        ({"mlp_ratio": 2.5, "registers": 3, "pooling": "attention", "class_token": False}, 1.07),
        ({"gated_mlp": True, "mlp_ratio": 8 / 3, "projection": False, "embed_dim": SIZES["model.width"]}, 1.05),
    ],
    ids=["CLIP's", "SigLIP's", "DINOv2's"],
)
def test_what_an_encoder_cannot_do_without(changes, most):
    changes = {f"model.{name}": value for name, value in changes.items()}
    config = benchmark.settings({**SIZES, "model.unroll": True, **changes})
    learning, weights_learning = encoder_operations(config)
    graphdef, params = nnx.split(Vit(config.model.encoder, rngs=nnx.Rngs(0)))
    forward = jax.jit(lambda params, pictures: nnx.merge(graphdef, params)(pictures)[1])
    compiled = forward.lower(params, jnp.zeros((1, 32, 32, 3))).compile()
    least = sum(learning.values()) + sum(weights_learning.values())
    assert least < compiled.cost_analysis()["flops"] < most * least
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert encoder_parameters(config.model) == pytest.approx(matrices, rel=0.05)


def test_the_fewest_operations_of_other_encoders_are_not_guessed():
    config = benchmark.settings({"model.architecture": "swin", "loss.pmd_weight": 0.0})
    with pytest.raises(ConfigError, match="architecture: found 'swin', expected 'vit': the fewest operations of other"):
        least_operations(config)


def test_encoding_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(encode_speed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(benchmark, "on_cpu", lambda: False)  # bfloat16, then
    monkeypatch.setitem(peaks.PEAKS, "cpu", 1e15)
    small = ["--batch=2,3", "--rounds=1", "--seconds=0.01", f"--profile={tmp_path}"]
    result, _ = run(capsys, "encode", *small, *arguments())
    rows = result["rows"]
    assert result["peak"] == "1000 TFLOP/s"
    assert [(row["batch"], row["work"], row["by"]) for row in rows] == [
        (batch, work, "ours bfloat16") for batch in (2, 3) for work in ("forward", "forward + backward")
    ]
    for row in rows:
        rate = row["pictures_per_second"] * row["GFLOP_per_picture"] * 1e9
        assert row["of_torch_float32"] is None and row["TFLOP_per_second"] == pytest.approx(rate / 1e12)
        assert row["utilization"] == pytest.approx(rate / 1e15)
    assert 2.5 < rows[1]["GFLOP_per_picture"] / rows[0]["GFLOP_per_picture"] < 3
    assert len(list(tmp_path.glob("*/plugins/profile/*/*.xplane.pb"))) == 4


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
class TestWithTorch:
    def test_both_encoders_are_of_one_size(self):
        from transformers import CLIPVisionModelWithProjection

        config = benchmark.settings(SIZES).model
        theirs = CLIPVisionModelWithProjection(encode_speed.vision_config(config))
        ours = jax.tree.leaves(nnx.split(Vit(config.encoder, rngs=nnx.Rngs(0)))[1])
        assert sum(leaf.size for leaf in ours) == sum(parameter.numel() for parameter in theirs.parameters())

    def test_encoding_is_measured(self, capsys):
        result, _ = run(capsys, "encode", "--batch=2", "--rounds=2", "--seconds=0.01", "--cores=1", *arguments())
        rows = {(row["work"], row["by"]): row for row in result["rows"]}
        names = ["ours float32", *(f"torch {dtype}" for dtype in encode_speed.torch_dtypes())]
        assert list(rows) == [(work, name) for work in encode_speed.WORKS for name in names]
        for (_, name), row in rows.items():
            assert row["pictures_per_second"] > 0 and row["utilization"] is None
            assert (row["of_torch_float32"] == 1) == (name == "torch float32")


def test_what_does_not_fit_is_left_out(capsys, monkeypatch):
    def take_turns(tasks, units, rounds, seconds):
        if units > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return {name: [timing.Speed(3.0, 2.0)] for name in tasks}

    configs = [benchmark.settings({**SIZES, "data.batch_size": size}) for size in (8, 4)]
    monkeypatch.setattr(step_speed, "training_tasks", lambda config, alone: {"ours": None, "naive": None})
    monkeypatch.setattr(step_speed, "take_turns", take_turns)
    assert [row["pairs"] for row in step_speed.measure(configs, rounds=1, seconds=1.0)] == [4, 4]
    assert capsys.readouterr().err == "8 pairs: more memory than there is\n"
    with pytest.raises(RuntimeError, match="something else"), timing.skip_too_large("8 pairs"):
        raise RuntimeError("something else")


def test_training_is_measured(capsys, tmp_path):
    small = ["--rounds=1", "--seconds=0.01", "--cores=1", f"--profile={tmp_path}"]
    result, _ = run(capsys, "step", *small, *arguments(**{"model.width": 32}))
    ours, naive, pairwise = result["rows"]
    assert [row["by"] for row in result["rows"]] == ["ours", "naive", "pairwise"]
    assert all((row["pairs"], row["frames"]) == (4, 3) for row in result["rows"])
    assert pairwise["of_naive"] == pytest.approx(pairwise["pairs_per_second"] / naive["pairs_per_second"])
    assert ours["of_naive"] == pytest.approx(ours["pairs_per_second"] / naive["pairs_per_second"])
    assert naive["of_naive"] == 1 and naive["utilization"] is None and naive["per_core_second"] > 0
    assert [result[name] for name in ("device", "peak", "dtype")] == ["cpu", "unknown", "float32"]
    assert len(list(tmp_path.glob("batch4/plugins/profile/*/*.xplane.pb"))) == 1


def test_copes_training_is_measured_alone(capsys):
    small = [flag for flag in arguments(**{"model.width": 32, "model.layers": 1}) if "pmd" not in flag]
    tower = [
        "text_tower.layers=1",
        "text_tower.width=16",
        "text_tower.heads=2",
        "text_tower.mlp_width=16",
        "text_tower.embed_dim=16",
    ]
    small += [f"--config.model.{setting}" for setting in ["integration_heads=2", "cope.num_classes=20", *tower]]
    result, _ = run(capsys, "step", "--config=cope", "--rounds=1", "--seconds=0.01", *small)
    [row] = result["rows"]
    assert row["by"] == "ours" and row["pairs_per_second"] > 0
    assert row["of_naive"] is row["GFLOP_per_pair"] is None, "of X-CLIP the fewest operations are not counted"


def test_attention_is_measured(capsys):
    small = ["--batch=2,3", "--rounds=1", "--seconds=0.01", *arguments(**{"model.width": 32})]
    result, _ = run(capsys, "attention", *small)
    rows = [(row["batch"], row["work"], row["by"]) for row in result["rows"]]
    assert rows == [(batch, work, "xla") for batch in (2, 3) for work in encode_speed.WORKS], "a CPU has no cuDNN"
    assert all(row["tokens"] == 17 and row["of_xla"] == 1 for row in result["rows"])


def test_a_batch_of_noise():
    config = benchmark.settings({**SIZES, "data.batch_size": 4})
    batch = step_speed.random_batch(config)
    assert batch["video"].shape == (4, 3, 32, 32, 3) and batch["video"].std() > 70 and batch["frame_mask"].all()
    assert batch["image_key"].tolist() == [0, 1, 2, 3], "or none would be a negative"
