"""The table of texts: rows are paired by query, seeds are averaged; and what its script makes of texts."""

import dataclasses
import re
import subprocess

import numpy as np
import pytest

from rice_jax.eval.results import EMBEDDING, FUSED, WEIGHTED_MATCH, Row, rankings_file, write_rankings, write_results
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.input.source import Source
from rice_jax.input.text_embeddings import known_fingerprint, read_embeddings
from rice_jax.input.texts import stored_texts
from scripts import text_table, text_tower
from scripts.text_table import ROWS
from tests.eval.evaluations import evaluation
from tests.fixtures import ROOT

RANKED, _RESULT = evaluation()  # 60 queries in three galleries
RESULT = dataclasses.replace(_RESULT, score=dataclasses.replace(_RESULT.score, num_queries=60))
TRUTHS = tuple((f"product-{number // 3}",) for number in range(60))


def write_rows(directory, seeds=(0, 1)):
    """Evaluations whose first queries are hits: 12 without texts, and more, the more titles there are."""
    hits = {"0": 30, "50": 24, "90": 18, "": 12}
    for seed in seeds:
        for row in ROWS:
            place = directory / f"{row.evaluation}-{seed}"
            place.mkdir(parents=True, exist_ok=True)
            rank = np.where(np.arange(60) < hits[row.missing] + 6 * seed * (row.missing == "0"), 1, 9)
            ranked = dataclasses.replace(RANKED, truth_ranks=tuple((own,) for own in rank.tolist()), truths=TRUTHS)
            newest = row.ranking == WEIGHTED_MATCH
            write_rankings(place / ("rankings.jsonl" if newest else rankings_file(row.ranking)), ranked)
            fused = [Row(9, FUSED)] if row.evaluation.startswith("in_both") else []
            results = dict.fromkeys([Row(9, EMBEDDING), *fused, Row(9, WEIGHTED_MATCH, 10)], RESULT)
            write_rankings(place / rankings_file(EMBEDDING), ranked)
            write_results(
                place / "results.json", results, {"rankings": {"step": 9, "ranking": WEIGHTED_MATCH, "num_matched": 10}}
            )
            (place / "report.html").touch()


class Fixed(TextEmbedder):
    """Embeds every text as the same vector."""

    def __init__(self, model):
        self.model = model

    def __call__(self, texts):
        return np.ones((len(texts), 2), np.float32) / np.float32(np.sqrt(2)), 0


@pytest.fixture(scope="module")
def start(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("start") / "tower"
    text_tower.main(["make", str(shop), str(out)])
    return out


def test_the_table(tmp_path, start, capsys):
    write_rows(tmp_path)
    embedder = Fixed(load_text_model(start))
    spoken = {query: "a" for query in RANKED.query_ids[:15]}
    write_embeddings(tmp_path / "embeddings-0" / "speech", spoken, embedder)
    text_table.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Rank-1 in percent, seeds 0 1. ") and max(map(len, lines)) <= 110
    assert "95 % interval over 20 products" in lines[1]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert ["queries", "60", "15", "45"] in cells
    assert ["no text", "20.0 ± 0.0", "80.0 ± 0.0", "0.0 ± 0.0"] in cells
    place = cells.index(["text in the embedding", "0 %", "55.0 ± 7.1", "100.0 ± 0.0", "40.0 ± 9.4"])  # 30, 36 of 60
    assert cells[place + 1][0].startswith("+35.0 (+") and cells[place + 1][1].startswith("+20.0 (")
    assert ["text in both", "90 %", "30.0 ± 0.0", "100.0 ± 0.0", "6.7 ± 0.0"] in cells
    # The queries of a product are equal here, so that there are only 20 independent ones.
    low, high = map(float, re.search(r"\(\+(.*?) to \+(.*?)\)", cells[place + 1][0]).groups())
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.35 * 0.65 / 20), rel=0.2)
    (tmp_path / "in_both_90-1" / "report.html").unlink()
    with pytest.raises(SystemExit, match="in_both_90-1.*is missing, expected it"):
        text_table.main([str(tmp_path)])


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    def start(*settings):
        command = f"set -eu; source {ROOT}/scripts/sample.sh; require_same_settings runs/texts {' '.join(settings)}"
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)

    for _ in range(2):
        assert start("--config.train.total_steps=21", "--config.data.num_frames=1").returncode == 0
    other = start("--config.train.total_steps=22")
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert other.stderr.startswith("runs/texts/settings.txt: found the settings '--config.train.total_steps=21 ")
    assert other.stderr.endswith("expected '--config.train.total_steps=22': give these, or delete runs/texts\n")


def test_what_is_no_directory_of_evaluations(tmp_path):
    with pytest.raises(SystemExit, match="found no evaluation none-SEED"):
        text_table.main([str(tmp_path)])


def test_a_fresh_tower_reads_the_samples_texts(start, shop):
    model = load_text_model(start)
    texts = [row["title"].decode() for row in Source(str(shop), "lpr4m/train", (), optional=("title",))][:4]
    ids = model.tokenizer(texts).ids
    assert model.config.embed_dim == 128 and model.tokenizer.vocab_size == model.config.vocab_size <= 2000
    assert (ids[:, 0] == 2).all() and ((ids == 1).sum() < (ids > 4).sum()), "few words are unknown"
    vectors, _ = TextEmbedder(model, 4)(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_titles_of_the_gallery_are_left_out(tmp_path, start, shop):
    embedder = Fixed(load_text_model(start))
    gallery = {key for key, _ in stored_texts(str(shop), ["lpr4m/gallery"], "titles")}
    titles = dict.fromkeys([*gallery, *(f"of-training-{number}" for number in range(9))], "a")
    write_embeddings(tmp_path / "texts" / "titles", titles, embedder, part_size=4)
    write_embeddings(tmp_path / "texts" / "speech", {"clip": "a"}, embedder)
    kept = {}
    for percent in (0, 50, 90):
        out = tmp_path / f"texts-{percent}"
        text_tower.main(["drop", str(shop), str(tmp_path / "texts"), str(out), f"--percent={percent}"])
        kept[percent] = read_embeddings(str(out), "titles").rows.keys()
        assert len(titles) - len(kept[percent]) == round(len(gallery) * percent / 100)
        assert read_embeddings(str(out), "speech").rows.keys() == {"clip"}
        assert known_fingerprint(str(out)) == known_fingerprint(str(tmp_path / "texts"))
    assert titles.keys() - gallery < kept[90] < kept[50] < kept[0] == titles.keys()
