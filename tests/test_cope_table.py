"""The sample's COPE: its settings resolve, its words are found, and its table pairs runs by query."""

import re

import numpy as np
import pytest

from rice_jax.config import load_config
from rice_jax.eval.domain_leads import mean_lead, read_domain_run
from rice_jax.eval.domains import DomainResult
from rice_jax.eval.results import Row, read_about, read_results, write_results
from rice_jax.input.items import Items
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.models.text_weights import load_text
from rice_jax.tasks import TASKS, resolve
from scripts import cope_table, sample_text
from scripts.cope_table import ROWS
from tests.eval.test_domains import NAMES, PAIRS
from tests.fixtures import ROOT
from tests.pages.items import rank, write_run


def resolve_config(row):
    return resolve(load_config("sample_cope", row).to_dict())


@pytest.mark.parametrize("row", ROWS)
def test_every_row_resolves(row):
    config, rice = resolve_config(row), resolve_config("icl")
    # What makes rows comparable: as many products in as many steps, and pictures of the same size.
    assert (config.eval, config.train, config.seed) == (rice.eval, rice.train, rice.seed)
    assert (config.data.batch_size, config.data.num_frames) == (rice.data.batch_size, rice.data.num_frames)
    assert config.data.domains == rice.data.domains and config.model.image_size == rice.model.image_size
    assert config.model.init_from == rice.model.init_from == resolve(load_config("sample").to_dict()).model.init_from
    assert config.task == ("domains" if row == "icl" else "cope")
    texts = {"cope_text": ("page",), "cope_all_text": ("page", "video", "live")}.get(row, ())
    assert (getattr(TASKS[config.task].model(config), "text_domains", ())) == texts
    assert f" {row} " in (ROOT / "scripts" / "cope_table.sh").read_text().replace(";", " ")
    with pytest.raises(ValueError, match="row 'rice': expected one of icl, cope, cope_text"):
        load_config("sample_cope", "rice")


@pytest.fixture
def raw(tmp_path):
    texts = ("1, Maru solid sofa, free\n2, modern SOFA by Maru\n", "1, 这个沙发真的很简约\n", "1, look at this sofa\n")
    for name, text in zip(("page_titles", "video_asrs", "live_asrs"), texts, strict=True):
        (tmp_path / f"training_{name}.txt").write_text(text, encoding="utf-8")
        (tmp_path / f"test_{name}.txt").write_text("1, unseen zebra\n", encoding="utf-8")
    return tmp_path


def test_the_text_tower_knows_the_words_of_training(raw, capsys):
    pytest.importorskip("tokenizers")
    sample_text.main([str(raw), str(raw / "tower")])
    pieces = (raw / "tower" / "tokenizer" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(pieces)) == len(pieces) and f"{len(pieces)} word pieces" in capsys.readouterr().out
    assert {"sofa", "maru", "沙", "m", "##o"} <= set(pieces) and "z" not in pieces and "zebra" not in pieces
    assert pieces.index("sofa") < pieces.index("maru"), "words by frequency: three and two"
    _, tower = load_text(raw / "tower")
    assert (tower.head, tower.vocab_size, tower.layers) == ("pooler", len(pieces), 3)
    found = Tokenizer(raw / "tower" / "tokenizer", tower.context)(["a Sofa"])
    assert found.ids[0, : found.token_mask.sum()].tolist() == [pieces.index(p) for p in ("[CLS]", "a", "sofa", "[SEP]")]
    assert sample_text.learn_vocabulary(sample_text.read_texts(raw)) == pieces


def test_a_directory_without_texts(tmp_path):
    with pytest.raises(SystemExit, match="found no training_page_titles.txt"):
        sample_text.main([str(tmp_path), str(tmp_path / "tower")])


