"""An index remembers where its pictures are from, so that two shops are not mixed by mistake."""

import dataclasses
import re
from pathlib import Path

import pytest

from rice_jax.index.store import read_index, write_index
from rice_jax.index.update import remove_pictures
from rice_jax.types import DataError
from tests.input.tiny_shop import picture


def csv(made, name, *rows):
    path = made.pictures.parent / name
    path.write_text("id,path\n" + "".join(f"{row},{made.pictures / row}.jpg\n" for row in rows))
    return path


def test_pictures_of_another_source_are_not_added_unasked(made, embedded):
    other, third = csv(made, "other.csv", "a", "b"), csv(made, "third.csv", "c")
    before = made.update(mix=False)
    assert before.sources == (str(made.pictures.absolute()),)
    embedded.clear()
    with pytest.raises(DataError, match=f"holds pictures of {re.escape(str(made.pictures))}, and .*other.csv .*--mix"):
        made.update(other, mix=False)
    assert not embedded and read_index(made.directory).sources == before.sources
    assert made.update(mix=False).sources == before.sources, "its own source"
    both = (*before.sources, str(other))
    assert made.update(other, mix=True).sources == made.update(other, mix=False).sources == both
    assert made.update(mix=False).sources == both
    assert remove_pictures(made.directory, third).sources == both, "what is removed may be listed anywhere"
    assert made.update(third, change="mirror", mix=False).sources == (str(third),), "nothing else is left"


def test_a_place_that_is_written_with_dots_is_no_other_source(made, monkeypatch):
    (made.pictures.parent / "sub").mkdir()
    monkeypatch.chdir(made.pictures.parent / "sub")
    before = made.update(Path("..") / made.pictures.name, mix=False)
    assert before.sources == (str(made.pictures),) and before.paths[0] == str(made.pictures / "a.jpg")
    write_index(made.directory, dataclasses.replace(before, sources=(f"{Path.cwd()}/../{made.pictures.name}",)))
    assert made.update(mix=False).sources == before.sources, "earlier versions kept the dots"


def test_pictures_that_replace_those_of_another_source_are_counted(made, caplog):
    (made.pictures.parent / "more").mkdir()
    for name, number in (("a", 9), ("new", 8)):
        (made.pictures.parent / "more" / f"{name}.jpg").write_bytes(picture(number, size=(40, 30)))
    made.write(b=7)
    made.update()
    assert not [message for message in caplog.messages if "of another source" in message], (
        "a picture of this source has changed"
    )
    made.update(made.pictures.parent / "more")
    message = next(message for message in caplog.messages if "of another source" in message)
    old, new = made.pictures / "a.jpg", made.pictures.parent / "more" / "a.jpg"
    assert f"1 picture replaces one of another source with the same id, such as {old} by {new}" in message


def test_an_index_without_sources_learns_them(made, monkeypatch):
    monkeypatch.setattr("rice_jax.index.update._sources", lambda *_: ())
    assert made.update(mix=False).sources == read_index(made.directory).sources == ()
    monkeypatch.undo()
    other = csv(made, "other.csv", "a")
    assert made.update(other, mix=False).sources == (str(other),)
