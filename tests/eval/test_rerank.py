import dataclasses
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rice_jax import main
from rice_jax.config import ConfigError, MeshConfig
from rice_jax.eval import ranking, rerank
from rice_jax.eval.calibration import read_calibration
from rice_jax.eval.embed import compile_embedder, compile_rows, compute_rows, model_embedder
from rice_jax.eval.results import PIXELS, Row, read_about, read_rankings, read_results
from rice_jax.eval.weight import MAX_WEIGHT
from rice_jax.models.create import create_model
from rice_jax.models.rice import Rice, normalize
from rice_jax.models.weights import CheckpointError, load_weights, match_fingerprint, save_weights
from rice_jax.parallel.mesh import create_mesh
from tests.fixtures import command, run, start
from tests.settings import model_of, small_config


def _ranked(*queries):
    """A ranking of queries (names of their gallery, best first; truths), the first 9 kept by name."""
    return ranking.Ranking(
        query_ids=tuple(f"q{i}" for i in range(len(queries))),
        gallery_ids=("g",) * len(queries),
        truth_ranks=tuple(_truth_ranks(names, truths) for names, truths in queries),
        gallery_size=np.array([len(names) for names, _ in queries]),
        truths=tuple(tuple(truths) for _, truths in queries),
        top=tuple(tuple((name, -float(i)) for i, name in enumerate(names[:9])) for names, _ in queries),
        images=tuple(tuple(names[:9]) for names, _ in queries),
    )


def _truth_ranks(names, truths):
    return tuple(i + 1 for i, name in enumerate(names) if name in truths)


def _names(ranked):
    return ["".join(name for name, _ in top) for top in ranked.top]


@pytest.mark.parametrize(
    ("gallery", "truths", "cosines", "order", "rank"),
    [
        ("abcd", "b", [0.1, 0.9, 0.5], "bcad", 1),
        ("abcd", "a", [0.1, 0.9, 0.5], "bcad", 3),
        ("abcd", "bd", [0.9, 0.1, 0.5], "acbd", 3),
        ("abcd", "d", [0.1, 0.9, 0.5], "bcad", 4),  # behind the matched ones it stays where it was
        ("abcd", "z", [0.1, 0.9, 0.5], "bcad", 0),  # a miss stays one
        ("abcd", "a", [0.5, 0.5, 0.5], "bcad", 3),  # a tie never helps …
        ("abcd", "ab", [0.5, 0.5, 0.5], "cabd", 2),  # … and else the order by embedding decides
        ("abcd", "a", [0.0, -0.0, -0.1], "bacd", 2),
        ("abcd", "b", [0.3], "abcd", 2),  # K = 1 changes nothing
        ("ab", "a", [0.1, 0.2, np.nan], "ba", 2),  # the gallery is smaller than K
        ("a", "a", [-1.0, np.inf, 7.0], "a", 1),
    ],
)
def test_the_order_and_the_rank_of_the_truth(gallery, truths, cosines, order, rank):
    before = _ranked((gallery, truths))
    after = rerank.reorder(before, np.array([cosines], np.float32))
    assert _names(after) == [order]
    assert after.rank.tolist() == [rank]
    whole = order + gallery[9:]  # the first 9 are kept by name
    assert after.truth_ranks == (_truth_ranks(whole, truths),)
    score = dict(zip(gallery, np.float32(cosines).tolist(), strict=False))
    old = dict(before.top[0])
    assert after.top[0] == tuple((name, score.get(name, old[name])) for name in order)
    for field in ("query_ids", "gallery_ids", "gallery_size", "truths"):
        assert getattr(after, field) is getattr(before, field)
    assert after.num_truths.tolist() == before.num_truths.tolist()


