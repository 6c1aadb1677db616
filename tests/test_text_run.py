"""A run that reads texts, from embedding them to re-ranking."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from rice_jax import main
from rice_jax.config import MeshConfig
from rice_jax.eval.calibration import read_calibration
from rice_jax.eval.results import Row, read_about, read_results
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.index.model import load_model
from rice_jax.index.update import build_index
from rice_jax.input.pipeline import eval_batches
from rice_jax.input.source import Source
from rice_jax.input.texts import collect, stored_texts
from rice_jax.models.weights import CheckpointError, load_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.recognition.engine import Engine
from rice_jax.tasks import resolve
from tests.input.rope import BUILT, write_rope
from tests.settings import small_values
from tests.shop import draw, png
from tests.text_model import EMBED_DIM, write_text_model

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow
STEPS = 4


def embed(shop, model, out):
    embedder = TextEmbedder(load_text_model(model), 8)
    for kind in ("titles", "speech"):
        names = ("lpr4m/train", "lpr4m/query", "lpr4m/gallery")
        write_embeddings(out / kind, collect(stored_texts(str(shop), names, kind)).texts, embedder)
    return out


def settings(shop, **further):
    own = dict(data__data_dir=str(shop), train__total_steps=STEPS, eval__rerank=2, train__trackers="")
    values = small_values(**own | further)
    return resolve(values)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("model"))


def test_a_run_with_embeddings_is_trained_resumed_and_evaluated(shop, text_model, tmp_path):
    texts = embed(shop, text_model, tmp_path / "texts")
    config = settings(shop, model__text="embeddings", model__text_dim=EMBED_DIM, data__texts=str(texts))
    main.run(config, tmp_path / "whole", "train")
    assert {Row(0), Row(STEPS), Row(STEPS, "match", 2)} <= read_results(tmp_path / "whole" / "results.json").keys()
    _check_resumed(config, tmp_path / "whole", tmp_path / "killed")
    assert load_model(tmp_path / "whole").config.text.embed_dim == EMBED_DIM, "an index can be made with it"
    _check_recognized(config, tmp_path / "whole", tmp_path / "live")
    other = embed(shop, write_text_model(tmp_path / "other", shift=0.1), tmp_path / "others")
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, texts=str(other)))
    with pytest.raises(CheckpointError, match="was trained with texts that another model embedded .*; embed them with"):
        main.run(changed, tmp_path / "whole", "eval")
    with pytest.raises(CheckpointError, match="is not the text tower that embedded the texts of the decoder"):
        build_index(
            _titled(tmp_path), model=tmp_path / "whole", out=tmp_path / "index", text_model=tmp_path / "other/text"
        )
    tower = settings(shop, model__text="tower", model__text_init_from=str(text_model))
    with pytest.raises(CheckpointError, match="has no trained text tower .*; evaluate a run of config.model.text="):
        main.run(tower, tmp_path / "whole", "eval")
    with pytest.raises(CheckpointError, match="the training data .*config.data.texts.* has changed since this check"):
        longer = dataclasses.replace(changed, train=dataclasses.replace(config.train, total_steps=STEPS + 1))
        main.run(longer, tmp_path / "whole", "train")


def test_a_run_ranks_by_picture_and_text(shop, text_model, tmp_path, monkeypatch):
    """Without a decoder, and then with one that re-orders the ranking; the calibration has the weight."""
    texts = embed(shop, text_model, tmp_path / "texts")
    model = {"model__text": "embeddings", "model__text_dim": EMBED_DIM, "data__texts": str(texts)}
    alone = {"loss__pmd_weight": 0.0, "loss__pfr_weight": 0.0}
    plain = settings(shop, **alone | {"eval__rerank": 0})
    main.run(plain, tmp_path / "run", "train")
    expected = read_results(tmp_path / "run" / "results.json")[Row(STEPS)]
    fused = settings(shop, **model | alone | {"eval__rerank": 0, "eval__text_weight": "0.5"})
    evaluated = _evaluate(fused, tmp_path, "fixed")
    assert evaluated[Row(STEPS)].score == expected.score, "the ranking by pictures stays as it was"
    assert evaluated[Row(STEPS, "fused")].subsets["speech"].keys() <= {"with", "without"}
    found = read_calibration(tmp_path / "fixed")
    assert (found.text_weight, found.text_model) == (0.5, str(text_model.absolute()))
    assert found.text_fingerprint == load_text_model(text_model).fingerprint
    index = build_index(_titled(tmp_path), model=tmp_path / "fixed", out=tmp_path / "index")
    assert index.text.weight == 0.5 and index.text.fingerprint == found.text_fingerprint
    assert Engine(index).reads_texts

    fit = settings(shop, **model | alone | {"eval__rerank": 0, "eval__text_weight": "fit", "eval__score": "frames"})
    _evaluate(fit, tmp_path, "fit")
    [place] = (tmp_path / "fit").glob("eval-*/results.json")  # the run's own results are by the mean
    about = read_about(place)
    assert len(about["text_weights"]) in (1, 2) and about["rankings"]["ranking"] == "fused"
    monkeypatch.setattr(main, "create_mesh", lambda _: create_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    _evaluate(fit, tmp_path, "one")
    [place] = (tmp_path / "one").glob("eval-*/results.json")
    one = read_about(place)["text_weights"]
    assert one == pytest.approx(about["text_weights"], rel=0.01, abs=1e-3)


def _evaluate(config, directory, name):
    """Evaluates the run in a copy of it."""
    shutil.copytree(directory / "run", directory / name)
    main.run(config, directory / name, "eval")
    return read_results(directory / name / "results.json")


def _titled(directory):
    """A shop's CSV with a title of each of its two pictures."""
    for number in range(2):
        (directory / f"{number}.png").write_bytes(png(draw(number)))
    path = directory / "shop.csv"
    path.write_text("id,path,title\n0,0.png,西装\n1,1.png,\n", encoding="utf-8")
    return path


