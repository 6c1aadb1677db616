"""Labels of clips: what is read, and what every bad line is told."""

import random
import re
import unicodedata

import pytest

from rice_jax.clips.labels import Clip, read_clips, require_products, seconds
from rice_jax.types import DataError


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "clips.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_files_and_parts_of_films(tmp_path):
    path = write(tmp_path, 'clip,product,start,end\na.mp4,mug,,\nfilms/b.mp4,"a,b",1:02,1:01:03.5\nb.mp4,,7.5,\n')
    assert read_clips(path) == [
        Clip(tmp_path / "a.mp4", "mug", 0.0, None, "a.mp4", f"{path}:2"),
        Clip(tmp_path / "films/b.mp4", "a,b", 62.0, 3663.5, "films/b.mp4", f"{path}:3"),
        Clip(tmp_path / "b.mp4", "", 7.5, None, "b.mp4", f"{path}:4"),
    ]


def test_films_are_the_same_from_any_directory(tmp_path, monkeypatch):
    """So that a run that is continued from elsewhere holds out the same films."""
    path = write(tmp_path, "clip,product\nfilms/a.mp4,mug\nfilms/b.mp4,\n")
    monkeypatch.chdir(tmp_path)
    assert [clip.film for clip in read_clips(path)] == ["films/a.mp4", "films/b.mp4"]
    assert [clip.film for clip in read_clips(path.name)] == ["films/a.mp4", "films/b.mp4"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_as_spreadsheets_write_it(tmp_path, delimiter):
    rows = [["Note", " Product ", "CLIP", "Film"], ["x", " mug ", "a.mp4 ", "live 7"], ["", "", "", ""], ["", "p", "b"]]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    found = read_clips(write(tmp_path, text, "utf-8-sig"))
    assert [(clip.path.name, clip.product, clip.film) for clip in found] == [
        ("a.mp4", "mug", "live 7"), ("b", "p", "b")
    ]  # fmt: skip
    assert found[1].place.endswith(":4")


@pytest.mark.parametrize(
    "text, expected",
    [("75", 75), ("75.5", 75.5), ("75,5", 75.5), ("1:15", 75), ("0:00", 0), ("100:00", 6000), ("1:02:03.5", 3723.5)]
    + [("1:01.029", 61.029), ("1:01.596", 61.596)],  # a sum of floats would be another one
)
def test_times(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1:60",
        "1:60:00",
        "1:2:3:4",
        "nan",
        "inf",
        "1:-2",
        "-1:02",
        "-0:01",
        "-0:00:01",
        "1.5:00",
        "1_0",
        "9" * 400 + ":00",
    ],
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"expected seconds, m:ss, or h:mm:ss, 0 or more"):
        seconds(text)


def test_every_bad_line_is_named(tmp_path):
    lines = [
        "clip,product,start,end",
        "a.mp4,mug",
        ",mug",
        "a.mp4,mug,x",
        "a.mp4,mug,5,5",
        "a.mp4,mug",
        "a\0b,mug",
        "a.mp4,mug,1,2",
    ]
    path = write(tmp_path, "\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_clips(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 5 lines are wrong; correct them and run the same command again:",
        f"  {path}:3: found no clip, expected the path of a video",
        f"  {path}:4: start: found 'x', expected seconds, m:ss, or h:mm:ss, 0 or more",
        f"  {path}:5: found the end '5', expected one after the start '5'",
        f"  {path}:6: found the same part of 'a.mp4' with the product 'mug' in {path}:2, expected one",
        f"  {path}:7: found the clip 'a\\x00b', expected a path without a null character",
    ]


def test_one_file_written_in_several_ways_is_one_film(tmp_path, caplog):
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    ways = ["./a.mp4", "a.mp4", f"{tmp_path}/a.mp4", f"link/../{tmp_path.name}/a.mp4", "b.mp4"]
    lines = [f"{way},mug,{second},{second + 1}" for second, way in enumerate(ways)]
    clips = read_clips(write(tmp_path, "\n".join(["clip,product,start,end", *lines])))
    assert [(clip.path, clip.film, clip.start) for clip in clips] == [
        (tmp_path / "a.mp4", "./a.mp4", second) for second in range(5)
    ]
    with pytest.raises(DataError, match=r":3: found the same part of 'b\.mp4' with the product 'mug' in .*:2, "):
        read_clips(write(tmp_path, "clip,product,film\na.mp4,mug,x\nb.mp4,mug,\n"))
    read_clips(write(tmp_path, "clip,product,start\na.mp4,mug,4\nlink/a.mp4,sofa,4.5\n"))
    assert ": a part overlaps one with another product, such as 'mug'" in caplog.messages[0]


@pytest.mark.parametrize("start", ["4", "4.0", "0:04", "4.5"])
def test_two_products_of_one_part_are_two_labels_as_those_of_nearly_one_part_are(tmp_path, caplog, start):
    assert len(read_clips(write(tmp_path, f"clip,product,start,end\na,mug,4,9\na,sofa,{start},9\n"))) == 2
    [told] = caplog.messages
    assert ": a part overlaps one with another product, such as 'mug'" in told
    assert f"(a from second {seconds(start):g} to 9)" in told
    with pytest.raises(DataError, match=":3: found no product where .*:2 has the product 'mug' .* that do not overlap"):
        read_clips(write(tmp_path, f"clip,product,start,end\na,mug,4,9\na,,{start},9\n"))