def test_re_ranking_is_sorting_by_the_new_scores():
    """The whole gallery matched is a ranking by these scores in the first place."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (30, 9)).astype(np.float32)  # many ties
    images = [f"i{i}" for i in range(9)]
    truths = [rng.choice(images, rng.integers(1, 4), replace=False).tolist() for _ in range(30)]
    common = [[f"q{i}" for i in range(30)], ["g"] * 30, truths]

    def rank(embeddings):  # images that are unit vectors: a query's embedding is its scores
        gallery = ranking.GalleryImages(np.eye(9, dtype=np.float32), ["g"] * 9, images)
        return ranking.rank(ranking.Queries(embeddings, *common), gallery)

    first = rank(np.tile(np.arange(9, 0, -1, dtype=np.float32), (30, 1)))  # in the order of the gallery
    found, expected = rerank.reorder(first, scores), rank(scores)
    assert found.top == expected.top and found.truth_ranks == expected.truth_ranks
    np.testing.assert_array_equal(found.rank, expected.rank)


def test_a_cosine_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="Query 'q1' .* not finite: .* diverged"):
        rerank.reorder(_ranked(("ab", "a"), ("ab", "a")), np.array([[0, 1], [0, np.nan]], np.float32))


def test_candidates_are_rows_of_the_own_gallery():
    before = _ranked(("abc", "a"), ("b", "b"), ("cab", "b"))
    gallery_ids, image_ids = ["other", "g", "g", "other", "g"], list("abcca")
    rows = rerank.candidates(before, 2, gallery_ids, image_ids)
    assert rows.tolist() == [[4, 1], [1, 5], [2, 4]]
    assert rerank.candidates(before, 50, gallery_ids, image_ids).shape == (3, 3), "no wider than a gallery"


def _random_model(config):
    """A model without a mesh, and weights that distinguish images, which fresh weights hardly do."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Rice(model_of(config), rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    draw = lambda x: 0.2 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
    return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


def _pictures(num_queries, num_images, seed=0):
    rng = np.random.default_rng(seed)
    frame_mask = np.arange(3) < rng.integers(1, 4, num_queries)[:, None]
    video = rng.integers(0, 256, (num_queries, 3, 16, 16, 3), np.uint8) * frame_mask[..., None, None, None]
    return video, frame_mask, rng.integers(0, 256, (num_images, 16, 16, 3), np.uint8)


def _batches(size, **arrays):
    """As `eval_batches` yields them."""
    num = len(jax.tree.leaves(arrays)[0])
    filled = jax.tree.map(lambda x: np.concatenate([x, np.zeros((-num % size, *x.shape[1:]), x.dtype)]), arrays)
    for first in range(0, num, size):
        index = np.arange(first, first + size)
        yield jax.tree.map(lambda x, rows=index: x[rows], filled) | {
            "index": index.astype(np.int32),
            "mask": index < num,
        }


