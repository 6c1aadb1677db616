import pytest

from rice_jax.input.texts import clean, collect, listed_texts, stored_texts
from rice_jax.types import DataError
from tests.input import tiny_shop


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("简约西装外套", "简约西装外套"),
        ("", ""),
        ("null", ""),
        ("  \n", ""),
        ("nullable", "nullable"),
        ("这件\x01衣服\x01null\x01\x01内里", "这件,衣服,内里"),
        ("a|b||c", "abc"),
        ("|", ""),
        ("😀 sale \ud83d!", "😀 sale ?!"),
        ("Ünï 空 null 1", "Ünï 空 null 1"),
    ],
)
def test_texts_are_cleaned(text, cleaned):
    assert clean(text) == cleaned and clean(cleaned) == cleaned


def test_the_first_text_that_is_not_missing_counts():
    pairs = [("a", ""), ("b", "one"), ("a", "two"), ("b", "one"), ("c", ""), ("b", "three"), ("b", "four")]
    assert collect(pairs) == ({"b": "one", "a": "two"}, 1, 1)


def test_texts_of_a_data_set(tmp_path):
    rows = [{"clip_id": f"clip-{i}", "image_id": f"image-{i // 2}", "title": f"标题 {i // 2}"} for i in range(4)]
    tiny_shop.build(tmp_path / "shop" / "train", "train", rows, {})
    titles = [(f"image-{i // 2}", f"标题 {i // 2}") for i in range(4)]
    assert list(stored_texts(str(tmp_path), ["shop/train"], "titles")) == titles
    assert list(stored_texts(str(tmp_path), ["shop/train"], "speech")) == []


def test_texts_of_files(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffid,price,text\nx,1,"two\nlines, ""quoted"""\ny,2,\n')
    (tmp_path / "a.jsonl").write_text(
        '{"id": "x", "text": "两"}\n\n{"id": "null", "text": "null"}\n{"id": "y", "text": "\\ud83d\\ude00"}\n'
    )
    assert list(listed_texts(tmp_path / "a.csv")) == [("x", 'two\nlines, "quoted"'), ("y", "")]
    assert list(listed_texts(tmp_path / "a.jsonl")) == [("x", "两"), ("null", ""), ("y", "😀")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,title\n1,a\n", r"a.csv:1: found the columns \['id', 'title'\], expected 'text' among them"),
        ("a.csv", b"id,text\n1,a\n2\n", "a.csv:3: found .*, expected an `id` and a `text`, both strings"),
        ("a.csv", b"id,text\n,a\n", "a.csv:2: found"),
        ("a.csv", b'id,text\n1,"a\n', "a.csv:2: unexpected end of data; expected a CSV"),
        ("a.csv", b"id,text\n1,\xff\n", "a.csv: found bytes that are not UTF-8"),
        ("a.jsonl", b'{"id": "1", "text": "a"}\n{"id"\n', "a.jsonl:2: found no JSON"),
        ("a.jsonl", b'{"id": 1, "text": "a"}\n', "a.jsonl:1: found .*, expected an `id` and a `text`, both strings"),
        ("a.jsonl", b'["a"]\n', "a.jsonl:1: found a list, expected an object"),
    ],
)
def test_other_files_are_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(listed_texts(tmp_path / name))