def test_of_many_bad_lines_ten_are_named(tmp_path):
    with pytest.raises(DataError, match=r":11: found no clip, expected the path of a video\n  and 3 more$"):
        read_clips(write(tmp_path, "clip,product\n" + ",mug\n" * 13))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r":1: found the columns of an empty file, expected clip and product, and optionally start, end, film"),
        ("clip,id\n", r":1: found the columns 'clip', 'id', expected clip and product"),
        ("clip,product,clip\n", r":1: found the columns 'clip', 'product', 'clip', .*, each once"),
        ("clip,product\n", r"clips\.csv: found no clip, expected a line for each"),
        ("clip,product\na,b,c\n", r":2: found 3 values, expected 2"),
        ('clip,product\na,"b\n', r":2: .*; expected a CSV"),
        ("clip,product\na,b\xe9\n", r"expected a CSV in UTF-8"),
    ],
)
def test_what_is_no_list_of_clips(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_clips(write(tmp_path, text, "latin-1"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: is no file, expected a CSV with the columns clip and"):
        read_clips(tmp_path / "nowhere.csv")


def test_lines_that_contradict_each_other(tmp_path, caplog):
    lines = ["clip,product,start,end", "a,,0,5", "a,mug,4,9", "b,mug,,", "a,mug,8,10", "a,,10,12", "b,,3,"]
    path = write(tmp_path, "\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_clips(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 lines are wrong; correct them and run the same command again:",
        f"  {path}:3: found the product 'mug' where {path}:2 has no product (a from second 4 to 5); expected parts "
        "that do not overlap",
        f"  {path}:7: found no product where {path}:4 has the product 'mug' (b from second 3 to the end); expected "
        "parts that do not overlap",
    ]
    assert caplog.messages == [], "parts of one product may overlap"


def test_products_that_overlap_are_counted(tmp_path, caplog):
    lines = ["clip,product,start,end", "b,sofa,3,4", "a,mug,4,", "a,sofa,0,5", "a,sofa,5,6", "b,mug,4,5", "c,mug,0,9"]
    path = write(tmp_path, "\n".join(lines))
    assert len(read_clips(path)) == 6
    assert caplog.messages == [
        f"{path}: 2 parts overlap one with another product, such as 'mug' of {path}:3 and 'sofa' of {path}:4 "
        "(a from second 4 to 5); correct the times unless both are shown at once"
    ]
    caplog.clear()
    read_clips(write(tmp_path, "\n".join([*lines[:3], *lines[4:]])))
    assert [message.partition(", ")[0] for message in caplog.messages] == [
        f"{path}: a part overlaps one with another product"
    ]
    caplog.clear()
    read_clips(write(tmp_path, "\n".join([*lines[:3], *lines[5:]])))
    assert caplog.messages == []


@pytest.mark.parametrize("seed", range(3))
def test_every_part_that_overlaps_an_earlier_one_is_counted_once(tmp_path, caplog, seed):
    rng = random.Random(seed)
    times = {(f"f{rng.randrange(3)}", rng.randrange(40), rng.randrange(1, 9)) for _ in range(60)}
    parts = [(film, f"p{rng.randrange(3)}", start, start + length) for film, start, length in sorted(times)]
    rng.shuffle(parts)
    in_order = sorted(enumerate(parts), key=lambda own: (own[1][0], own[1][2], own[0]))
    expected = sum(
        any(one[0] == other[0] and one[1] != other[1] and other[2] < one[3] for _, one in in_order[:number])
        for number, (_, other) in enumerate(in_order)
    )
    lines = [",".join(map(str, part)) for part in parts]
    read_clips(write(tmp_path, "\n".join(["clip,product,start,end", *lines])))
    assert expected > 9 and f": {expected} parts overlap" in caplog.messages[0]


def test_parts_without_an_end_are_compared_once_each(tmp_path, caplog):
    """Each of them lasts to the end of the film, so that all pairs would be millions."""
    lines = [f"a,p{number % 50},{number}" for number in range(5_000)]
    assert len(read_clips(write(tmp_path, "\n".join(["clip,product,start", *lines])))) == 5_000
    assert "4999 parts overlap one with another product" in caplog.messages[0]


def test_malformed_lines_and_unknown_products_are_listed_together(tmp_path):
    path = write(tmp_path, "clip,product,start\na,mugg\nb,mug,x\nc,mug,1,2\nd,xyz\n,sofa\n")
    with pytest.raises(DataError) as caught:
        read_clips(path, {"mug"}, "shop")
    assert [line.partition(": ")[0].strip() for line in str(caught.value).splitlines()] == [
        str(path), *(f"{path}:{number}" for number in (3, 4, 6)),
        "3 clips show products that the index does not have; correct the ids, index the products, or leave the column "
        "empty if the clip shows none of the shop's:",
        *(f"{path}:{number}" for number in (2, 5, 6)),
    ]  # fmt: skip
    with pytest.raises(DataError, match="^1 clip shows a product that the index does not have; .*\n.*:2: .*'mugg'"):
        read_clips(write(tmp_path, "clip,product\na,mugg\nb,mug\n"), {"mug"}, "shop")


def test_accents_are_the_indexs(tmp_path):
    (clip,) = read_clips(write(tmp_path, f"clip,product\na,{unicodedata.normalize('NFD', 'café')}\n"), {"café"})
    assert clip.product == "café"


def test_products_that_the_index_lacks(tmp_path):
    clips = read_clips(write(tmp_path, "clip,product\na,mug\nb,mugg\nc,\nd,xyz\n"))
    require_products([clips[0], clips[2]], {"mug"}, "shop")
    with pytest.raises(DataError) as caught:
        require_products(clips, {"mug"}, "shop")
    title, *lines = str(caught.value).splitlines()
    assert re.match(
        r"2 clips show products that the index does not have; correct the ids, .* or leave the column", title
    )
    assert lines == [
        f"  {tmp_path}/clips.csv:3: found the product 'mugg', expected the id of one in shop, such as 'mug'",
        f"  {tmp_path}/clips.csv:5: found the product 'xyz', expected the id of one in shop",
    ]