def _pair_by_pair(model, video, frame_mask, images, rows, kept):
    """What Pmd says of one pair at a time; of `kept`, with the image's side rounded as it is kept."""

    @nnx.jit
    def match(model, video, frame_mask, image):
        image_tokens, video_tokens = (
            model.encoder(normalize(pictures, "clip"))[0] for pictures in (image[None], video)
        )
        if not kept:
            none = jnp.zeros((1, 0), jnp.int32)
            return model.pmd(image_tokens, video_tokens[None], frame_mask[None], none).cosine[0, 0]
        queries = model.pmd.image_queries(image_tokens).astype(jnp.bfloat16).astype(jnp.float32)
        keys_values = model.pmd.keys_values(video_tokens.reshape(1, -1, video_tokens.shape[-1]))
        token_mask = jnp.repeat(frame_mask, video_tokens.shape[1])[None]
        return model.pmd.cosine(model.pmd.decode(queries, keys_values, token_mask))[0]

    found = [
        [match(model, video[query], frame_mask[query], images[row]) for row in candidates]
        for query, candidates in enumerate(rows)
    ]
    return np.array(found, np.float32)


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_sharded_batches_match_as_pmd_does_pair_by_pair(num_pairs):
    config = small_config(model__layers=4, model__pmd__num_pairs=num_pairs)
    mesh = create_mesh(MeshConfig(fsdp=2))
    assert mesh.size == 8
    graphdef = create_model(model_of(config), mesh)
    alone, params = _random_model(config)
    video, frame_mask, images = _pictures(num_queries=11, num_images=13)
    rows = np.random.default_rng(1).integers(0, 13, (11, 3))

    embedder = compile_embedder(model_embedder(graphdef, with_queries=True), params, mesh)
    kept = compute_rows(embedder.image, params, _batches(8, image=images), 13, mesh).queries
    assert kept.dtype == jnp.bfloat16
    assert kept.shape == (13, 1 if num_pairs == 1 else 5, 32), "with one pair of blocks the CLS token is all it takes"

    match = compile_rows(rerank.matcher(graphdef), params, mesh)
    found = {}
    for name, candidates in {"queries": kept[rows], "images": {"image": images[rows]}}.items():
        batches = _batches(8, video=video, frame_mask=frame_mask, **{name: candidates})
        found[name] = compute_rows(match, params, batches, 11, mesh)
        assert found[name].shape == (11, 3) and found[name].dtype == np.float32
        expected = _pair_by_pair(nnx.merge(alone, params), video, frame_mask, images, rows, kept=name == "queries")
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert match._cache_size() == 2, "one compilation serves all batches"
    rounding = np.abs(found["queries"] - found["images"]).max()
    assert 0 < rounding < 0.01 < np.ptp(found["images"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(eval__rerank=-1), "config.eval.rerank: found -1, expected 0 or more"),
        (dict(eval__rerank=3, loss__pmd_weight=0.0), "config.eval.rerank: found 3, expected 0 with config.loss.pmd_"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**settings)


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory):
    """Directories of weights that came from elsewhere: of a whole model, and of models that lack something."""
    config = small_config()
    _, params = _random_model(config)
    directory = tmp_path_factory.mktemp("weights")
    config = {"model": dataclasses.asdict(config.model)}
    save_weights(directory / "whole", params, config)
    save_weights(directory / "encoder", {"encoder": params["encoder"]}, config)
    del params["pmd"]["match_vector"]
    save_weights(directory / "part", params, config)
    return directory


@pytest.mark.parametrize(("name", "lacks"), [("encoder", "pmd/cross_blocks/down/bias"), ("part", "pmd/match_vector")])
def test_a_fresh_decoder_is_never_asked(shop, trained, tmp_path, name, lacks):
    config = small_config(data__data_dir=str(shop), model__init_from=str(trained / name), eval__rerank=3)
    message = f"{trained / name}: has no trained decoder to match with \\({lacks} is missing\\).* config.eval.rerank=0"
    with pytest.raises(CheckpointError, match=message):
        main.run(config, tmp_path, "eval")
    assert not list(tmp_path.iterdir())


