"""Which clips are held out, and the settings of a run on clips."""

import dataclasses
from pathlib import Path

import pytest

from rice_jax.clips.dataset import MAX_FRAMES, QUERY, TRAIN, Making, write_data_sets
from rice_jax.clips.labels import Clip
from rice_jax.clips.training import config_file, hold_out, run_settings
from rice_jax.config import Config, ConfigError
from rice_jax.config.files import load_config
from rice_jax.config.resolve import resolve
from rice_jax.index.model import saved_settings
from rice_jax.input.ground_truth import read_gallery_index, read_metadata, read_query_index
from rice_jax.input.pipeline import train_batches
from rice_jax.input.source import Source
from rice_jax.types import DataError
from tests.shop import png, write_mp4


def clip(film, number=0, path=Path("x.mp4"), product="p0", start=0.0, end=None):
    return Clip(path, product, start, end, film, f"clips.csv:{number}")


def test_whole_films_are_held_out():
    clips = [clip(f"film {number % 7}", number) for number in range(70)]
    train, held = hold_out(clips, 0.2)
    assert {own.film for own in train}.isdisjoint(own.film for own in held)
    assert sorted([*train, *held]) == sorted(clips) and len(held) == 20
    assert train == [own for own in clips if own in train], "in their order"


def test_more_clips_of_a_film_stay_on_its_side():
    clips = [clip(f"film {number % 7}", number) for number in range(70)]
    _, held = hold_out(clips, 0.2)
    first = sorted({own.film for own in held})
    more = [clip(first[0], 100 + number) for number in range(20)]
    _, held = hold_out([*clips, *more], 0.2)
    assert {own.film for own in held} <= set(first)


@pytest.mark.parametrize(
    ("num_films", "of_each", "none", "expected"),
    [
        (10, 7, 0, 21),  # a fifth would be 14
        (10, 7, 3, 30),  # 21 of which show a product
        (30, 4, 0, 24),  # a fifth is enough
        (10, 10, 0, 20),
        (20, 2, 0, 8),  # 20 are more than a third
        (3, 10, 0, 10),
        (2, 30, 0, 30),
        (9, 7, 0, 21),  # exactly a third
        (10, 2, 30, 64),  # a fifth has 4 with a product, and a third 6
    ],
)
def test_enough_clips_to_calibrate_are_held_out_by_default(num_films, of_each, none, expected):
    clips = [
        clip(f"film {number % num_films}", number, product="p" if number < num_films * of_each else "")
        for number in range(num_films * (of_each + none))
    ]
    train, held = hold_out(clips)
    assert len(held) == expected and {own.film for own in train}.isdisjoint(own.film for own in held)
    at_least = hold_out(clips, 0.2)[1]
    assert {own.film for own in at_least} <= {own.film for own in held}, "one order of films"


@pytest.mark.parametrize("seed", range(8))
def test_a_calibration_takes_at_most_a_third_of_the_clips_with_a_product(seed):
    films = {f"{seed} {name}": count for name, count in (("a", 12), ("b", 8), *((name, 0) for name in "cdef"))}
    clips = [clip(film, n) for film, count in films.items() for n in range(count)]
    clips += [clip(film, 100 + n, product="") for film, count in films.items() if not count for n in range(10)]
    _, held = hold_out(clips)
    shown = sum(bool(own.product) for own in held)
    assert held == hold_out(clips, 0.2)[1] or shown <= 20 / 3


@pytest.mark.parametrize("seed", range(12))
def test_both_parts_show_products_where_they_can(seed):
    films = {f"{seed} {name}": "" if name == "c" else "p" for name in "abc"}
    clips = [clip(film, number, product=product) for film, product in films.items() for number in range(4)]
    for parts in (hold_out(clips), hold_out(clips, 0.1), hold_out(clips, 0.9)):
        assert all(any(own.product for own in part) for part in parts)


def test_a_film_is_left_to_train_on():
    train, held = hold_out([clip("a", 1), clip("b", 2)], 0.99)
    assert len(train) == len(held) == 1
    with pytest.raises(DataError, match="found clips of one film, a, expected at least two"):
        hold_out([clip("a", 1), clip("a", 2)], 0.2)


def test_settings_start_from_the_index_and_survive_their_file(live_shop, tmp_path):
    about = live_shop.index.about
    config = run_settings(about, tmp_path, num_pairs=43, num_devices=1)
    assert (config.data.batch_size, config.data.num_frames, config.data.resize) == (8, 3, about.resize)
    assert config.model.init_from == about.checkpoint and config.model.width == 32
    assert config.loss.pmd_weight == 1, "the model has a decoder"
    assert config.train.total_steps == 20 * 43 // 8 + 1 and config.eval.num_frames == about.num_frames
    path = tmp_path / "config.py"
    path.write_text("\n".join(config_file(config)))
    assert resolve(load_config(str(path)).to_dict()) == config
    assert list(config_file(Config()))[-2:] == ["    config = default_config()", "    return config"]


@pytest.mark.parametrize(
    "changes, num_pairs, num_devices, message",
    [
        ({"ipd": "boxes"}, 8, 1, "was trained with config.model.ipd='boxes', which needs boxes; clips have none"),
        ({}, 1, 1, r"found too few pairs of a clip and a picture \(1\) for the devices \(1\); label more clips"),
        ({}, 7, 8, r"found too few pairs of a clip and a picture \(7\) for the devices \(8\)"),
    ],
)
def test_what_clips_cannot_train(live_shop, tmp_path, changes, num_pairs, num_devices, message):
    with pytest.raises(ConfigError, match=message):
        run_settings(dataclasses.replace(live_shop.index.about, **changes), tmp_path, num_pairs, num_devices)


