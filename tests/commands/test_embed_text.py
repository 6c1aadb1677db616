"""The command that embeds texts, and what it writes."""

import json

import jax
import numpy as np
import pytest

from rice_jax import cli
from rice_jax.config import MeshConfig
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.input.text_embeddings import part_files, read_embeddings
from rice_jax.models.weights import CheckpointError, save_weights
from rice_jax.parallel.mesh import create_mesh
from rice_jax.types import DataError
from scripts.parity import Case
from tests.golden.cases import HERE, assert_close
from tests.text_model import EMBED_DIM, write_text_model

pytest.importorskip("tokenizers")
TEXTS = {f"id-{row}": text for row, text in enumerate(["简约西装外套", "红色 鞋", "nike air", "空", "面膜" * 5000])}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embedder(model):
    return TextEmbedder(load_text_model(model), 8)


def test_embeddings_are_the_recorded_ones(embedder):
    case = Case(HERE / "text" / "chinese_clip.npz")
    found, num_cut = embedder(case.facts["strings"])
    assert found.dtype == np.float32 and num_cut == 1
    kept = [number for number, text in enumerate(case.facts["strings"]) if "“" not in text and "[SEP]" not in text]
    assert_close(found[kept], case.arrays["out/embedding"][kept])


def test_one_device_gives_the_embeddings_of_eight(embedder):
    one = TextEmbedder(embedder.model, 4, create_mesh(MeshConfig(), jax.devices()[:1]))
    assert embedder._mesh.size == 8
    split = TextEmbedder(embedder.model, 8, create_mesh(MeshConfig(fsdp=8)))
    expected = one(list(TEXTS.values()))[0]
    for other in (embedder, split):
        np.testing.assert_allclose(other(list(TEXTS.values()))[0], expected, atol=1e-6)


def test_parts_are_written_once_by_any_number_of_programs(embedder, tmp_path, monkeypatch):
    def counting(self, texts, embed=TextEmbedder.__call__):
        embedded.extend(texts)
        return embed(self, texts)

    embedded: list[str] = []
    monkeypatch.setattr(TextEmbedder, "__call__", counting)
    assert write_embeddings(tmp_path / "titles", TEXTS, embedder, part_size=2) == 1
    assert embedded == list(TEXTS.values()) and len(part_files(tmp_path, "titles")) == 3
    write_embeddings(tmp_path / "other" / "titles", TEXTS, embedder, part_size=2, share=(1, 2))
    with pytest.raises(DataError, match="found 1 parts, expected 3"):
        read_embeddings(str(tmp_path / "other"), "titles")
    write_embeddings(tmp_path / "other" / "titles", TEXTS, embedder, part_size=2, share=(0, 2))
    part_files(tmp_path, "titles")[1].unlink()  # as if a program had been killed
    embedded.clear()
    assert write_embeddings(tmp_path / "titles", TEXTS, embedder, part_size=2) == 1
    assert embedded == list(TEXTS.values())[2:4]
    found, other = (read_embeddings(str(path), "titles") for path in (tmp_path, tmp_path / "other"))
    assert found.rows == other.rows == {key: row for row, key in enumerate(TEXTS)}
    np.testing.assert_array_equal(found.vectors, other.vectors)
    np.testing.assert_allclose(found.vectors, embedder(list(TEXTS.values()))[0], atol=1e-6)
    assert found.fingerprint == embedder.model.fingerprint


def test_other_texts_and_other_models_are_refused(embedder, tmp_path):
    out = tmp_path / "speech"
    write_embeddings(out, TEXTS, embedder)
    with pytest.raises(DataError, match="part-00000-of-00001.parquet: holds embeddings of other texts; choose"):
        write_embeddings(out, TEXTS | {"id-0": "其他"}, embedder)
    with pytest.raises(DataError, match="part-00000-of-00001.parquet: holds embeddings of other texts; choose"):
        write_embeddings(out, TEXTS, embedder, part_size=2)
    changed = TextEmbedder(load_text_model(write_text_model(tmp_path / "other", shift=0.1)), 8)
    with pytest.raises(DataError, match="part-00000-of-00001.parquet: holds embeddings of another model; choose"):
        write_embeddings(out, TEXTS, changed)


def test_the_command_embeds_data_sets_and_files(shop, model, tmp_path, capsys):
    out, extra = tmp_path / "out", tmp_path / "more.jsonl"
    extra.write_text(json.dumps({"id": "more", "text": "红色"}) + "\n" + json.dumps({"id": "none", "text": "null"}))
    sets = "lpr4m/train,lpr4m/query,lpr4m/gallery"
    arguments = ["embed-text", str(model), str(out), f"--data_dir={shop}", f"--sets={sets}", f"--speech={extra}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert not ended.value.code
    titles, speech = (read_embeddings(str(out), kind) for kind in ("titles", "speech"))
    assert titles.vectors.shape[1] == speech.vectors.shape[1] == EMBED_DIM
    assert speech.get("more") is not None and speech.get("none") is None
    assert titles.fingerprint == speech.fingerprint == load_text_model(model).fingerprint
    assert "speech: 27 texts of up to 52 tokens; 3 missing; 0 longer and cut; 0 ids with" in capsys.readouterr().err


def test_what_is_no_text_tower_is_refused(tmp_path, model):
    save_weights(tmp_path / "encoder", {"encoder": {"kernel": np.ones(2)}}, {"model": {}})
    with pytest.raises(CheckpointError, match="encoder: holds no text tower; make one: rice convert text SOURCE OUT"):
        load_text_model(tmp_path / "encoder")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    other = write_text_model(tmp_path)
    with (other / "tokenizer" / "vocab.txt").open("a") as file:
        file.write("another\n")
    with pytest.raises(DataError, match="found 188 tokens, expected at most 187, the tower's vocabulary"):
        load_text_model(other)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --sets, --titles, or --speech"),
        (["--sets=a", "--share=2/2"], "--share=2/2: expected I/N with"),
        (["--sets=a", "--batch_size=0"], "--batch_size=0: expected 1 or more"),
    ],
)
def test_flags_are_checked(flags, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["embed-text", "model", "out", *flags])
    assert message in capsys.readouterr().err