def test_weights_with_a_decoder_are_matched_before_any_training(shop, trained, tmp_path, capsys):
    settings = dict(data__data_dir=str(shop), model__init_from=str(trained / "whole"), eval__pixels=True)
    source, lines, weighted = "/".join((trained / "whole").parts[-2:]), {}, {}
    for num_matched in (1, 50):  # 50 are more than a gallery has
        main.run(small_config(**settings, eval__rerank=num_matched), tmp_path, "eval")
        lines[num_matched] = read_rankings(tmp_path / "rankings_match.jsonl")
        weighted[num_matched] = read_rankings(tmp_path / "rankings.jsonl")
    printed = capsys.readouterr().out
    assert f"Subsets {source}, first {num_matched} by both:" in printed
    assert f"\n{source}, first {num_matched} matched " in printed

    results = read_results(tmp_path / "results.json")
    ranked = [(ranking, num_matched) for num_matched in (1, 50) for ranking in ("match", "weighted_match")]
    rows = [Row(0, source=source), *(Row(0, *own, source) for own in ranked)]
    assert list(results) == [PIXELS, *rows]
    assert [results[row].seconds is not None for row in results] == [False, True, True, True, True, True]
    assert results[rows[1]].score == results[rows[2]].score == results[rows[0]].score, "one image has no order"
    about = read_about(tmp_path / "results.json")
    assert about["rankings"] == dataclasses.asdict(rows[4])
    assert [line["rank"] for line in weighted[1]] == [line["rank"] for line in lines[1]]
    before = read_rankings(tmp_path / "rankings_embedding.jsonl")
    assert [line["rank"] for line in before] == [line["rank"] for line in lines[1]]
    assert before != weighted[50]
    for before, match, found in zip(weighted[1], lines[50], weighted[50], strict=True):
        matched = dict(match["top"])  # `before` is by embedding, with its scores
        sums = [{name: score + w * matched[name] for name, score in before["top"]} for w in about["match_weights"]]
        assert any(dict(found["top"]) == pytest.approx(own, abs=1e-5) for own in sums)
        scores = [score for _, score in found["top"]]
        assert scores == sorted(scores, reverse=True)
    params, config = load_weights(trained / "whole")
    calibration = read_calibration(tmp_path)
    assert calibration.match_fingerprint == match_fingerprint(params, model_of(small_config(**config)))
    assert 0 <= calibration.match_weight <= MAX_WEIGHT >= calibration.match_weight_by_frames >= 0
    for first, all_ in zip(lines[1], lines[50], strict=True):
        assert first["query"] == all_["query"] and len(all_["top"]) == all_["gallery_size"]
        assert dict(all_["top"])[first["top"][0][0]] == pytest.approx(first["top"][0][1], abs=1e-5), "of the same pair"
        scores = [score for _, score in all_["top"]]
        assert scores == sorted(scores, reverse=True)
        assert all_["rank"] == 1 + [image in all_["truths"] for image, _ in all_["top"]].index(True)
    assert [line["top"][0][0] for line in lines[1]] != [line["top"][0][0] for line in lines[50]]
    main.run(small_config(**settings), tmp_path, "eval")
    assert read_about(tmp_path / "results.json")["match_weights"] == about["match_weights"], "their rows stay, too"


def test_a_run_matches_after_training_and_two_processes_read_pictures_again(shop, tmp_path):
    settings = dict(train__total_steps=2, optimizer__warmup_steps=1, eval__rerank=3)
    trained = run(command(shop, tmp_path, **settings))
    assert trained.returncode == 0, trained.stderr
    rows = [Row(0, "embedding"), Row(2, "embedding"), Row(2, "match", 3), Row(2, "weighted_match", 3)]
    kept = read_results(tmp_path / "results.json")
    assert list(kept) == [PIXELS, *rows], "the decoder is not asked before it has learned"
    (header, *_), *timed = (
        [line for line in trained.stdout.splitlines() if part in line]
        for part in ("chance", *(row.label for row in rows))
    )
    assert header.split()[-1] == "seconds"
    for row, lines in zip(rows, timed, strict=True):
        assert lines[0].split()[-1] == f"{kept[row].seconds:,.1f}"
    assert f"Subsets {rows[-1].label}:" in trained.stdout
    assert "matched-rank-1" in trained.stderr and "weighted-match-rank-1" in trained.stderr
    top = _tops(tmp_path)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = ["--distributed", f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--num_processes=2"]
    settings |= dict(data__device_resize_height=200, data__device_resize_width=200, eval__rerank_keep_tokens=False)
    arguments = command(shop, tmp_path, *together, "--mode=eval", **settings)
    processes = [start([*arguments, f"--process_id={process}"], devices=2) for process in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    recomputed = read_results(tmp_path / "results.json")
    assert recomputed[rows[1]].score == kept[rows[1]].score
    assert recomputed.keys() == kept.keys()
    assert recomputed[rows[2]].seconds != kept[rows[2]].seconds, "was measured again"
    assert top.keys() == _tops(tmp_path).keys()
    for query, scores in _tops(tmp_path).items():
        assert scores == pytest.approx(top[query], abs=0.005), "but for the rounding of pixels and of what was kept"


def _tops(workdir):
    return {line["query"]: dict(line["top"]) for line in read_rankings(workdir / "rankings_match.jsonl")}
