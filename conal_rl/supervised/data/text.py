"""XTREME's sentence pairs (PAWS-X, XNLI) and tags (PANX, UD POS): a language is a task.

Hu et al., "XTREME: A Massively Multilingual Multi-task Benchmark for Evaluating Cross-lingual
Generalization" (ICML 2020), from the files that its scripts, or LibMTL's with labels in the test
sets too, write below one folder:

    {pawsx,xnli}/{train,dev,test}-{language}.tsv      text, text, label
    {panx,udpos}/{train,dev,test}-{language}.tsv      token, tag; blank lines between sentences
    udpos/{train,dev,test}-{language}.conllu          Universal Dependencies, if there is no .tsv

Columns are separated by tabs and never quoted, as transformers reads them: a quotation mark is a
character like any other. Every line that is not so is a DataError that names it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from conal_rl.errors import ConfigError, import_extra
from conal_rl.supervised.data.common import TargetSpec
from conal_rl.supervised.data.files import DataError

Name = Literal["pawsx", "xnli", "panx", "udpos"]
Split = Literal["train", "dev", "test"]

LABELS: dict[Name, tuple[str, ...]] = {
    "pawsx": ("0", "1"),
    "xnli": ("contradiction", "entailment", "neutral"),
    "panx": ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"),
    "udpos": (
        *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
        *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
    ),
}
"""The names of each benchmark's classes or tags, in XTREME's order: an index is a place in it."""

IGNORED = -100
"""The tag of what is not a word's first piece."""


class Pair(NamedTuple):
    """Two texts and the index of their class."""

    first: str
    second: str
    label: int


class Sentence(NamedTuple):
    """Words and the indices of their tags."""

    words: list[str]
    tags: list[int]


class _Encoded(NamedTuple):
    ids: array[int]  # (piece,), without padding
    second: int  # where the second segment starts
    target: int | array[int]  # a class, or a tag per piece


