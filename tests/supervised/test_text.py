"""XTREME's files written by hand, with their ids and labels; errors and the lines they name."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conal_rl.errors import ConfigError, ExtraError
from conal_rl.supervised.data.common import TargetSpec
from conal_rl.supervised.data.files import DataError
from conal_rl.supervised.data.text import (
    IGNORED,
    LABELS,
    Pair,
    Sentence,
    Texts,
    load_tokenizer,
    read_conllu,
    read_pairs,
    read_tagged,
    xtreme,
)
from tests.helpers.refusals import refused

pytest.importorskip("transformers")

PAD, UNK, CLS, SEP, DOG, RUN, S, NING, THE = range(9)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "run", "##s", "##ning", "the")
_ = IGNORED


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bert")
    write(folder / "vocab.txt", "\n".join(VOCABULARY) + "\n")
    return load_tokenizer(folder)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def conllu(number: str, form: str, tag: str) -> str:
    return "\t".join([number, form, form.lower(), tag, *["_"] * 6])


def test_pairs_have_two_segments_and_padding(tmp_path: Path, tokenizer: Any) -> None:
    header = "sentence1\tsentence2\tlabel\r\n"
    rows = "the dog runs\trunning dog\t1\r\nthe cat\tdogs\t0\r\n"
    write(tmp_path / "pawsx/dev-de.tsv", header + rows)
    texts = Texts(tmp_path, "pawsx", "de", "dev", tokenizer, tokens=11)
    x, label = texts[0]
    assert x.dtype == label.dtype == torch.int64
    assert x.tolist() == [
        [CLS, THE, DOG, RUN, S, SEP, RUN, NING, DOG, SEP, PAD],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0],
    ]
    assert TargetSpec(tuple(label.shape), label.dtype) == texts.spec
    x, other = texts[1]
    assert x[0].tolist() == [CLS, THE, UNK, SEP, DOG, S, SEP, *[PAD] * 4]
    assert (int(label), int(other), len(texts), texts.truncated) == (1, 0, 2, 0)


def test_the_longer_text_of_a_long_pair_is_cut(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "xnli/test-en.tsv", "dog dog dog dog dog\trun\tneutral\ndog\trun\tneutral")
    texts = Texts(tmp_path, "xnli", "en", "test", tokenizer, tokens=7)
    assert texts[0][0].tolist() == [
        [CLS, DOG, DOG, DOG, SEP, RUN, SEP],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert texts.truncated == 1


def test_an_empty_text_keeps_its_segment(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "pawsx/dev-en.tsv", "dog\t\t0\n")
    x, _ = Texts(tmp_path, "pawsx", "en", "dev", tokenizer, tokens=6)[0]
    assert x.tolist() == [[CLS, DOG, SEP, SEP, PAD, PAD], [0, 0, 0, 1, 0, 0]]


def test_classes_are_in_xtremes_order(tmp_path: Path) -> None:
    names = ("contradiction", "entailment", "neutral", "contradictory")
    path = write(tmp_path / "a.tsv", "".join(f"a\tb\t{name}\n" for name in names))
    assert [pair.label for pair in read_pairs(path, "xnli")] == [0, 1, 2, 0]


def test_a_first_pair_is_not_read_as_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'say "a\tb" and\t1\n')
    assert read_pairs(path, "pawsx") == [Pair('say "a', 'b" and', 1)]
    with refused(DataError, f"{path}, line 1", "'entailed'"):
        read_pairs(write(path, "text\ttext\tentailed\n"), "xnli")


@pytest.mark.parametrize("label", ["label", "gold_label", "Label", "label\r"])
def test_a_header_of_xnli_is_left_out(tmp_path: Path, label: str) -> None:
    rows = f"premise\thypo\t{label}\na\tb\tneutral\n"
    for start in ("", "\n", "\ufeff", "\ufeff\r\n"):
        path = write(tmp_path / "a.tsv", start + rows)
        assert read_pairs(path, "xnli") == [Pair("a", "b", 2)]
    with refused(DataError, f"{path}, line 3", "'label'"):
        read_pairs(write(path, "a\tb\tneutral\n\na\tb\tlabel\n"), "xnli")


@pytest.mark.parametrize("heading", ["token\ttag", "word\tLabel", "form\tupos\n"])
def test_a_header_of_tags_is_left_out(tmp_path: Path, heading: str) -> None:
    path = write(tmp_path / "a.tsv", f"{heading}\na\tNOUN\nb\tX\n")
    assert read_tagged(path, LABELS["udpos"]) == [Sentence(["a", "b"], [7, 16])]


def test_blank_lines_between_pairs_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\na\tb\t0\n\n \nc\td\t1\n\n")
    assert read_pairs(path, "pawsx") == [Pair("a", "b", 0), Pair("c", "d", 1)]


def test_samples_with_damaged_lines_can_be_left_out(tmp_path: Path) -> None:
    damaged: list[DataError] = []
    path = write(tmp_path / "a.tsv", b"a\tb\t0\nc\nd\t\xff\t1\ne\tf\t1\n\t\t\n")
    assert read_pairs(path, "pawsx", damaged) == [Pair("a", "b", 0), Pair("e", "f", 1)]
    assert [error.where for error in damaged] == [f"{path}, line {n}" for n in (2, 3, 5)]
    damaged.clear()
    path = write(tmp_path / "b.tsv", "a\tX\nb\n\nc\tX\n\nd\tY\n")
    assert read_tagged(path, LABELS["udpos"], "", damaged) == [Sentence(["c"], [16])]
    assert [error.where for error in damaged] == [f"{path}, line {n}" for n in (2, 6)]
    damaged.clear()
    path = write(tmp_path / "c.conllu", conllu("1", "a", "_") + "\n\n" + conllu("1", "b", "X"))
    assert read_conllu(path, damaged) == [Sentence(["b"], [16])]
    assert [error.where for error in damaged] == [f"{path}, line 1"]


def test_characters_that_look_like_line_ends_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "\ufeffa\u2028b\x0bc\td\x85e\t0\n")
    assert read_pairs(path, "pawsx") == [Pair("a\u2028b\x0bc", "d\x85e", 0)]


def test_only_first_pieces_have_tags(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "panx/train-en.tsv", "the\tO\nrunning\tB-PER\ndogs\tI-PER\n")
    texts = Texts(tmp_path, "panx", "en", "train", tokenizer, tokens=8)
    x, tags = texts[0]
    o, b, i = (LABELS["panx"].index(name) for name in ("O", "B-PER", "I-PER"))
    assert x.tolist() == [[CLS, THE, RUN, NING, DOG, S, SEP, PAD], [0] * 8]
    assert tags.tolist() == [_, o, b, _, i, _, _, _]
    assert TargetSpec(tuple(tags.shape), tags.dtype) == texts.spec
    assert texts.truncated == 0


def test_long_sentences_are_cut_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "panx/train-en.tsv", "dog\tO\nthe\tO\nruns\tO\n\nthe\tO\nruns\tO\n")
    texts = Texts(tmp_path, "panx", "en", "train", tokenizer, tokens=5)
    assert texts[0][0][0].tolist() == [CLS, DOG, THE, RUN, SEP]
    assert texts[0][1].tolist() == [_, 6, 6, 6, _]
    assert texts[1][0][0].tolist() == [CLS, THE, RUN, S, SEP]
    assert texts.truncated == 1


def test_a_word_without_pieces_is_unknown(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "panx/train-en.tsv", "\u200e\tO\ndog\tB-LOC\n")
    x, tags = Texts(tmp_path, "panx", "en", "train", tokenizer, tokens=5)[0]
    assert x[0].tolist() == [CLS, UNK, DOG, SEP, PAD]
    assert tags.tolist() == [_, 6, 0, _, _]


def test_only_the_prefix_of_the_language_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en:word\tO\nen::\tO\n12:30\tO\nde:x\tO\nen:\tO\n")
    [sentence] = read_tagged(path, LABELS["panx"], "en")
    assert sentence.words == ["word", ":", "12:30", "de:x", "en:"]
    assert read_tagged(path, LABELS["panx"])[0].words[0] == "en:word"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n", "\n \n"])
@pytest.mark.parametrize("between", ["\n\n", "\n\n\n\n", "\n\t\n", "\r\n\r\n"])
def test_blank_lines_separate_sentences(tmp_path: Path, between: str, end: str) -> None:
    path = write(tmp_path / "a.tsv", f"{between}a\tNOUN\nb\tVERB{between}c\tX{end}")
    expected = [Sentence(["a", "b"], [7, 15]), Sentence(["c"], [16])]
    assert read_tagged(path, LABELS["udpos"]) == expected


CHARACTERS = st.characters(
    exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="_"
)
WORDS = st.text(CHARACTERS, min_size=1, max_size=5)
TAGS = st.sampled_from(range(17))
SENTENCES = st.lists(st.lists(st.tuples(WORDS, TAGS), min_size=1, max_size=4), min_size=1)


@given(SENTENCES, st.data())
@settings(max_examples=60, deadline=None)
def test_written_sentences_are_read_again(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[tuple[str, int]]], data: Any
) -> None:
    folder, names = tmp_path_factory.getbasetemp(), LABELS["udpos"]
    gaps = st.integers(1, 3).map(lambda blanks: "\n" * blanks)
    tsv = universal = ""
    for sentence in sentences:
        gap = data.draw(gaps)
        tsv += "".join(f"{word}\t{names[tag]}\n" for word, tag in sentence) + gap
        universal += "# text = ...\n1-2\t" + "\t".join("_" * 9) + "\n"
        numbered = enumerate(sentence, start=1)
        rows = [conllu(str(number), word, names[tag]) for number, (word, tag) in numbered]
        universal += "\n".join(rows) + "\n" + gap
    cut = data.draw(st.booleans())  # also without the last blank line
    expected = [Sentence([w for w, _ in s], [t for _, t in s]) for s in sentences]
    path = write(folder / "there.tsv", tsv.rstrip("\n") if cut else tsv)
    assert read_tagged(path, names) == expected
    path = write(folder / "there.conllu", universal.rstrip("\n") if cut else universal)
    plain = [Sentence([w.replace("\u200c", "") for w in s.words], s.tags) for s in expected]
    assert read_conllu(path) == plain


UNIVERSAL = "\n".join(
    [
        "# sent_id = 1",
        "# text = dámelo hoy",
        conllu("1-3", "dámelo", "_"),
        conllu("1", "da", "VERB"),
        conllu("2", "me", "PRON"),
        conllu("3", "lo", "PRON"),
        conllu("3.1", "ahora", "ADV"),
        conllu("4", "có thể", "ADV"),
        "",
        "# only a comment",
        "",
        conllu("1", "#", "SYM"),
    ]
)


def test_conllu_leaves_out_comments_ranges_and_empty_nodes(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "udpos/dev-es.conllu", UNIVERSAL)
    expected = [Sentence(["da", "me", "lo", "cóthể"], [15, 10, 10, 2]), Sentence(["#"], [14])]
    assert read_conllu(path) == expected
    texts = Texts(tmp_path, "udpos", "es", "dev", tokenizer, tokens=7)
    assert [tags[tags != IGNORED].tolist() for _, tags in (texts[0], texts[1])] == [
        [15, 10, 10, 2],
        [14],
    ]


def test_conllu_leaves_out_sentences_without_text(tmp_path: Path) -> None:
    """XTREME does the same: treebanks that must not publish their text have `_` for words."""
    sentences = [["_", "_", "_"], ["_"], ["_", "da"], ["da", "_", "hoy"], ["hoy"]]
    lines = [
        line
        for words in sentences
        for line in [*(conllu(str(i), word, "X") for i, word in enumerate(words, 1)), ""]
    ]
    path = write(tmp_path / "udpos/dev-es.conllu", "\n".join(lines))
    assert [sentence.words for sentence in read_conllu(path)] == sentences[3:]


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ("a\tb\t0\na\tb\n", "line 2: got 2 columns", "text, text and label"),
        ("a\tb\tc\t1\n", "line 1: got 4 columns", "text, text and label"),
        ("a\tb\t0\n\t\na\tb\t1\n", "line 2: got 2 columns", "text, text and label"),
        ("a\tb\t0\na\tb\t2\n", "line 2: got '2'", "0, 1"),
        ("a\tb\t-1\n", "line 1: got '-1'", "0, 1"),
        ("a\tb\tlabel\na\tb\tlabel\n", "line 2: got 'label'", "0, 1"),
        ("a\tb\tlabel\n", "a.tsv: got", "pairs"),
        ("", "a.tsv: got", "pairs"),
        (b"a\tb\t0\n\xffa\tb\t0\n", "line 2: got byte 0xff", "UTF-8"),
    ],
)
def test_errors_in_pairs_name_the_line(
    tmp_path: Path, content: str | bytes, where: str, expected: str
) -> None:
    path = write(tmp_path / "a.tsv", content)
    with refused(DataError, path, where, expected):
        read_pairs(path, "pawsx")


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ("a\tO\nb\n", "line 2: got 1 columns", "token, tab and tag"),
        ("a O\n", "line 1: got 1 columns", "token, tab and tag"),
        ("a\tO\tO\n", "line 1: got 3 columns", "token, tab and tag"),
        ("\n\n\tO\n", "line 3: got an empty token", "token, tab and tag"),
        ("a\tB-MISC\n", "line 1: got 'B-MISC'", "B-LOC, B-ORG"),
        ("a\t\n", "line 1: got ''", "I-PER, O"),
        ("", "a.tsv: got", "sentences"),
        ("\n\n\n", "a.tsv: got", "sentences"),
        ("ä\tO\n".encode("latin-1"), "line 1: got byte 0xe4", "UTF-8"),
    ],
)
def test_errors_in_tags_name_the_line(
    tmp_path: Path, content: str | bytes, where: str, expected: str
) -> None:
    path = write(tmp_path / "a.tsv", content)
    with refused(DataError, path, where, expected):
        read_tagged(path, LABELS["panx"])


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ("1\ta\ta\tX\n", "line 1: got 4 columns", "10 columns"),
        (conllu("1", "a", "_"), "line 1: got '_'", "ADJ"),
        (conllu("1", "a", "X") + "\n" + conllu("1", "b", "X"), "line 2: got '1'", "word 2"),
        (conllu("one", "a", "X"), "line 1: got 'one'", "word 1"),
        ("# nothing else\n", "a.conllu: got", "sentences"),
    ],
)
def test_errors_in_conllu_name_the_line(
    tmp_path: Path, content: str, where: str, expected: str
) -> None:
    path = write(tmp_path / "a.conllu", content)
    with refused(DataError, path, where, expected):
        read_conllu(path)


def test_languages_are_tasks(tmp_path: Path, tokenizer: Any) -> None:
    for language, word in (("en", "dog"), ("te", "the")):
        write(tmp_path / f"udpos/train-{language}.tsv", f"{word}\tNOUN\n")
    texts = xtreme(tmp_path, "udpos", ("te", "en"), "train", tokenizer, tokens=6)
    assert list(texts) == ["te", "en"]
    assert [int(of[0][0][0, 1]) for of in texts.values()] == [THE, DOG]
    assert texts["en"].labels == LABELS["udpos"] and len(LABELS["udpos"]) == 17


def test_missing_files_and_unknown_names_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    def read(name: Any, split: Any, tokens: int = 8) -> None:
        Texts(tmp_path, name, "en", split, tokenizer, tokens)

    with refused(DataError, tmp_path / "xnli" / "dev-en.tsv", "no file"):
        read("xnli", "dev")
    with refused(DataError, tmp_path / "udpos" / "dev-en.tsv", "no file", "dev-en.conllu"):
        read("udpos", "dev")
    with refused(ConfigError, "name: got 'mlqa'", "pawsx"):
        read("mlqa", "dev")
    with refused(ConfigError, "split: got 'val'", "train, dev, test"):
        read("xnli", "val")
    with refused(ConfigError, "tokens: got 4", "5 or more"):
        read("xnli", "dev", tokens=4)
    with refused(DataError, tmp_path, "Is a directory"):
        read_conllu(tmp_path)


def test_damaged_tokenizers_are_refused(tmp_path: Path) -> None:
    with refused(DataError, tmp_path / "vocab.txt", "No such file"):
        load_tokenizer(tmp_path)
    write(tmp_path / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n")
    with refused(DataError, tmp_path / "vocab.txt", "[SEP]"):
        load_tokenizer(tmp_path)
    write(tmp_path / "vocab.txt", "\n".join(VOCABULARY))
    write(tmp_path / "tokenizer_config.json", "{")
    with refused(DataError, tmp_path, "tokenizer"):
        load_tokenizer(tmp_path)


def test_the_folder_decides_about_capitals(tmp_path: Path, tokenizer: Any) -> None:
    assert tokenizer.tokenize("Dog") == ["[UNK]"]
    write(tmp_path / "vocab.txt", "\n".join(VOCABULARY))
    write(tmp_path / "tokenizer_config.json", '{"do_lower_case": true}')
    assert load_tokenizer(tmp_path).tokenize("Dog") == ["dog"]


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(ExtraError, "transformers", ".[nlp]"):
        load_tokenizer(tmp_path)
