"""Results that cannot be compared are kept apart."""

import json
import re
import shutil

import numpy as np
import pytest

from rice_jax.eval.place import describe, find_place
from rice_jax.eval.results import Row, read_results, write_results
from rice_jax.models.weights import save_weights
from rice_jax.types import DataError
from tests.eval.evaluations import evaluation
from tests.input.test_text_embeddings import write as write_embeddings
from tests.settings import small_config


@pytest.fixture
def workdir(shop, tmp_path):
    """A workdir with the evaluation of its training."""
    place = find_place(config_of(shop), tmp_path, None)
    assert place.is_own and place.directory == tmp_path and place.results == tmp_path / "results.json"
    write_results(place.results, {Row(6): evaluation()[1]}, {"step": 6, "evaluation": place.evaluation})
    return tmp_path


def config_of(shop, **overrides):
    return small_config(data__data_dir=str(shop), **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"eval__rerank": 3},
        {"eval__batch_size": 16, "data__batch_size": 4},
        {"data__num_frames": 5},
        {"train__total_steps": 60},
        {"data__device_resize_height": 99, "data__device_resize_width": 99},
    ],
)
def test_the_own_evaluation_stays_where_it_is(shop, workdir, overrides):
    for source in (None, workdir):
        place = find_place(config_of(shop, **overrides), workdir, source)
        assert place.directory == workdir and place.source == "" and place.name("retrieval") == "retrieval"


@pytest.mark.parametrize(
    ("overrides", "different"),
    [
        ({"eval__num_frames": 1}, "num_frames is 1 instead of 10"),
        ({"data__resize": 32}, "resize is 32 instead of 20"),
        ({"model__image_size": 24, "data__resize": 24}, "image_size is 24 instead of 16, resize is 24 instead of 20"),
        ({"model__ipd": "boxes"}, "ipd is 'boxes' instead of None"),
        ({"eval__score": "frames"}, "score is 'frames' instead of None"),
        ({"model__aggregation__kind": "embeddings"}, r"aggregation is \{'kind': 'embeddings'\} instead of None"),
        ({"model__aggregation__kind": "attention"}, r"aggregation is \{'kind': 'attention', 'non_local': 'none', "),
        ({"data__query": "lpr4m/train"}, "other data, query is 'lpr4m/train' instead of 'lpr4m/query'"),
    ],
)
def test_another_evaluation_has_a_directory_of_its_own(shop, workdir, overrides, different, caplog):
    caplog.set_level("INFO")
    places = [find_place(config_of(shop, **overrides), workdir, source) for source in (None, workdir)]
    assert places[0] == places[1] and not places[0].is_own
    assert places[0].directory.parent == workdir and places[0].directory.name.startswith("eval-lpr4m-")
    assert places[0].name("retrieval") == places[0].directory.name, "curves do not mix"
    assert f"{places[0].directory}: has the results of this evaluation" in caplog.text
    assert re.search(different, caplog.text)
    again = find_place(config_of(shop, **overrides, seed=3), workdir, workdir)
    assert again.directory == places[0].directory


def test_data_are_known_by_their_content(shop, workdir, tmp_path_factory):
    elsewhere = shutil.copytree(shop, tmp_path_factory.mktemp("elsewhere") / "built")
    assert find_place(config_of(elsewhere), workdir, workdir).is_own
    (features,) = (elsewhere / "lpr4m" / "gallery").glob("*/features.json")
    features.write_text(features.read_text() + "\n")
    assert not find_place(config_of(elsewhere), workdir, workdir).is_own


def test_a_file_of_boxes_counts_by_its_content(shop, tmp_path):
    found = []
    for number, text in enumerate(["a", "a", "b"]):
        (tmp_path / f"{number}.jsonl").write_text(text)
        boxes = str(tmp_path / f"{number}.jsonl")
        overrides = {"model__ipd": "detector", "data__query_boxes": boxes, "data__train_boxes": boxes}
        found.append(describe(config_of(shop, **overrides)))
    assert found[0] == found[1] != found[2]


