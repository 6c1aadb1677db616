"""Data cards: what the builders recorded, in words, for the hub."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from data import build
from data.card import data_card, find_data_sets, main, size_category
from tests.data import raw_lpr4m, raw_movingfashion, raw_rope

ROOT = Path(__file__).resolve().parents[2]
RAW = {"lpr4m": raw_lpr4m, "movingfashion": raw_movingfashion, "rope": raw_rope}
ATTRIBUTION = "image_id,creator,licence\na,Ann,CC-BY-4.0\nb,Bob,CC0-1.0\nc,Cyd,CC0-1.0\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The three data sets; of LPR4M an image is missing, and the pictures are shrunk."""
    directory = tmp_path_factory.mktemp("card")
    for name, raw in RAW.items():
        raw_dir = raw.write_raw(directory / "raw" / name)
        arguments = ["--raw_dir", str(raw_dir), "--data_dir", str(directory / "built")]
        if name == "lpr4m":
            (raw_dir / "images" / f"{raw_lpr4m.image_id_of(1)}.jpg").unlink()
            arguments += ["--max_skipped_percent", "50", "--max_short_side", "20"]
        build.main([name, *arguments])
    return directory / "built"


@pytest.fixture
def one(built, tmp_path) -> Path:
    """A copy of LPR4M's sets."""
    return shutil.copytree(built / "lpr4m", tmp_path / "lpr4m")


def rows(card: str, section: str) -> list[list[str]]:
    """The cells of a section's table."""
    text = card.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", RAW)
def test_a_card_says_what_the_builder_recorded(built, name):
    text = data_card(built / name)
    front = DatasetCard(text).data.to_dict()
    assert (front["pretty_name"], front["size_categories"], front["viewer"]) == (name, ["n<1K"], False)
    assert front.get("language") == (None if name == "movingfashion" else ["zh"])

    page = (ROOT / "data" / name / "README.md").read_text(encoding="utf-8")
    assert page.partition("\n\n")[0] in text
    assert page.partition("\n## Terms\n\n")[2].partition("\n\n")[0] in text and "dummy_data" not in text
    assert (ROOT / "data" / name / "CITATIONS.bib").read_text(encoding="utf-8").strip() in text

    found = {(config, split): int(examples) for config, split, examples, *_ in rows(text, "Sets")}
    expected = {}
    for path in built.glob(f"{name}/*/*/dataset_info.json"):
        for split in json.loads(path.read_text(encoding="utf-8"))["splits"]:
            expected[path.parents[1].name, split["name"]] = sum(map(int, split["shardLengths"]))
    assert found == expected != {}


def test_a_card_says_what_was_skipped_and_why(built):
    text = data_card(built / "lpr4m")
    skipped = {(config, kind): cells for config, kind, *cells in rows(text, "Skipped")}
    assert skipped["train", "clips"] == ["6", "2", "image missing: 2"]
    assert skipped["train", "pictures"] == ["48", "2", "missing: 2"]
    assert skipped["query", "queries"] == ["4", "0", ""]
    options = {config: options for config, _, options in rows(text, "How it was built")}
    assert options["train"] == "max_skipped_percent`=50.0, `max_short_side`=20, `box_units`=auto, `photos`=listed"
    assert "`splits`=train,test, `max_frames`=10" in data_card(built / "rope")


def test_a_card_lists_each_feature_once_with_its_sets(built):
    features = {name: (kind, sets) for name, kind, sets in rows(data_card(built / "lpr4m"), "Features")}
    assert features["image"] == ("picture", "gallery`, `train")
    assert features["boxes"] == ("list of box", "query`, `train")
    assert features["box_frame"] == ("list of int32", "query")
    assert features["clip_id"] == ("text", "query`, `train")


