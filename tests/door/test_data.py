"""Whatever a file of rows, poems or text holds: it is read, or refused in one line."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import GOOD, anywhere, outcome_of, read_dev

from config import InputError
from tasks import verse
from tasks.classification import read_split
from tasks.corpus import find_texts, read_documents
from tasks.sonnet_report import read_prompts
from tasks.sonnets import lines_with_words, read_sonnets
from tasks.table import sample

# Bytes as they come, and text that looks like what is expected.
pieces = st.lists(
    st.sampled_from(
        [
            "id",
            "sentence",
            "label",
            "\t",
            "\n",
            "\r\n",
            "\r",
            '"',
            '""',
            "1",
            "0.0",
            "a",
            "\ufeff",
            "\0",
            "é",
            "\x1b[2J",
        ]
    ),
    max_size=40,
)
contents = st.one_of(
    st.binary(max_size=80),
    pieces.map(lambda parts: "".join(parts).encode()),
    pieces.map(lambda parts: b"id\tsentence\tlabel\n" + "".join(parts).encode()),
)


@anywhere
@given(data=contents)
@example(GOOD.decode().encode("utf-16"))
@example(GOOD.decode().encode("utf-16-le"))
@example(GOOD + b"c\td\0\t1\n")
@example(GOOD + b'c\t"never closed\t1\n')
@example(b"\x1b[2J\n\xe2\x80\xa8id\tx\n1\t2\n")
@example(b"id\tsentence\tsentence\tlabel\na\tb\tc\t1\n")
@example(b"\t" * 100_000 + b"\n" + b"x\n" * 1000)
def test_a_file_of_rows_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x-dev.csv").write_bytes(data)

    def read() -> None:
        split = read_dev(tmp_path)
        assert len(split.ids) == len(split.texts) == len(split.labels) > 0
        assert set(split.labels) <= {0, 1}
        assert not any("\0" in text for text in split.texts)

    outcome_of(read)


@anywhere
@given(data=st.one_of(contents, st.lists(st.sampled_from(["1", "\n", "12\n", "line", "\0", "٣", "\r\n"])).map("".join)))
def test_a_file_of_poems_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "poems.txt").write_bytes(data if isinstance(data, bytes) else data.encode())

    def read() -> None:
        poems = read_sonnets(tmp_path / "poems.txt", skip_bad_rows=True)
        assert len(poems.numbers) == len(poems.poems) > 0
        assert all(poems.poems)

    outcome_of(read)
    outcome_of(lambda: read_documents(find_texts([str(tmp_path / "poems.txt")])))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.decode().encode("utf-16-le"), "line 1 holds a NUL character"),
        (GOOD + b"c\td\0\t1\n", "line 3 holds a NUL character"),
        (GOOD + b"x\t" + b"y" * 50_000_000, "line 3: field larger than field limit"),
        (b"id\tsentence\tsentence\tlabel\na\tb\tc\t1\n", "column sentence is twice in its header"),
        (b"id\tsentence\tlabel" + b"\tx" * 1000 + b"\na\tb\t1\n", "1003 columns in its header"),
        (b"\x1b[2Jid\n1\n", r"only \\x1b\[2Jid"),
    ],
)
def test_what_no_table_holds_is_named(tmp_path, data, message):
    (tmp_path / "x-dev.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_dev(tmp_path)


@pytest.mark.parametrize("data", [GOOD[:-1], GOOD.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + GOOD, GOOD + b"\n\n"])
def test_line_ends_and_marks_change_nothing(tmp_path, data):
    (tmp_path / "x-dev.csv").write_bytes(data)
    split = read_dev(tmp_path)
    assert (split.ids, split.texts, split.labels) == (["a"], ["b"], [1])


def test_rows_of_one_id_are_all_there_and_labels_must_agree(tmp_path):
    (tmp_path / "x-dev.csv").write_bytes(GOOD + b'"a\nb"\tc\t0\na\td\t0\n')
    assert read_dev(tmp_path).ids == ["a", "a b", "a"]
    assert read_dev(tmp_path).labels == [1, 0, 0]
    (tmp_path / "x-test-student.csv").write_bytes(b"id\tsentence\na\tb\n")
    (tmp_path / "x-test-labels.csv").write_bytes(b"id\tlabel\na\t1\na\t1\na\t0\n")
    with pytest.raises(InputError, match=r"line 4: a has the label '1' above, and '0'"):
        read_split(tmp_path, "x", "test", ["sentence"], "label", 2, skip_bad_rows=False)


def test_more_rows_than_there_are_is_all_of_them():
    assert sample(5, 10**30) == [0, 1, 2, 3, 4]


def test_poems_that_a_model_of_bytes_writes_can_be_read_again():
    assert lines_with_words("a\0b\n\0\n12\0\nc") == ["ab", "c"]


TEXT = b"the night was warm\n\n" * 60
GZIP = gzip.compress(TEXT, mtime=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"a b\n\n" * 10**6, mtime=0), "unpacks to more than 100 times its size"),
        (gzip.compress(bytes(10**7), mtime=0), "unpacks to more than 100 times its size"),
        (GZIP[:-5], "end-of-stream marker"),
        (GZIP[: len(GZIP) // 2], "end-of-stream marker"),
        (GZIP[:-8] + bytes(8), "CRC check failed"),
        (GZIP[:20] + b"XXXX" + GZIP[24:], "cannot be read"),
        (GZIP + b"more", "Not a gzipped file"),
        (TEXT, "Not a gzipped file"),
        (gzip.compress(GZIP, mtime=0), "cannot be read as UTF-8"),
        (b"", "no text in there"),
        (GZIP + GZIP, ""),
    ],
)
def test_a_compressed_corpus_is_read_or_refused_in_one_line(tmp_path, data, message):
    (tmp_path / "text.txt.gz").write_bytes(data)
    said = outcome_of(lambda: read_documents(find_texts([str(tmp_path)])))
    assert message in said
    assert bool(message) == bool(said)


@pytest.mark.parametrize("poem", [b"y" * 10**6, b"word " * 10**5, b"a word\n" * 10**5])
def test_a_poem_beyond_all_measure_is_named(tmp_path, poem):
    (tmp_path / "poems.txt").write_bytes(b"1\n\nline\n\n2\n\n" + poem)
    assert "sonnet 2, on line 5, has" in outcome_of(lambda: read_sonnets(tmp_path / "poems.txt"))


def test_words_of_any_length_rhyme_or_do_not(monkeypatch):
    """The search for an ending takes no time that grows with the square of a word's length."""
    monkeypatch.setattr(verse, "_phones", lambda word: [])  # no dictionary has them, and reading it takes a second
    assert not verse.rhyme("a" * 90_000 + "b", "a" * 90_000 + "bd")
    assert verse.rhyme("q" * 90_000 + "ooth", "zzooth")


def test_whole_sonnets_begin_with_what_is_given(tmp_path):
    (tmp_path / "sonnets_held_out.txt").write_text("1\n\nline\n")
    for first, said in ((" line ", ""), ("other", "sonnet 1 does not begin with the lines")):
        (tmp_path / "TRUE_sonnets_held_out.txt").write_text(f"1\n\n{first}\nmore\n")
        assert said in outcome_of(lambda: read_prompts(tmp_path, "test", None))
        assert bool(said) == bool(outcome_of(lambda: read_prompts(tmp_path, "test", None)))


def test_labels_of_test_that_are_none_are_spoken_of(tmp_path, capsys):
    (tmp_path / "x-test-student.csv").write_bytes(b"id\tsentence\na\tb\nc\td\ne\tf\n")
    (tmp_path / "x-test-labels.csv").write_bytes(b"id\tlabel\na\t1\nc\t7\n")
    split = read_split(tmp_path, "x", "test", ["sentence"], "label", 2, skip_bad_rows=False)
    assert split.labels == [1, None, None]
    assert "1 of 3 rows are not scored; the first, c: label 7 is outside" in capsys.readouterr().out