def test_embeddings_of_texts_may_come_and_go_but_not_change(shop, workdir, tmp_path_factory):
    directory, configs = tmp_path_factory.mktemp("texts"), []
    for number, vectors in enumerate([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]):
        write_embeddings(directory / str(number) / "titles.parquet", vectors)
        texts = {"model__text": "embeddings", "model__text_dim": 2, "data__texts": str(directory / str(number))}
        configs.append(config_of(shop, loss__pmd_weight=1.0, **texts))
    place = find_place(configs[0], workdir, workdir)
    assert place.is_own, "a ranking by pictures is the same"
    write_results(place.results, {Row(6): evaluation()[1]}, {"step": 6, "evaluation": place.evaluation})
    assert find_place(configs[1], workdir, workdir).is_own and not find_place(configs[2], workdir, workdir).is_own
    without = find_place(config_of(shop), workdir, workdir)
    assert without.is_own and without.evaluation == place.evaluation, "the file still has rows with texts"


def test_weights_of_elsewhere_have_a_name(shop, tmp_path):
    (tmp_path / "runs" / "tuned" / "checkpoints" / "120" / "weights").mkdir(parents=True)
    tuned = tmp_path / "runs" / "tuned"
    for item in ("config", "weights"):
        (tuned / "checkpoints" / "120" / item).mkdir(exist_ok=True)
        (tuned / "checkpoints" / "120" / item / "file").touch()
    first = find_place(config_of(shop), tmp_path / "new", tuned)
    assert first.is_own and first.source == "runs/tuned after 120 steps"
    assert Row(0, source=first.source).label == "runs/tuned after 120 steps"
    assert find_place(config_of(shop), tmp_path / "new", tuned / "checkpoints" / "120").source == first.source
    write_results(first.results, {Row(0): evaluation()[1]}, {"evaluation": first.evaluation})
    assert find_place(config_of(shop), tmp_path / "new", tuned) == first
    other = find_place(config_of(shop), tmp_path / "new", tmp_path / "weights" / "converted")
    assert not other.is_own and other.source == "weights/converted"
    assert find_place(config_of(shop), tmp_path / "new", None).is_own, "a training begins where its start was evaluated"


def test_files_of_version_0_2(shop, tmp_path):
    """They tell the names of the data sets, and the number of frames."""
    old = {"step": 6, "data_dir": str(shop), "query": "lpr4m/query", "gallery": "lpr4m/gallery", "num_frames": 10}
    for change, is_own in [
        ({}, True),
        ({"data_dir": "/moved"}, True),
        ({"num_frames": 3}, False),
        ({"query": "lpr4m/query_750k"}, False),
        ({"query": "lpr4m/train"}, False),
    ]:
        write_results(tmp_path / "results.json", {Row(6): evaluation()[1]}, old | change)
        assert find_place(config_of(shop), tmp_path, tmp_path).is_own == is_own, change
    write_results(tmp_path / "results.json", {Row(6): evaluation()[1]}, old)
    checkpoint = tmp_path / "checkpoints" / "6"
    save_weights(checkpoint, {"encoder": {"x": np.zeros(1)}}, config_of(shop).to_dict())
    assert find_place(config_of(shop), tmp_path, tmp_path).is_own
    for overrides in ({"data__resize": 32}, {"model__ipd": "boxes"}):
        assert not find_place(config_of(shop, **overrides), tmp_path, tmp_path).is_own, "as the checkpoint tells"
    document = json.loads((tmp_path / "results.json").read_text())
    for row in document["results"]:
        del row["source"]
    (tmp_path / "results.json").write_text(json.dumps(document))
    assert list(read_results(tmp_path / "results.json")) == [Row(6)]


def test_what_is_damaged_is_named(shop, workdir):
    place = find_place(config_of(shop, eval__num_frames=1), workdir, workdir)
    place.directory.mkdir()
    place.results.write_text("")
    with pytest.raises(DataError, match=f"{place.results}: is damaged"):
        find_place(config_of(shop, eval__num_frames=1), workdir, workdir)
