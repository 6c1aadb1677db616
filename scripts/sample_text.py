"""Makes a small text tower for the sample: random weights, and the word pieces of its own sentences.

    python scripts/sample_text.py RAW OUT

RAW is what `data/sample/rope.py` wrote; the words are those of its training texts. OUT is a new directory like that of
`rice convert text`, for `config.model.text_init_from`. Needs `pip install 'rice-jax[text]'`.
"""

import argparse
import collections
import dataclasses
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from rice_jax.config import TOKENIZER_FOLDER, TextTowerConfig
from rice_jax.models.text import TEXT_TOWERS
from rice_jax.models.weights import save_weights

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_PIECES = 2_000
TOWER = TextTowerConfig(
    positions=64, context=32, width=128, layers=3, heads=2, mlp_width=512, embed_dim=128, head="pooler"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, metavar="RAW", help="directory that data/sample/rope.py wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="new directory for the tower")
    options = parser.parse_args(arguments)
    tower = write_tower(options.out, read_texts(options.raw), TOWER)
    print(f"{options.out}: {tower.vocab_size} word pieces, {tower.layers} blocks of width {tower.width}")


def write_tower(out: Path, texts: Iterable[str], sizes: TextTowerConfig, seed: int = 0) -> TextTowerConfig:
    """Writes a tower with random weights and the word pieces of texts, whole or not at all.

    Args:
        out: new directory.
        texts: to learn word pieces from.
        sizes: of the tower, but its vocabulary.
        seed: of the weights.

    Returns:
        The settings of the tower.
    """
    vocabulary = learn_vocabulary(texts)
    tower = dataclasses.replace(sizes, vocab_size=len(vocabulary))
    params = nnx.to_pure_dict(nnx.state(TEXT_TOWERS[tower.kind](tower, rngs=nnx.Rngs(seed)), nnx.Param))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed program may have left it
    save_weights(partial, {"text": params}, {"text": tower.own})
    folder = partial / TOKENIZER_FOLDER
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
    partial.rename(out)
    return tower


def read_texts(raw: Path) -> Iterator[str]:
    """The titles and the speech of the training items.

    Raises:
        SystemExit: there are no such files.
    """
    paths = sorted([*raw.glob("training_*_titles.txt"), *raw.glob("training_*_asrs.txt")])
    if not paths:
        sys.exit(f"error: {raw}: found no training_page_titles.txt, expected a directory of data/sample/rope.py")
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield line.partition(", ")[2]


def learn_vocabulary(texts: Iterable[str]) -> list[str]:
    """The word pieces of texts: all characters, in the beginning of a word and within, and the most frequent words.

    The trainers of the package `tokenizers` give pieces of equal frequency in another order each time.
    """
    import tokenizers

    normalize = tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words = collections.Counter(word for text in texts for word, _ in split(normalize(text)))
    characters = sorted({character for word in words for character in word})
    within = sorted({f"##{character}" for word in words for character in word[1:]})
    pieces = [*SPECIAL, *characters, *within]
    frequent = sorted(words, key=lambda word: (-words[word], word))
    longer = [word for word in frequent if len(word) > 1 and words[word] > 1]
    return [*pieces, *longer[: max(0, MAX_PIECES - len(pieces))]]


if __name__ == "__main__":
    main()
