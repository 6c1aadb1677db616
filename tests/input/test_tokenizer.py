"""Token ids against recordings of transformers' and Chinese-CLIP's tokenizers."""

import gzip
import json
import shutil
import sys

import pytest

from rice_jax.config import ConfigError
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.types import DataError
from tests.golden.cases import HERE

pytest.importorskip("tokenizers")
TEXT = HERE / "text"
RECORDED = json.loads((TEXT / "tokens.json").read_text())
SPELLED = 16  # the number of "[SEP]正品[MASK]"
CURLY = 7  # of a text in curly quotes
MERGES = ["h e", "he l", "hel l", "hell o</w>", "a r", "ar m", "c h", "ch a", "cha i", "chai r</w>", "t h", "th e</w>"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    shutil.copy(TEXT / "vocab.txt", folder)
    return Tokenizer(folder, RECORDED["length"])


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merges")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return folder


def test_ids_are_the_recorded_ones(words):
    ids, token_mask, num_cut = words.tokenize(RECORDED["strings"])
    expected = dict(enumerate(RECORDED["ids"]))
    # Chinese-CLIP's own tokenizer takes them for words, too; transformers' for the tokens that end and mask texts.
    expected[SPELLED] = RECORDED["other_ids"]["cn_clip"][str(SPELLED)]
    assert {number: row.tolist() for number, row in enumerate(ids)} == expected
    assert (token_mask == (ids != 0)).all() and num_cut == 1


def test_curly_quotes_become_straight(words):
    vocab = (TEXT / "vocab.txt").read_text().split()
    text = RECORDED["strings"][CURLY]
    row = words([text]).ids[0]
    assert "“" in text and row.tolist() == words.tokenize([text.replace("“", '"').replace("”", '"')]).ids[0].tolist()
    assert row[1] == vocab.index('"')


def test_a_long_text_is_cut_and_counted(words):
    ids, token_mask, num_cut = words(["简约" * 5_000, "简约"])
    assert num_cut == 1 and token_mask.sum(axis=1).tolist() == [52, 4]
    assert ids[0, -1] == ids[1, 3] == 3  # [SEP]


def test_special_tokens_of_every_kind_of_file_are_taken_for_words(words, merges, tmp_path):
    spelled = ["[CLS] a [SEP]", "<|startoftext|> the <|endoftext|>"]
    words._tokenizer.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (words, Tokenizer(merges, 77), Tokenizer(tmp_path, 52)):
        for row, mask in zip(*tokenizer(spelled)[:2], strict=True):
            tokens = row[mask].tolist()
            assert tokens[0] == tokenizer._start and tokens[-1] == tokenizer._end
            assert not {tokenizer._start, tokenizer._end} & set(tokens[1:-1])


def test_special_tokens_that_a_file_adds_are_taken_for_words(words, tmp_path):
    from tokenizers import Tokenizer as Any

    added = Any.from_str(words._tokenizer.to_str())
    added.add_special_tokens(["[CLS]", "[SEP]"])
    added.save(str(tmp_path / "tokenizer.json"))
    ids = Tokenizer(tmp_path, 52).tokenize(["[SEP]"]).ids[0]
    assert ids.tolist() == words.tokenize(["[SEP]"]).ids[0].tolist() and (ids == 3).sum() == 1


def test_merges_give_clips_ids(merges):
    """The ids follow from OpenAI's order: printable bytes, other bytes, both at a word's end, merges, two specials."""
    tokenizer = Tokenizer(merges, 77)
    hello, armchair, end = 512 + 3, [512 + 5, 512 + 9], 512 + len(MERGES) + 1
    ids, mask, _ = tokenizer(["  HELLO\narmchair!", "1"])
    assert ids[0, mask[0]].tolist() == [end - 1, hello, *armchair, 256, end]
    assert ids[1, mask[1]].tolist() == [end - 1, 256 + ord("1") - ord("!"), end]
    assert tokenizer.vocab_size == end + 1


def test_openais_file_gives_the_same_ids(merges, tmp_path):
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress((merges / "merges.txt").read_bytes()))
    text = ["the armchair: don't, 100 %! 空 é 😀"]
    assert (Tokenizer(tmp_path, 77)(text).ids == Tokenizer(merges, 77)(text).ids).all()


def test_transformers_gives_the_same_ids(merges, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer(merges, 77)
    shutil.copy(merges / "merges.txt", tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(ours._tokenizer.get_vocab()))
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ["the armchair", "", "don't 123 WE'LL", "é 空 😀!!", "a\t b\n\n c"]:
        for tokenizer in (ours, Tokenizer(tmp_path, 77)):
            ids, mask, _ = tokenizer.tokenize([text])
            assert ids[0, mask[0]].tolist() == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("readme.txt", "", "found no file of a tokenizer, expected one of tokenizer.json, vocab.txt"),
        ("tokenizer.json", "{", "tokenizer.json: cannot be read as a tokenizer's file"),
        ("vocab.txt", "[PAD]\n[UNK]\na\n", r"found neither \('\[CLS\]', '\[SEP\]'\) nor"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        Tokenizer(tmp_path, 8)
    assert "\n" not in str(error.value)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"texts need the package tokenizers: pip install 'rice-jax\[text\]'"):
        Tokenizer(TEXT, 8)