@pytest.fixture
def items():
    numbers = [str(number) for number in range(60)]
    return {name: Items(numbers, [str(int(number) // 2) for number in numbers], []) for name in NAMES}


@pytest.fixture
def runs(tmp_path, items):
    write_run(tmp_path / "shipped", rank(items, 5, 40.0))
    for seed in (0, 1):
        write_run(tmp_path / f"icl-{seed}" / "eval-a", rank(items, seed, 1.5))
    write_run(tmp_path / "cope-1" / "eval-a", rank(items, 2, 0.8))
    write_run(tmp_path / "cope_text-0" / "eval-a", rank(items, 0, 1.5))  # equal to ICL's
    (tmp_path / "cope_all_text-0" / "checkpoints").mkdir(parents=True)  # has not been evaluated yet
    return tmp_path


def tables(directory, capsys):
    """{(first cell of the header, first cell of the row): the other cells}."""
    cope_table.main([str(directory)])
    found, header = {}, ""
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if "pages to videos" in cells:
            header = cells[0]
            assert cells[-7:] == [*PAIRS, "mean"]
        elif line and not line.startswith("| ---"):
            found[header, cells[0]] = cells[1:]
    return found


def test_tables(runs, capsys):
    cope_table.main([str(runs)])
    assert capsys.readouterr().out.startswith("In percent: means over the seeds ± the sample standard deviation, ")
    found = tables(runs, capsys)
    icl = [read_domain_run(runs / f"icl-{seed}" / "eval-a").asked() for seed in (0, 1)]
    shares = [100 * run["retrieval", PAIRS[0]].hits.mean() for run in icl]
    mean, spread = re.fullmatch(r"([\d.]+) ± ?([\d.]+)", found["Rank-1", "RICE (ICL)"][1]).groups()
    assert found["Rank-1", "RICE (ICL)"][0] == "0 1"
    assert (mean, spread) == (f"{np.mean(shares):.1f}", f"{np.std(shares, ddof=1):.1f}")
    assert found["Rank-1", "queries"] == ["", *["60"] * 6]
    assert found["Rank-1", "COPE without text"][0] == "1" and found["One-shot", "COPE, titles of pages"][0] == "0"
    assert not [row for _, row in found if row == "COPE, texts in all domains"]


def test_rows_that_are_evaluated_without_texts(runs, items, capsys):
    for seed in (0, 1):
        place = write_run(runs / f"cope_text-{seed}" / "eval-a", rank(items, seed, 1.5))
        results, about = read_results(place / "results.json", DomainResult), read_about(place / "results.json")
        if seed:  # of seed 0 there is none
            results |= {Row(6, "without_text"): rank(items, 0, 0.0).score()}
            write_results(place / "results.json", results, about)
    found = tables(runs, capsys)
    for task in ("Rank-1", "One-shot"):
        assert found[task, "COPE, titles of pages"][0] == "0 1"
        assert found[task, "… evaluated without texts"] == ["1", *["100.0"] * 7]
    assert ("Rank-1 minus RICE (ICL)", "… evaluated without texts") not in found


def test_differences_are_paired_by_seed(runs, capsys):
    found = tables(runs, capsys)
    assert found["Rank-1 minus RICE (ICL)", "COPE, titles of pages"] == ["+0.0 (+0.0 to +0.0)"] * 7
    cope, icl = (read_domain_run(runs / name / "eval-a").asked() for name in ("cope-1", "icl-1"))
    lead = mean_lead([cope["one_shot", PAIRS[5]]], [icl["one_shot", PAIRS[5]]])
    expected = f"{100 * lead.mean:+.1f} ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})"
    assert found["One-shot minus RICE (ICL)", "COPE without text"][5] == expected
    every = [pair for pair in icl if pair[0] == "retrieval"]
    lead = mean_lead([cope[pair] for pair in every], [icl[pair] for pair in every])
    assert found["Rank-1 minus RICE (ICL)", "COPE without text"][6].startswith(f"{100 * lead.mean:+.1f} (")
    assert re.match(r"-\d", found["Rank-1 minus RICE (ICL)", "RICE before training"][6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path, items: write_run(path / "icl-0" / "eval-b", rank(items)), "found the evaluations eval-a, eval-b"),
        (
            lambda path, items: write_run(
                path / "cope-1" / "eval-a",
                rank(
                    {name: own._replace(item_ids=[f"9{item}" for item in own.item_ids]) for name, own in items.items()}
                ),
            ),
            "cope-1: found other queries than in shipped, expected the same",
        ),
        (lambda path, items: (path / "shipped" / "results.json").unlink(), "results.json: not found; expected a run"),
    ],
)
def test_runs_that_cannot_be_compared(runs, items, change, message):
    change(runs, items)
    with pytest.raises(SystemExit, match=message):
        cope_table.main([str(runs)])


def test_without_icl_there_is_nothing_to_compare_with(tmp_path, items):
    write_run(tmp_path / "shipped", rank(items))
    with pytest.raises(SystemExit, match="found no results of icl-SEED"):
        cope_table.main([str(tmp_path)])