def test_a_run_trains_its_text_tower(shop, text_model, tmp_path):
    losses = {f"loss__{name}_weight": 0.1 for name in ("image_title", "video_speech", "title_speech")}
    config = settings(shop, model__text="tower", model__text_init_from=str(text_model), **losses)
    assert (config.model.text_tower.width, config.model.text_tower.embed_dim) == (24, EMBED_DIM)
    main.run(config, tmp_path, "train")
    assert Row(STEPS, "match", 2) in read_results(tmp_path / "results.json")
    _check_resumed(config, tmp_path, tmp_path.with_name(f"{tmp_path.name}-killed"))
    _check_recognized(config, tmp_path, tmp_path.with_name(f"{tmp_path.name}-live"))
    start, trained = load_weights(text_model)[0]["text"], load_weights(tmp_path)[0]["text"]
    again = dataclasses.replace(config.eval, text_weight="0.25")
    main.run(dataclasses.replace(config, eval=again), tmp_path, "eval")
    rows = [Row(STEPS, "fused"), Row(STEPS, "match", 2), Row(STEPS, "weighted_match", 2)]
    assert {*rows} <= read_results(tmp_path / "results.json").keys()
    about = read_about(tmp_path / "results.json")
    assert about["rankings"] == dataclasses.asdict(rows[-1]) and about["text_weights"] == [0.25]
    assert len(about["match_weights"]) in (1, 2)
    own = load_text_model(tmp_path)
    found = read_calibration(tmp_path)
    assert (found.text_weight, found.text_model, found.text_fingerprint) == (0.25, "", own.fingerprint)
    index = build_index(_titled(tmp_path), model=tmp_path, out=tmp_path / "index")
    assert index.about.calibration.match_weight is not None, "beside the scores with texts"
    assert index.about.calibration.match_fingerprint == index.about.match_fingerprint
    np.testing.assert_allclose(index.text.vectors[0], TextEmbedder(own, 8)(["西装"])[0][0], atol=1e-6)
    assert index.text.model == str(tmp_path)
    moved = np.abs(trained["projection"]["kernel"] - start["projection"]["kernel"])
    assert 0 < moved.max() < 0.1
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"image_title", "video_speech", "title_speech"} <= {name for line in logged for name in line}
    saved = json.loads((tmp_path / "run.json").read_text())["config"]["model"]
    assert saved["text_tower"]["vocab_size"] == 187


def test_pairs_of_items_bring_their_texts(text_model, tmp_path, one_device):
    write_rope(tmp_path)
    domains = dict.fromkeys(("data__train", "data__query", "data__gallery"), "")
    config = settings(
        tmp_path / BUILT, task="domains", data__domains="rope/pages,rope/videos,rope/lives", data__batch_size=4,
        eval__rerank=0, model__text="tower", model__text_init_from=str(text_model), loss__title_speech_weight=0.1,
        loss__pfr_weight=0.0, **domains,
    )  # fmt: skip
    main.run(config, tmp_path / "run", "train")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in logged if "loss" in line]
    assert len(trained) == STEPS and all(line["pmd"] > 0 and line["title_speech_share"] > 0 for line in trained)
    before, after = (load_weights(source)[0]["text"] for source in (text_model, tmp_path / "run"))
    assert (before["projection"]["kernel"] != after["projection"]["kernel"]).any()


def _check_recognized(config, run, directory):
    """An index of the gallery ranks the queries, with what is said in them, as the run's evaluation does."""
    directory.mkdir()
    data, lines = config.eval_input, []
    for row in Source(data.data_dir, data.gallery, ("gallery_id", "image_id", "title", "image")):
        gallery, image_id, title = (row[name].decode() for name in ("gallery_id", "image_id", "title"))
        (directory / f"{image_id}.jpg").write_bytes(row["image"])
        lines.append(f"{gallery},{image_id},{image_id}.jpg,{title}\n")
    (directory / "shop.csv").write_text("gallery,id,path,title\n" + "".join(lines), encoding="utf-8")
    index = build_index(directory / "shop.csv", model=run, out=directory / "index")
    about = dataclasses.replace(index.about, calibration=None)  # so that the decoder alone orders
    engine = Engine(dataclasses.replace(index, about=about), rerank=2)
    ranked = [json.loads(line) for line in (run / "rankings_match.jsonl").read_text().splitlines()]
    queries, said = Source(data.data_dir, data.query, ("clip_id", "asr")), 0
    [batch] = eval_batches(data, "query", len(queries))
    for query, own, video, mask in zip(queries, ranked, batch["video"], batch["frame_mask"], strict=True):
        assert query["clip_id"].decode() == own["query"]
        speech, frames = query["asr"].decode(), engine.encode(video[mask])
        found = engine.rank(frames, own["gallery"], top=2, speech=speech).products
        assert [match.id for match in found] == [name for name, _ in own["top"][:2]]
        np.testing.assert_allclose([one.score for one in found], [one for _, one in own["top"][:2]], atol=1e-5)
        alone = {one.id: one.score for one in engine.rank(frames, own["gallery"], top=2).products}
        said += any(abs(one.score - alone[one.id]) > 1e-4 for one in found)
    assert said


def _check_resumed(config, whole, killed):
    """Killed before its last checkpoint and resumed, the run `whole` ends with the same weights in `killed`."""
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / str(STEPS))
    main.run(config, killed, "train")
    weights = (jax.tree.leaves(load_weights(workdir)[0]) for workdir in (whole, killed))
    for expected, found in zip(*weights, strict=True):
        np.testing.assert_array_equal(expected, found)
