"""Turns texts into token ids, with the files of the text tower's own tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from rice_jax.config import ConfigError
from rice_jax.types import DataError

if TYPE_CHECKING:  # of the extra `text`
    import tokenizers

NAMES = ("[CLS]", "[SEP]"), ("<|startoftext|>", "<|endoftext|>")  # of the first and the last token of a text
STRAIGHT = str.maketrans("“”", '""')  # as in the pipelines of Chinese-CLIP and OpenAI
# The words of CLIP's byte pair encoding.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OPENAI_MERGES = 49_152 - 256 - 2  # lines of OpenAI's file that count, after the first


class TokenizedTexts(NamedTuple):
    """Texts as a tower takes them."""

    ids: Int32[np.ndarray, "B L"]  # 0 behind the last token
    token_mask: Bool[np.ndarray, "B L"]  # True = a token
    num_cut: int  # texts that were longer


class Tokenizer:
    """Tokenizes texts; special tokens that a text spells out are taken for what it says and not for themselves."""

    def __init__(self, folder: str | Path, context: int):
        """Reads a tokenizer's files.

        Args:
            folder: with a `tokenizer.json`, a `vocab.txt`, or byte pair merges (`TOKENIZER_FILES`); the first counts.
            context: longest text, with its first and last token.

        Raises:
            DataError: there is no such file, or it is none of a tokenizer.
            ConfigError: the package `tokenizers` is not installed.
        """
        self.context = context
        self._tokenizer = _read(Path(folder))
        for start, end in NAMES:
            first, last = self._tokenizer.token_to_id(start), self._tokenizer.token_to_id(end)
            if first is not None and last is not None:
                self._start, self._end = first, last
                break
        else:
            raise DataError(f"{folder}: found neither {' nor '.join(map(repr, NAMES))} in the tokenizer's vocabulary")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    @property
    def digest(self) -> bytes:
        """What tells tokenizers apart."""
        return hashlib.sha256(f"{self._tokenizer.to_str()} {STRAIGHT} {self.context}".encode()).digest()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def __call__(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes texts, straightens curly quotes before, and cuts what is too long at its end."""
        straight = [text.translate(STRAIGHT) for text in texts]
        return self.tokenize(straight)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes texts as they are."""
        ids = np.zeros((len(texts), self.context), np.int32)
        mask, num_cut = np.zeros(ids.shape, bool), 0
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            tokens = encoding.ids[: self.context - 2]
            num_cut += len(encoding.ids) > len(tokens)
            ids[row, : len(tokens) + 2] = self._start, *tokens, self._end
            mask[row, : len(tokens) + 2] = True
        return TokenizedTexts(ids, mask, num_cut)


def _read(folder: Path) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("texts need the package tokenizers: pip install 'rice-jax[text]'") from error
    readers = {
        "tokenizer.json": lambda path: tokenizers.Tokenizer.from_file(str(path)),
        "vocab.txt": _read_words,
        "merges.txt": _read_merges,
        "bpe_simple_vocab_16e6.txt.gz": _read_merges,
    }
    path = next((folder / name for name in readers if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: found no file of a tokenizer, expected one of {', '.join(readers)}; copy it from the model's "
            "folder"
        )
    try:
        return readers[path.name](path)
    except Exception as error:  # the package raises bare Exceptions
        raise DataError(f"{path}: cannot be read as a tokenizer's file: {error}; copy it again") from error


def _read_words(path: Path) -> "tokenizers.Tokenizer":
    """BERT's vocabulary, one piece of a word a line."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    settings = path.with_name("tokenizer_config.json")
    values = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    # Special tokens are not added to the tokenizer, so a text cannot spell them.
    tokenizer = Tokenizer(models.WordPiece.from_file(str(path), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=values.get("do_lower_case", True),
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
        strip_accents=values.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _read_merges(path: Path) -> "tokenizers.Tokenizer":
    """CLIP's byte pair encoding, whose vocabulary follows from the merges, unless a `vocab.json` lists it.

    Source: OpenAI's `simple_tokenizer.py`; transformers' `CLIPTokenizer`, which leaves out its repair of broken text.
    """
    import gzip

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")
    lines = [line for line in lines[1:] if line.strip()][:OPENAI_MERGES]
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *NAMES[1]]
    vocab = {word: number for number, word in enumerate(words)}
    if (listed := path.with_name("vocab.json")).is_file():
        vocab = json.loads(listed.read_text(encoding="utf-8"))
    model = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=NAMES[1][1])
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _byte_letters() -> list[str]:
    """The letters that stand for the bytes in the merges, in the order of their ids, printable ones first."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printed)
    return [chr(byte) for byte in printed] + [chr(256 + number) for number in range(others)]