class Texts:
    """One language's part of a benchmark: items `(input, target)`.

    The input is `(2, token)`, token ids and segment ids, with the tokenizer's padding id and
    segment 0 after a text's end: what `conal_rl.supervised.bert` takes. The target is a class `()`,
    or tags `(token,)` on the first piece of every word and `IGNORED` elsewhere. All are int64.

    Of a pair that is too long the longer text is cut, piece by piece. A sentence that is too long
    loses its last words (XTREME goes on with them in a further sentence); their tags are neither
    trained nor counted.

    Args:
        root: the folder of the module's table.
        name: of the benchmark.
        language: as in the file's name.
        split: which part.
        tokenizer: from `load_tokenizer`.
        tokens: length of every input, [CLS] and [SEP] included.

    Raises:
        DataError: no such file, or it is malformed.
        ConfigError: no such benchmark or split, or `tokens` leaves no room for text.
    """

    truncated: int
    """How many samples were cut to `tokens`."""

    def __init__(
        self,
        root: str | Path,
        name: Name,
        language: str,
        split: Split,
        tokenizer: Any,
        tokens: int = 128,
    ):
        if tokens < 5:
            raise ConfigError(f"a pair needs at least 5 tokens, not {tokens}")
        path = _find(Path(root).expanduser(), name, language, split)
        self.labels = LABELS[name]
        """The names of the classes or tags."""
        self.tokens, self.padding = tokens, tokenizer.pad_token_id
        if name in ("pawsx", "xnli"):
            pairs = read_pairs(path, name)
            self.spec = TargetSpec((), torch.int64)
            self._samples, self.truncated = _encode_pairs(pairs, tokenizer, tokens)
        else:
            sentences = _read_sentences(path, name, language)
            self.spec = TargetSpec((tokens,), torch.int64)
            self._samples, self.truncated = _encode_sentences(sentences, tokenizer, tokens)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A text `(2, token)` and its class `()` or tags `(token,)`."""
        sample = self._samples[index]
        length = len(sample.ids)
        x = torch.zeros(2, self.tokens, dtype=torch.int64)
        x[0] = self.padding
        x[0, :length] = torch.tensor(sample.ids)
        x[1, sample.second : length] = 1
        if isinstance(sample.target, int):
            return x, torch.tensor(sample.target)
        tags = torch.full((self.tokens,), IGNORED)
        tags[:length] = torch.tensor(sample.target)
        return x, tags


def xtreme(
    root: str | Path,
    name: Name,
    languages: Sequence[str],
    split: Split,
    tokenizer: Any,
    tokens: int = 128,
) -> dict[str, Texts]:
    """The `Texts` of each language, which see."""
    return {of: Texts(root, name, of, split, tokenizer, tokens) for of in languages}


def load_tokenizer(folder: str | Path) -> Any:
    """BERT's tokenizer (a `BertTokenizerFast`) from a folder with `vocab.txt`, never the network.

    Capitals are kept, as for multilingual BERT cased, unless the folder's `tokenizer_config.json`
    says otherwise.

    Raises:
        ExtraError: transformers is not installed.
        DataError: a file is missing or damaged, or the vocabulary lacks a special token.
    """
    transformers = import_extra("transformers", "transformers", "nlp")
    vocabulary, settings = Path(folder) / "vocab.txt", Path(folder) / "tokenizer_config.json"
    # Without the file, transformers would make up an empty vocabulary.
    lacking = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(_lines(vocabulary))
    if lacking:
        raise DataError(f"{vocabulary}: expected a line {', '.join(sorted(lacking))}")
    try:
        about = json.loads("\n".join(_lines(settings))) if settings.exists() else {}
        case = {} if "do_lower_case" in about else {"do_lower_case": False}
        kind = transformers.BertTokenizerFast
        return kind.from_pretrained(str(folder), local_files_only=True, **case)
    except DataError:
        raise
    except Exception as error:  # transformers and tokenizers raise all kinds
        reason = " ".join(str(error).split())
        raise DataError(f"{folder}: does not hold a BERT's tokenizer: {reason}") from error


def read_pairs(path: Path, name: Name) -> list[Pair]:
    """The pairs of a `.tsv` file of PAWS-X or XNLI.

    PAWS-X's files may have a header row, a first row whose label is a word: LibMTL skips the
    first row unseen, though the files that its own and XTREME's scripts write have none.

    Raises:
        DataError: the file cannot be read, or is malformed or empty.
    """
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    pairs = []
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        where = f"{path}, line {number}"
        if len(columns) != 3:
            raise DataError(f"{where}: expected text, text and label, got {len(columns)} columns")
        first, second, label = (column.strip() for column in columns)
        if number == 1 and name == "pawsx" and label[:1].isalpha():
            continue
        if (name, label) == ("xnli", "contradictory"):
            label = "contradiction"  # MultiNLI's word, in the translated training files
        pairs.append(Pair(first, second, _index(label, LABELS[name], where)))
    if not pairs:
        raise DataError(f"{path}: expected pairs of texts, found none")
    return pairs


def read_tagged(path: Path, labels: Sequence[str], language: str = "") -> list[Sentence]:
    """The sentences of a `.tsv` file of tokens and tags.

    WikiANN's own files, from which PANX is made, write the token `word` as `en:word`: that prefix
    of `language` is taken off.

    Raises:
        DataError: the file cannot be read, or is malformed or empty.
    """
    sentences = []
    for block in _blocks(path):
        sentence = Sentence([], [])
        for number, line in block:
            columns = line.split("\t")
            where = f"{path}, line {number}"
            if len(columns) != 2 or not columns[0]:
                got = f"{len(columns)} columns" if columns[0] else "an empty token"
                raise DataError(f"{where}: expected token, tab and tag, got {got}")
            word = columns[0].removeprefix(f"{language}:") if language else columns[0]
            sentence.words.append(word or columns[0])
            sentence.tags.append(_index(columns[1].strip(), labels, where))
        sentences.append(sentence)
    return _require_some(sentences, path)


def read_conllu(path: Path) -> list[Sentence]:
    """The words (column 2) and universal tags (column 4) of a Universal Dependencies file.

    Comments, ranges of several words (3-4) and empty nodes (8.1) are left out. Spaces within words
    (Vietnamese has them) and zero-width non-joiners go, as in XTREME's conversion; that, however,
    puts fused forms in place of the words of a range. So do sentences all of whose words, or all
    but one, are `_`: of some treebanks the text is not free.

    Raises:
        DataError: the file cannot be read, or is malformed or empty.
    """
    sentences = []
    for block in _blocks(path):
        sentence = Sentence([], [])
        for number, line in block:
            columns = line.split("\t")
            where = f"{path}, line {number}"
            if line.startswith("#"):
                continue
            if len(columns) != 10:
                raise DataError(f"{where}: expected the 10 columns of CoNLL-U, got {len(columns)}")
            if _is_range_or_empty(columns[0]):
                continue
            if columns[0] != str(len(sentence.words) + 1):
                expected = f"expected word {len(sentence.words) + 1} of the sentence"
                raise DataError(f"{where}: {expected}, got {columns[0]!r}")
            word = columns[1].replace(" ", "").replace("\u200c", "")
            sentence.words.append(word)
            sentence.tags.append(_index(columns[3], LABELS["udpos"], where))
        words = sentence.words
        if words and words.count("_") < max(1, len(words) - 1):
            sentences.append(sentence)
    return _require_some(sentences, path)


def _read_sentences(path: Path, name: Name, language: str) -> list[Sentence]:
    if path.suffix == ".conllu":
        return read_conllu(path)
    return read_tagged(path, LABELS[name], language if name == "panx" else "")


def _find(root: Path, name: str, language: str, split: str) -> Path:
    if name not in LABELS:
        raise ConfigError(f"no benchmark {name!r}: one of {', '.join(LABELS)}")
    if split not in get_args(Split):
        raise ConfigError(f"no split {split!r}: one of {', '.join(get_args(Split))}")
    endings = (".tsv", ".conllu") if name == "udpos" else (".tsv",)
    paths = [root / name / f"{split}-{language}{ending}" for ending in endings]
    for path in paths:
        if path.is_file():
            return path
    also = f" (nor {paths[1].name})" if paths[1:] else ""
    raise DataError(f"{paths[0]}: no such file{also}")


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}"
        raise DataError(f"{path}, line {number}: expected UTF-8, got {byte}") from error
    # Not splitlines, which also cuts at characters that texts contain, such as U+2028.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _blocks(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines between blank ones: no block is empty, and the last needs no blank line."""
    numbered = enumerate(_lines(path), start=1)
    for filled, block in groupby(numbered, key=lambda line: bool(line[1].strip())):
        if filled:
            yield list(block)


