"""`rice search` finds the products that words describe."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

import rice_jax
from rice_jax import cli
from rice_jax.commands import search as command
from rice_jax.convert import clip as clip_pictures
from rice_jax.convert import text
from rice_jax.index.store import write_index
from rice_jax.index.text import Texts, embed_titles
from tests.convert.test_clip import MICRO, openai_micro
from tests.convert.test_text import CLIP_CONFIG, EMBED, VOCAB, WIDTH, hugging_face_state, openai_state, oracle
from tests.shop import draw, make_shop, png
from tests.text_model import write_text_model

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["red", "armchair", "blue", "lamp", "mug", "green", "table", "old", "new", "sofa", "box", "rock", "pan"]
TITLES = ["red armchair", "blue lamp", "green mug", "old table", "", "new sofa", "box", "red rock"]


def write_clip(directory):
    """A converted text tower of a tiny CLIP."""
    text.convert(
        write_source(directory / "source", hugging_face_state(openai_state()), CLIP_CONFIG), directory / "text"
    )
    return directory / "text"


def write_source(folder, state, config):
    """A folder of Hugging Face's, with a tokenizer that knows `WORDS`."""
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {word: number for number, word in enumerate(["?", *WORDS])}
    vocab |= {"<|startoftext|>": VOCAB - 2, "<|endoftext|>": VOCAB - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("bert"))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def index(clip, tmp_path_factory):
    """Pictures that lie beside their titles in CLIP's space; p0 and p1 are of one product."""
    made = make_shop(tmp_path_factory.mktemp("shop"), decoder=False, calibrated=False).index
    near = Texts(clip, batch_size=8)([title or "pan" for title in TITLES])
    vectors = unit(near + 0.02 * np.random.default_rng(0).normal(size=near.shape))
    fields = [{"color": title.split()[0] if title else "none"} for title in TITLES]
    products = ["p0", "p0", *made.product_ids[2:]]
    return dataclasses.replace(made, vectors=vectors, titles=TITLES, fields=fields, product_ids=products)


@pytest.fixture
def shop(index, tmp_path):
    write_index(tmp_path / "index", index)
    return tmp_path / "index"


def search(capsys, *arguments):
    command.main([str(argument) for argument in arguments])
    return capsys.readouterr()


def found(capsys, *arguments):
    return [json.loads(line) for line in search(capsys, *arguments, "--json").out.splitlines()]


def test_words_find_pictures(capsys, shop, clip, index):
    for row, title in ((1, "blue lamp"), (4, "pan")):
        first, *others = found(capsys, title, f"--index={shop}", f"--text_model={clip}", "--top=4")
        assert (first["id"], first["image_id"]) == (index.product_ids[row], index.image_ids[row])
        expected = float(index.vectors[row] @ Texts(clip)([title])[0])
        assert first["score"] == pytest.approx(expected, abs=1e-4) and first["by"] == "pictures"
        assert [one["score"] for one in others] == sorted((one["score"] for one in others), reverse=True)
        assert len({one["id"] for one in (first, *others)}) == 4, "each product once"
    assert first == {"id": "p4", "gallery": "a", "title": "", "image_id": "p4", "fields": {"color": "none"}} | {
        "score": first["score"],
        "by": "pictures",
    }


