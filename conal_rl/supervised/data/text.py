"""XTREME's sentence pairs (PAWS-X, XNLI) and tags (PANX, UD POS): a language is a task.

Hu et al., "XTREME: A Massively Multilingual Multi-task Benchmark for Evaluating Cross-lingual
Generalization" (ICML 2020). The files are those that XTREME's scripts write. LibMTL's scripts write
the same files and keep the labels of the test sets:

    {pawsx,xnli}/{train,dev,test}-{language}.tsv      text, text, label
    {panx,udpos}/{train,dev,test}-{language}.tsv      token, tag; blank lines between sentences
    udpos/{train,dev,test}-{language}.conllu          Universal Dependencies, read without a .tsv

Columns are separated by tabs. Quotation marks are ordinary characters, as in transformers. A line
with a different format raises a DataError that names the line, or its sample is left out.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from conal_rl.errors import ConfigError, import_extra
from conal_rl.files import user_path
from conal_rl.supervised.data.common import TargetSpec
from conal_rl.supervised.data.files import (
    DataError,
    data_error,
    missing_file,
    numbered_lines,
    require_utf8,
    utf8_lines,
)

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
"""Names of each benchmark's classes or tags, in XTREME's order; a label is an index into it."""

_OTHER_BERT = "Use a different folder of a BERT"
_HEADINGS = frozenset(
    {"class", "gold_label", "label", "labels", "ner", "ner_tag", "ner_tags"}
    | {"pos", "pos_tag", "pos_tags", "tag", "tags", "upos"}
)
"""Names that the column of labels has in headers, in lower case."""
IGNORED = -100
"""The tag of every token except a word's first piece."""


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
    second: int  # the start of the second segment
    target: int | array[int]  # a class, or one tag per piece