def _is_range_or_empty(number: str) -> bool:
    parts = number.replace("-", ".").split(".")
    return len(parts) == 2 and all(part.isdecimal() for part in parts)


def _index(label: str, labels: Sequence[str], where: str) -> int:
    if label not in labels:
        raise DataError(f"{where}: expected a label of {', '.join(labels)}, got {label!r}")
    return labels.index(label)


def _require_some(sentences: list[Sentence], path: Path) -> list[Sentence]:
    if not sentences:
        raise DataError(f"{path}: expected sentences, found none")
    return sentences


def _encode_pairs(pairs: list[Pair], tokenizer: Any, tokens: int) -> tuple[list[_Encoded], int]:
    samples, truncated = [], 0
    for start in range(0, len(pairs), 1000):  # the tokenizer's own objects are large
        first, second, labels = zip(*pairs[start : start + 1000], strict=True)
        encoded = tokenizer(list(first), list(second), truncation=True, max_length=tokens)
        truncated += sum(bool(one.overflowing) for one in encoded.encodings)
        rows = zip(encoded["input_ids"], encoded["token_type_ids"], labels, strict=True)
        samples += [_Encoded(array("i", ids), of.index(1), label) for ids, of, label in rows]
    return samples, truncated


def _encode_sentences(
    sentences: list[Sentence], tokenizer: Any, tokens: int
) -> tuple[list[_Encoded], int]:
    samples, truncated = [], 0
    for words, tags in sentences:
        ids, targets = [tokenizer.cls_token_id], [IGNORED]
        pieces = tokenizer(words, add_special_tokens=False)["input_ids"]
        for word, tag in zip(pieces, tags, strict=True):
            ids += word or [tokenizer.unk_token_id]  # XTREME's, for words of no known character
            targets += [tag] + [IGNORED] * (len(word) - 1)
        truncated += len(ids) > tokens - 1
        ids = [*ids[: tokens - 1], tokenizer.sep_token_id]
        targets = [*targets[: tokens - 1], IGNORED]
        samples.append(_Encoded(array("i", ids), len(ids), array("i", targets)))
    return samples, truncated