def test_the_folder_of_a_whole_clip_gives_the_encoder_and_the_tower(capsys, tmp_path):
    """From Hugging Face's files to products, as a shop does it."""
    rng, (vision, sizes) = (
        np.random.default_rng(4),
        clip_pictures.to_hugging_face(*clip_pictures.from_openai(openai_micro())),
    )
    words = openai_state() | {"text_projection": rng.normal(size=(WIDTH, MICRO.embed_dim)).astype(np.float32)}
    config = CLIP_CONFIG | {"projection_dim": MICRO.embed_dim, "vision_config": sizes}
    source = write_source(tmp_path / "clip", vision | hugging_face_state(words), config)
    model, tower, shop, pictures = (tmp_path / name for name in ("model", "text", "shop", "pictures"))
    pictures.mkdir()
    for number in range(4):
        (pictures / f"p{number}.png").write_bytes(png(draw(number)))
    for arguments in (
        ["convert", "clip", source, model],
        ["convert", "text", source, tower],
        ["index", pictures, f"--model={model}", f"--out={shop}"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        assert not ended.value.code, arguments
    capsys.readouterr()
    feature = oracle(words, np.array([[VOCAB - 2, 1, 2, VOCAB - 1]]), [3], heads=4)[0]
    images = rice_jax.load(model).embed_images(sorted(pictures.iterdir()))
    expected = {f"p{row}": image @ feature / np.linalg.norm(feature) for row, image in enumerate(images)}
    lines = found(capsys, "red armchair", f"--index={shop}", f"--text_model={tower}")
    assert [one["id"] for one in lines] == sorted(expected, key=lambda name: -expected[name])
    for one in lines:
        assert one["by"] == "pictures" and one["score"] == pytest.approx(expected[one["id"]], abs=2e-4)


def test_a_table_has_the_products_best_first(capsys, shop, clip):
    lines = search(capsys, "box", f"--index={shop}", f"--text_model={clip}", "--top=2").out.splitlines()
    assert lines[0].split() == ["pictures", "product", "gallery", "title"] and len(lines) == 3
    assert lines[1].split()[1:] == ["p6", "b", "box"]


def test_some_products_are_searched(capsys, shop, clip):
    flags = [f"--index={shop}", f"--text_model={clip}"]
    assert {one["id"] for one in found(capsys, "red armchair", *flags, "--where=color=red")} == {"p0", "p7"}
    assert {one["id"] for one in found(capsys, "red armchair", *flags, "--gallery=b")} == {"p6", "p7"}


def test_a_projected_index_is_searched(capsys, index, clip, tmp_path):
    rng = np.random.default_rng(1)
    projection = np.linalg.qr(rng.normal(size=(EMBED, 10)))[0].astype(np.float32)
    small = dataclasses.replace(index, vectors=unit(index.vectors @ projection), projection=projection)
    write_index(tmp_path / "small", small)
    first, *_ = found(capsys, "old table", f"--index={tmp_path / 'small'}", f"--text_model={clip}")
    assert first["id"] == "p3"


def test_words_find_titles(capsys, index, bert, tmp_path):
    """With a tower whose texts have no place among the pictures, and without `--text_model`."""
    titles = ["简约西装外套", "红色 鞋", "", "面膜", "", "新款", "空", "女鞋"]
    texts = Texts(bert, batch_size=8)
    write_index(
        tmp_path / "index", dataclasses.replace(index, titles=titles, text=embed_titles(texts, 0.5, titles, {}))
    )
    lines = found(capsys, "红色 鞋", f"--index={tmp_path / 'index'}")
    assert (lines[0]["id"], lines[0]["image_id"], lines[0]["by"]) == ("p0", "p1", "titles")
    assert lines[0]["score"] == pytest.approx(1, abs=1e-4)
    assert {one["id"] for one in lines} == {"p0", "p3", "p5", "p6", "p7"}, "products without a title are left out"


@pytest.mark.parametrize("matching", [True, False])
def test_a_tower_of_another_model_is_told(capsys, index, clip, tmp_path, matching):
    titles = [f"{first} {second}" for first in WORDS[:5] for second in WORDS[5:10]]
    vectors = Texts(clip, batch_size=25)(titles)
    vectors = vectors if matching else unit(np.random.default_rng(2).normal(size=vectors.shape))
    names = [f"p{row}" for row in range(25)]
    lists = dict(gallery_ids=["a"] * 25, image_ids=names, product_ids=names, paths=names, digests=names)
    other = dataclasses.replace(index, titles=titles, vectors=vectors, fields=[{}] * 25, **lists)
    write_index(tmp_path / "index", other)
    done = search(capsys, "red sofa", f"--index={tmp_path / 'index'}", f"--text_model={clip}")
    assert ("may be the text tower of another model" in done.err) is not matching
    text = embed_titles(Texts(clip, batch_size=25), 0.5, titles, {})
    write_index(tmp_path / "index", dataclasses.replace(other, text=text))
    [first] = found(capsys, "red sofa", f"--index={tmp_path / 'index'}", "--top=1")
    assert first["by"] == ("pictures" if matching else "titles") and first["title"] == "red sofa"


def test_what_cannot_be_searched_is_told_in_one_sentence(capsys, index, shop, clip, bert, tmp_path):
    other = dataclasses.replace(index, vectors=unit(np.ones((8, EMBED + 1))))
    write_index(tmp_path / "other", other)
    pooler = tmp_path / "pooler"
    write_pooler(pooler)
    for arguments, message in (
        (["red", f"--index={shop}"], "has no titles as vectors; give the text tower of the CLIP"),
        (["red", f"--index={shop}", f"--text_model={pooler}"], "is a BERT, whose texts have no place among pictures"),
        (
            ["red", f"--index={shop}", f"--text_model={bert}"],
            "embeds texts in 16 numbers, and the index has pictures in 12",
        ),
        (
            ["red", f"--index={tmp_path / 'other'}", f"--text_model={clip}"],
            "in 12 numbers, and the index has pictures in 13",
        ),
        (["red", f"--index={shop}", f"--text_model={clip}", "--by=titles"], "has not embedded the titles of the index"),
        (["", f"--index={shop}", f"--text_model={clip}"], "found '', expected words"),
        (["red", f"--index={shop}", f"--text_model={clip}", "--gallery=c"], "found no gallery 'c' in the index"),
        (["red", f"--index={shop}", f"--text_model={clip}", "--where=size=1"], "found no column 'size' in the index"),
        (["red", f"--index={tmp_path / 'none'}", f"--text_model={clip}"], "FileNotFoundError"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["search", *arguments])
        assert message in str(ended.value) and "\n" not in str(ended.value), ended.value


def test_nothing_to_search_is_told(capsys, index, shop, clip, bert, tmp_path):
    empty = dataclasses.replace(index.take([]), sources=index.sources)
    write_index(tmp_path / "empty", empty)
    with pytest.raises(SystemExit, match="found no images in the index, expected at least one; add some with"):
        cli.main(["search", "red", f"--index={tmp_path / 'empty'}", f"--text_model={clip}"])
    without = dataclasses.replace(index, titles=[""] * len(index.titles))
    text = embed_titles(Texts(bert, batch_size=25), 0.5, without.titles, {})
    write_index(tmp_path / "without", dataclasses.replace(without, text=text))
    done = search(capsys, "red", f"--index={tmp_path / 'without'}", "--by=titles")
    assert done.out == "" and "no product found: none that was searched has a title" in done.err


def write_pooler(out):
    """A converted BERT of random weights."""
    import jax
    from flax import nnx

    from rice_jax.config import TextTowerConfig
    from rice_jax.models.text import Bert
    from rice_jax.models.weights import save_weights

    config = TextTowerConfig(
        vocab_size=VOCAB, positions=20, context=9, width=16, layers=1, heads=2, mlp_width=8,
        embed_dim=16, head="pooler",
    )  # fmt: skip
    params = nnx.to_pure_dict(nnx.state(Bert(config, rngs=nnx.Rngs(0)), nnx.Param))
    save_weights(out, {"text": jax.tree.map(np.asarray, params)}, {"text": config.own})
    vocab = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "red": 3}
    (out / "tokenizer").mkdir()
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]")).save(
        str(out / "tokenizer/tokenizer.json")
    )