class Texts:
    """One language's part of a benchmark: items `(input, target)`.

    The input `(2, token)` has token ids and segment ids, as `conal_rl.supervised.bert` expects.
    After the text's end it has the tokenizer's padding id and segment 0. The target is a class
    `()`, or tags `(token,)`: a word's first piece has the word's tag, all other tokens have
    `IGNORED`. Inputs and targets are int64.

    If a pair is too long, pieces are cut from the longer text. If a sentence is too long, its last
    words are cut. Their tags are neither trained nor counted. XTREME instead puts these words into
    a new sentence.

    Args:
        root: the folder that holds `pawsx`, `xnli`, `panx` and `udpos`.
        name: the benchmark.
        language: the language, as in the file's name.
        split: the part.
        tokenizer: from `load_tokenizer`.
        tokens: length of every input, including [CLS] and [SEP].
        skip_damaged: leave out pairs and sentences with a malformed line.

    Raises:
        DataError: the file is missing, or a line is malformed and `skip_damaged` is off.
        ConfigError: the benchmark or split is unknown, or `tokens` leaves no room for text.
    """

    truncated: int
    """The number of samples that were cut to `tokens`."""
    damaged: list[DataError]
    """The errors of the samples that are left out."""

    def __init__(
        self,
        root: str | Path,
        name: Name,
        language: str,
        split: Split,
        tokenizer: Any,
        tokens: int = 128,
        skip_damaged: bool = False,
    ):
        if tokens < 5:
            raise ConfigError(
                f"tokens: got {tokens}, expected 5 or more, the least for a pair of texts. "
                "Raise data.tokens"
            )
        path = _find(user_path(root), name, language, split)
        self.labels = LABELS[name]
        """The names of the classes or tags."""
        self.tokens, self.padding = tokens, tokenizer.pad_token_id
        self.damaged = []
        damaged = self.damaged if skip_damaged else None
        if name in ("pawsx", "xnli"):
            pairs = read_pairs(path, name, damaged)
            self.spec = TargetSpec((), torch.int64)
            self._samples, self.truncated = _encode_pairs(pairs, tokenizer, tokens)
        else:
            sentences = _read_sentences(path, name, language, damaged)
            self.spec = TargetSpec((tokens,), torch.int64)
            self._samples, self.truncated = _encode_sentences(sentences, tokenizer, tokens)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a text `(2, token)` and its class `()` or tags `(token,)`."""
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
    skip_damaged: bool = False,
) -> dict[str, Texts]:
    """Return the `Texts` of each language; see `Texts` for arguments and errors."""
    return {of: Texts(root, name, of, split, tokenizer, tokens, skip_damaged) for of in languages}


def load_tokenizer(folder: str | Path) -> Any:
    """Return BERT's tokenizer (a `BertTokenizerFast`) from a local folder with `vocab.txt`.

    Nothing is downloaded. Capitals are kept, as in the cased multilingual BERT, unless the folder's
    `tokenizer_config.json` sets `do_lower_case`.

    Raises:
        ExtraError: transformers is not installed.
        DataError: a file is missing or damaged, or the vocabulary lacks a special token.
    """
    transformers = import_extra("transformers", "transformers", "nlp")
    vocabulary, settings = Path(folder) / "vocab.txt", Path(folder) / "tokenizer_config.json"
    # Without the file, transformers would use an empty vocabulary.
    lacking = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(utf8_lines(vocabulary))
    if lacking:
        missing = ", ".join(sorted(lacking))
        raise data_error(vocabulary, f"no line {missing}", "all special tokens", _OTHER_BERT)
    try:
        about = json.loads("\n".join(utf8_lines(settings))) if settings.exists() else {}
        case = {} if "do_lower_case" in about else {"do_lower_case": False}
        kind = transformers.BertTokenizerFast
        return kind.from_pretrained(str(folder), local_files_only=True, **case)
    except DataError:
        raise
    except Exception as error:  # transformers and tokenizers raise errors of many types
        reason = f"files that cannot be read ({' '.join(str(error).split())})"
        raise data_error(str(folder), reason, "a BERT's tokenizer", _OTHER_BERT) from error


def read_pairs(path: Path, name: Name, damaged: list[DataError] | None = None) -> list[Pair]:
    """Return the pairs of a `.tsv` file of PAWS-X or XNLI.

    The first row may be a header, as in PAWS-X's own files and in MultiNLI's translations. LibMTL
    always skips the first row, but the files of XTREME's and LibMTL's scripts have no header.
    Blank lines are left out.

    Args:
        path: the file.
        name: the benchmark.
        damaged: takes the errors of malformed lines, which are left out. None: the first is raised.

    Raises:
        DataError: the file cannot be read, is malformed, or is empty.
    """
    pairs = []
    lines = [
        (number, line) for number, line in numbered_lines(path) if line.strip() or "\t" in line
    ]
    for number, line in lines:
        columns = [column.strip() for column in line.split("\t")]
        if number == lines[0][0] and _is_header(columns, name):
            continue
        with _noting(damaged):
            pairs.append(_pair(columns, name, f"{path}, line {number}", line))
    if not pairs:
        raise data_error(path, "no pair", "pairs of texts")
    return pairs


def _is_header(columns: list[str], name: Name) -> bool:
    """Return whether these are names of columns instead of two texts and a label."""
    if len(columns) != 3:
        return False
    label = columns[2]
    return label[:1].isalpha() if name == "pawsx" else label.lower() in _HEADINGS


def _pair(columns: list[str], name: Name, where: str, line: str) -> Pair:
    require_utf8(line, where)
    if len(columns) != 3:
        raise data_error(where, f"{len(columns)} columns", "text, text and label")
    first, second, label = columns
    if (name, label) == ("xnli", "contradictory"):
        label = "contradiction"  # MultiNLI's word, in the translated training files
    return Pair(first, second, _index(label, LABELS[name], where))


def read_tagged(
    path: Path, labels: Sequence[str], language: str = "", damaged: list[DataError] | None = None
) -> list[Sentence]:
    """Return the sentences of a `.tsv` file of tokens and tags.

    WikiANN's files, the source of PANX, write the token `word` as `en:word`. The prefix of
    `language` is removed. The first row may be a header.

    Args:
        path: the file.
        labels: the tags.
        language: the language of the prefix.
        damaged: takes the errors of sentences with a malformed line, which are left out. None: the
            first error is raised.

    Raises:
        DataError: the file cannot be read, is malformed, or is empty.
    """
    sentences = []
    for number, block in enumerate(_blocks(path)):
        if number == 0 and _is_tag_heading(block[0][1], labels):
            block = block[1:]
        with _noting(damaged):
            sentence = Sentence([], [])
            for line in block:
                _add_tagged(sentence, *line, path, labels, language)
            if sentence.words:
                sentences.append(sentence)
    return _require_some(sentences, path)


def _is_tag_heading(line: str, labels: Sequence[str]) -> bool:
    columns = [column.strip() for column in line.split("\t")]
    return len(columns) == 2 and columns[1].lower() in _HEADINGS and columns[1] not in labels


def _add_tagged(
    sentence: Sentence, number: int, line: str, path: Path, labels: Sequence[str], language: str
) -> None:
    columns = line.split("\t")
    where = f"{path}, line {number}"
    require_utf8(line, where)
    if len(columns) != 2 or not columns[0]:
        got = f"{len(columns)} columns" if columns[0] else "an empty token"
        raise data_error(where, got, "token, tab and tag")
    word = columns[0].removeprefix(f"{language}:") if language else columns[0]
    tag = _index(columns[1].strip(), labels, where)
    sentence.words.append(word or columns[0])
    sentence.tags.append(tag)


def read_conllu(path: Path, damaged: list[DataError] | None = None) -> list[Sentence]:
    """Return the words (column 2) and universal tags (column 4) of a Universal Dependencies file.

    Comments, ranges of several words (3-4) and empty nodes (8.1) are left out. As in XTREME's
    conversion, spaces within words (as in Vietnamese) and zero-width non-joiners are removed. But
    XTREME keeps the fused form of a range, and we keep its words. Some treebanks must not publish
    their text and have `_` for words: a sentence is left out if all words, or all except one, are
    `_`.

    Args:
        path: the file.
        damaged: as in `read_tagged`.

    Raises:
        DataError: the file cannot be read, is malformed, or is empty.
    """
    sentences = []
    for block in _blocks(path):
        with _noting(damaged):
            sentence = Sentence([], [])
            for number, line in block:
                if not line.startswith("#"):
                    _add_conllu(sentence, line, f"{path}, line {number}")
            words = sentence.words
            if words and words.count("_") < max(1, len(words) - 1):
                sentences.append(sentence)
    return _require_some(sentences, path)


def _add_conllu(sentence: Sentence, line: str, where: str) -> None:
    columns = line.split("\t")
    require_utf8(line, where)
    if len(columns) != 10:
        raise data_error(where, f"{len(columns)} columns", "the 10 columns of CoNLL-U")
    if _is_range_or_empty(columns[0]):
        return
    if columns[0] != str(len(sentence.words) + 1):
        expected = f"word {len(sentence.words) + 1} of the sentence"
        raise data_error(where, repr(columns[0]), expected)
    tag = _index(columns[3], LABELS["udpos"], where)
    sentence.words.append(columns[1].replace(" ", "").replace("\u200c", ""))
    sentence.tags.append(tag)


def _read_sentences(
    path: Path, name: Name, language: str, damaged: list[DataError] | None
) -> list[Sentence]:
    if path.suffix == ".conllu":
        return read_conllu(path, damaged)
    return read_tagged(path, LABELS[name], language if name == "panx" else "", damaged)


@contextmanager
def _noting(damaged: list[DataError] | None) -> Iterator[None]:
    """Add the block's error to `damaged`, or raise it if that is None."""
    try:
        yield
    except DataError as error:
        if damaged is None:
            raise
        damaged.append(error)