def test_a_student_is_trained_without_its_teacher(live_shop, tmp_path, monkeypatch):
    saved = saved_settings(Path(live_shop.index.about.checkpoint))
    student = saved | {"loss": dict(saved["loss"]) | {"distill_weight": 1.0, "distill_direct_weight": 2.0}}
    monkeypatch.setattr("rice_jax.clips.training.saved_settings", lambda _: student)
    assert not run_settings(live_shop.index.about, tmp_path, 8, 1).loss.distills


def test_a_decoder_that_reads_texts_cannot_be_trained_on_clips(live_shop, tmp_path, monkeypatch):
    saved = saved_settings(Path(live_shop.index.about.checkpoint))
    reads = saved | {"model": dict(saved["model"]) | {"text": "tower"}}
    monkeypatch.setattr("rice_jax.clips.training.saved_settings", lambda _: reads)
    with pytest.raises(
        ConfigError, match=r"its decoder reads texts \(config.model.text='tower'\), which labeled clips"
    ):
        run_settings(live_shop.index.about, tmp_path, 8, 1)


@pytest.fixture(scope="module")
def film(live_shop, tmp_path_factory):
    return write_mp4(tmp_path_factory.mktemp("film") / "film.mp4", live_shop.pictures[:3], 30, rate=2)


def test_data_sets_are_what_training_reads(live_shop, film, tmp_path):
    index = dataclasses.replace(live_shop.index, product_ids=["p0", "p0", *live_shop.index.product_ids[2:]])
    train = [clip("a", 2, film, "p0", 0, 25), clip("a", 3, film, "p2", 60, 63)]
    held = [clip("b", 4, film, "p0", 31.5, 40)]
    making = Making(1.0, 20)
    counts = write_data_sets(tmp_path, index, train, held, making)
    assert counts == {"clips/train": 3, "clips/query": 1, "clips/gallery": 8}
    rows = list(Source(str(tmp_path), TRAIN))
    assert [(row["clip_id"], row["image_id"], len(row["frames"])) for row in rows] == [
        (b"clips.csv:2", b"p0", MAX_FRAMES), (b"clips.csv:2", b"p0", MAX_FRAMES), (b"clips.csv:3", b"p2", 3)
    ]  # fmt: skip
    assert [row["image"] for row in rows] == [png(live_shop.pictures[row]) for row in (0, 1, 2)]
    config = dataclasses.replace(
        run_settings(index.about, tmp_path, 3, 1).input, batch_size=2, crop_around_box=False, num_threads=0
    )
    batch = next(train_batches(config))
    assert batch["video"].shape == (2, 3, 16, 16, 3)
    [query] = read_query_index(config)
    assert query.image_ids == ("a/p0", "a/p1") and query.gallery_id == "shop"
    galleries, names, products = read_gallery_index(config.data_dir, config.gallery)
    assert set(galleries) == {"shop"} and names[0] == "a/p0" and names[-1] == "b/p7"
    assert products == ["a/p0", "a/p0", *names[2:]]
    assert read_metadata(config, "query")["num_queries"] == 1 and not (tmp_path / "frames").exists()
    assert (len(Source(str(tmp_path), QUERY)[0]["frames"])) == 8, "frames at 32, 33, …, 39"


def test_sets_of_the_same_labels_are_kept_and_of_others_replaced(live_shop, film, tmp_path):
    train, held = [clip("a", 2, film, "p0", 0, 5)], [clip("b", 4, film, "p1", 31, 33)]
    making = Making(1.0, 20)
    arguments = tmp_path, live_shop.index, train
    write_data_sets(*arguments, held, making)
    written = (tmp_path / TRAIN / "1.0.0" / "metadata.json").stat().st_mtime_ns
    write_data_sets(*arguments, held, making, replace=False)
    assert (tmp_path / TRAIN / "1.0.0" / "metadata.json").stat().st_mtime_ns == written
    others = [clip("b", 4, film, "p1", 31, 34)]
    with pytest.raises(DataError, match="was made of other labels, pictures, or settings, and a run has been trained"):
        write_data_sets(*arguments, others, making, replace=False)
    write_data_sets(*arguments, others, making)
    assert len(Source(str(tmp_path), QUERY)[0]["frames"]) == 3


def test_what_cannot_be_used_is_listed_and_the_rest_is_kept(live_shop, film, tmp_path):
    train = [clip("a", 2, film, "p0", 0, 5), clip("c", 3, tmp_path / "nowhere.mp4", "p1")]
    held = [clip("d", 4, tmp_path / "gone.mp4", "p1")]
    with pytest.raises(DataError) as caught:
        write_data_sets(tmp_path, live_shop.index, train, held, Making(1.0, 20))
    title, *lines = str(caught.value).splitlines()
    assert title.startswith("2 of 3 clips cannot be used; repair their files or leave out their lines")
    assert [line.partition("mp4: ")[2][:14] for line in lines] == ["does not exist"] * 2 and "clips.csv:3" in lines[0]
    assert len(list((tmp_path / "frames").iterdir())) == 1, "the film need not be read again"
    missing = dataclasses.replace(live_shop.index, paths=[str(tmp_path / "no.png"), *live_shop.index.paths[1:]])
    with pytest.raises(DataError, match=r"1 of 8 pictures of the index cannot be used; .*\n  .*no\.png: No such file"):
        write_data_sets(tmp_path, missing, train[:1], held, Making(1.0, 20))