def test_the_snippet_reads_a_set(built, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", data_card(built / "lpr4m"), re.S)
    with contextlib.chdir(built / "lpr4m"):
        exec(code, {})
    count, names = capsys.readouterr().out.split(" ", 1)
    assert count == "4" and "clip_id" in names


def test_own_data_has_neither_the_facts_nor_the_terms_of_a_published_set(one):
    text = data_card(one, 'Bob\'s "shop"')
    assert DatasetCard(text).data.to_dict()["pretty_name"] == 'Bob\'s "shop"'
    assert '# Bob\'s "shop"\n\nOwn data in the layout that the builder `lpr4m`' in text
    assert "State them here" in text
    for published in ("LPR4M", "4,013,617", "streamers", "Yang", "\nlanguage:"):
        assert published not in text


def test_the_pictures_own_licenses_are_kept_and_counted(tmp_path):
    raw = raw_lpr4m.write_raw(tmp_path / "raw")
    (raw / "attribution.csv").write_text(ATTRIBUTION, encoding="utf-8")
    build.main(["lpr4m", "--raw_dir", str(raw), "--data_dir", str(tmp_path / "built"), "--configs", "query,gallery"])
    for config in ("query", "gallery"):
        kept = tmp_path / "built" / "lpr4m" / config / "1.0.0" / "attribution.csv"
        assert kept.read_text(encoding="utf-8") == ATTRIBUTION
    text = data_card(tmp_path / "built" / "lpr4m")
    assert rows(text, "Terms") == [["CC0-1.0", "2"], ["CC-BY-4.0", "1"]]
    assert "4,013,617" not in text and "streamers" not in text


def test_licenses_are_counted_by_line_whatever_the_first_column_is(one):
    """The sets from the same raw files have the same lines, another set has lines of its own."""
    shared = "\ufefflicense,creator\nCC0-1.0,Ann\nCC0-1.0,Ann\nCC0-1.0,Bob\nCC-BY-4.0,Cyd\n"
    for config, text in (("gallery", shared), ("query", shared), ("train", "license,creator\nCC-BY-4.0,Dan\n")):
        (one / config / "1.0.0" / "attribution.csv").write_text(text, encoding="utf-8")
    assert rows(data_card(one), "Terms") == [["CC0-1.0", "3"], ["CC-BY-4.0", "2"]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f"license,creator\nCC0-1.0,{'a' * 200_000}\n".encode(), "field larger than field limit"),
        ("license,creator\nCC0-1.0,王\n".encode("gbk"), "'utf-8' codec can't decode"),
    ],
)
def test_attributions_that_cannot_be_read_are_named(one, content, found):
    (one / "query" / "1.0.0" / "attribution.csv").write_bytes(content)
    message = rf"query/1\.0\.0/attribution\.csv: found {found}.*, expected CSV in UTF-8; fix it here and in the raw"
    with pytest.raises(SystemExit, match=message):
        main(["dataset", str(one)])


def test_a_set_of_an_earlier_version_says_that_it_has_no_record(one):
    (one / "train" / "1.0.0" / "build.json").unlink()
    text = data_card(one)
    missing = "not recorded: built by an earlier version of rice_jax"
    assert [cells[1] for cells in rows(text, "Skipped") if cells[0] == "train"] == [missing]
    assert dict(cells[::2] for cells in rows(text, "How it was built"))["train"] == missing


def test_the_newest_version_counts(one):
    newer = one / "train" / "1.10.0"
    shutil.copytree(one / "train" / "1.0.0", one / "train" / "1.9.0")
    shutil.copytree(one / "train" / "1.0.0", newer)
    (one / "train" / "incomplete.7_2.0.0").mkdir()
    assert 'builder_from_directory("train/1.10.0")' in data_card(one)
    assert find_data_sets(one) == [one] == find_data_sets(one.parent)


def test_the_command_writes_a_card_beside_each_data_set(built, capsys):
    main(["dataset", str(built)])
    paths = [built / name / "README.md" for name in RAW]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    paths[0].unlink()
    edited = paths[1].read_text(encoding="utf-8") + "Read this."
    paths[1].write_text(edited, encoding="utf-8")
    with pytest.raises(SystemExit, match="movingfashion/README.md: exists already; delete it"):
        main(["dataset", str(built)])
    assert not paths[0].exists() and paths[1].read_text(encoding="utf-8") == edited


def test_the_command_refuses_what_is_not_one_data_set(built, one, tmp_path):
    with pytest.raises(SystemExit, match="found lpr4m, movingfashion, rope, expected one data set with --name or"):
        main(["dataset", str(built), "--name", "Mine"])
    with pytest.raises(SystemExit, match="nowhere: found no data set, expected the --data_dir of rice build"):
        main(["dataset", str(tmp_path / "nowhere")])
    for name in ("", " "):
        with pytest.raises(SystemExit, match="error: --name: found an empty title, expected some text"):
            main(["dataset", str(one), f"--name={name}"])
    assert not (one / "README.md").exists()
    out = tmp_path / "card.md"
    record = one / "train" / "1.0.0" / "build.json"
    whole = record.read_text(encoding="utf-8")
    for content in ("[]", "null", "{}"):
        record.write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"train/1\.0\.0: is damaged \(build.json holds no options and counts\)"):
            main(["dataset", str(one), "--out", str(out)])
    record.write_text(whole, encoding="utf-8")
    for name in ("build.json", "dataset_info.json"):
        path = one / "train" / "1.0.0" / name
        path.write_text(path.read_text(encoding="utf-8")[:50], encoding="utf-8")
        with pytest.raises(SystemExit, match=r"train/1\.0\.0: is damaged .*; build the set again with --overwrite"):
            main(["dataset", str(one), "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("num_examples", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (4_013_617, "1M<n<10M"), (10**7, "10M<n<100M"), (10**9, "n>1B")],
)
def test_sizes_have_the_hubs_names(num_examples, category):
    assert size_category(num_examples) == category