def _find(root: Path, name: str, language: str, split: str) -> Path:
    if name not in LABELS:
        raise ConfigError(
            f"name: got {name!r}, expected one of {', '.join(LABELS)}. Give one of them"
        )
    if split not in get_args(Split):
        raise ConfigError(
            f"split: got {split!r}, expected one of {', '.join(get_args(Split))}. Give one of them"
        )
    endings = (".tsv", ".conllu") if name == "udpos" else (".tsv",)
    paths = [root / name / f"{split}-{language}{ending}" for ending in endings]
    for path in paths:
        if path.is_file():
            return path
    also = f" or {paths[1].name}" if paths[1:] else ""
    raise missing_file(paths[0], f"{paths[0].name}{also}")


def _blocks(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Yield blocks of numbered lines; blank lines separate blocks, and no block is empty."""
    for filled, block in groupby(numbered_lines(path), key=lambda line: bool(line[1].strip())):
        if filled:
            yield list(block)


def _is_range_or_empty(number: str) -> bool:
    parts = number.replace("-", ".").split(".")
    return len(parts) == 2 and all(part.isdecimal() for part in parts)


def _index(label: str, labels: Sequence[str], where: str) -> int:
    if label not in labels:
        raise data_error(where, repr(label), f"a label of {', '.join(labels)}")
    return labels.index(label)


def _require_some(sentences: list[Sentence], path: Path) -> list[Sentence]:
    if not sentences:
        raise data_error(path, "no sentence", "sentences")
    return sentences


def _encode_pairs(pairs: list[Pair], tokenizer: Any, tokens: int) -> tuple[list[_Encoded], int]:
    samples, truncated = [], 0
    for start in range(0, len(pairs), 1000):  # the tokenizer's objects are large
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
            # XTREME also takes [UNK] for a word without a known character.
            ids += word or [tokenizer.unk_token_id]
            targets += [tag] + [IGNORED] * (len(word) - 1)
        truncated += len(ids) > tokens - 1
        ids = [*ids[: tokens - 1], tokenizer.sep_token_id]
        targets = [*targets[: tokens - 1], IGNORED]
        samples.append(_Encoded(array("i", ids), len(ids), array("i", targets)))
    return samples, truncated
