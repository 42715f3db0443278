"""Reading the course's files, and writing predictions in its format."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import SHARED, needs_shared_data, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import InputError
from tasks.baselines import fit_baselines
from tasks.classification import score
from tasks.sentiment import Sentiment
from tasks.table import parse_label, read_table, refuse_if_too_many, sample, write_predictions

HEADER = ["", "id", "sentence", "sentiment"]

# Anything a CSV field can hold: quotes, tabs and line breaks too.
fields = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(fields, fields), min_size=1, max_size=8),
    ends=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    final_end=st.booleans(),
)
def test_reads_back_any_text(tmp_path, rows, ends, mark, final_end):
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator=ends, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "sentence"], *rows])
    if not final_end:
        path.write_bytes(path.read_bytes()[: -len(ends)])
    read = read_table(path, ("id", "sentence"))
    assert [(row.fields["id"], row.fields["sentence"]) for row in read] == rows
    assert all(row.problem is None for row in read)


def test_line_numbers_count_the_lines_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('id\tsentence\na\t"two\nlines"\n\nb\tone\n', encoding="utf-8")
    assert [row.line for row in read_table(path, ("id",))] == [2, 5]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "the file is empty"),
        (b"id\tsentence\n", "a header and no rows"),
        (b"id\ttext\n1\ta\n", "no column sentence in its header, only id, text"),
        (b"id\tsentence\n1\t\xff\n", "not UTF-8"),
        (b'id\tsentence\n1\t"never closed\n2\tb\n', "line 3: unexpected end of data"),
        (b"id\tsentence\n1\t" + b"x" * 200_000 + b"\n", "line 2: field larger"),
    ],
)
def test_refuses_files_it_cannot_read(tmp_path, contents, message):
    path = tmp_path / "rows.csv"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=message) as error:
        read_table(path, ("id", "sentence"))
    assert str(path) in str(error.value)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file; python data/download.py"):
        read_table(tmp_path / "none.csv", ("id",))
    with pytest.raises(InputError, match="directory"):
        read_table(tmp_path, ("id",))


def test_labels_of_a_test_file_may_lie_in_a_file_beside_it(tmp_path):
    write_rows(tmp_path / "ids-sst-test-student.csv", ["id", "sentence"], [["a", "x"], ["b", "y"], ["c", "z"]])
    assert Sentiment("sst", tmp_path).read("test").labels == [None, None, None]
    write_rows(tmp_path / "ids-sst-test-labels.csv", ["id", "sentiment"], [["c", 4], ["a", 2], ["other", 1]])
    assert Sentiment("sst", tmp_path).read("test").labels == [2, None, 4]


@pytest.mark.parametrize(("text", "label"), [("0", 0), ("4", 4), (" 3 ", 3), ("2.0", 2), ("1.", 1), ("+1", 1)])
def test_labels(text, label):
    assert parse_label(text, 5) == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no label"),
        ("  ", "no label"),
        ("2.5", "not a whole number"),
        ("good", "not a whole number"),
        ("nan", "not a whole number"),
        ("1e0", "not a whole number"),
        ("٣", "not a whole number"),
        ("5", "outside the classes 0 to 4"),
        ("-1", "outside the classes 0 to 4"),
        ("9" * 40, "not a whole number"),
    ],
)
def test_labels_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_label(text, 5)


def test_bad_rows_are_left_out_counted_and_listed(tmp_path):
    good = [[i, f"id{i}", f"text {i}", i % 5] for i in range(500)]
    bad = [[500, "a", "no label", ""], [501, "b", "half", "2.5"], [502, "c", "far", "7"], [503, "d", "  ", "1"]]
    path = write_rows(tmp_path / "ids-sst-train.csv", HEADER, [*good, *bad])
    with path.open("a", encoding="utf-8") as file:
        file.write("504\te\tshort row\n")
    split = Sentiment("sst", tmp_path).read("train")
    assert len(split.ids) == len(split.texts) == len(split.labels) == 500
    assert [(row.line, row.id) for row in split.bad] == [(502, "a"), (503, "b"), (504, "c"), (505, "d"), (506, "e")]
    reasons = ["no label", "'2.5' is not a whole number", "7 is outside", "empty text", "3 fields instead of 4"]
    for row, reason in zip(split.bad, reasons, strict=True):
        assert reason in row.reason
    assert split.bad[0].file == str(path)


@pytest.mark.parametrize(
    ("bad", "total", "stops"), [(1, 100, False), (2, 100, True), (10, 1000, False), (11, 1000, True)]
)
def test_stops_above_one_percent_of_bad_rows(tmp_path, bad, total, stops):
    rows = [[i, f"id{i}", f"text {i}", "" if i < bad else 1] for i in range(total)]
    write_rows(tmp_path / "ids-cfimdb-dev.csv", HEADER, rows)
    if stops:
        with pytest.raises(
            InputError, match=rf"{bad} of {total} rows cannot be used, the first on line 2 .*--skip_bad_rows"
        ):
            Sentiment("cfimdb", tmp_path).read("dev")
    assert len(Sentiment("cfimdb", tmp_path, skip_bad_rows=True).read("dev").ids) == total - bad


def test_a_file_without_a_usable_row_is_refused(tmp_path):
    write_rows(tmp_path / "ids-sst-train.csv", HEADER, [[0, "a", "text", ""]])
    with pytest.raises(InputError, match="no row"):
        Sentiment("sst", tmp_path, skip_bad_rows=True).read("train")


def test_test_rows_are_never_left_out(tmp_path):
    rows = [[0, "a", "text", 1], [1, "b", "", 9], [2, "b", " ", ""], [3, "", "x", "x"]]
    write_rows(tmp_path / "ids-sst-test-student.csv", HEADER, rows)
    split = Sentiment("sst", tmp_path).read("test")
    assert split.ids == ["a", "b", "b", ""]
    assert split.texts == ["text", "", "", "x"]
    assert split.labels == [1, None, None, None]
    assert not split.bad


@given(st.integers(1, 200), st.integers(1, 250))
def test_a_sample_is_some_of_the_rows_in_order(rows, count):
    drawn = sample(rows, count)
    assert drawn == sorted(set(drawn)) == sample(rows, count)
    assert len(drawn) == min(rows, count)
    assert set(drawn) <= set(range(rows)) == set(sample(rows, None))


def test_a_sample_of_a_sorted_file_has_all_classes():
    labels = [0] * 500 + [1] * 500
    assert 60 < sum(labels[i] for i in sample(1000, 200)) < 140


def test_prediction_files_are_the_courses(tmp_path):
    write_predictions(tmp_path / "new" / "out.csv", "Predicted_Sentiment", ["x1", "y2"], np.array([3, 0]))
    assert (tmp_path / "new" / "out.csv").read_bytes() == b"id \t Predicted_Sentiment \nx1, 3 \ny2, 0 \n"


def test_scores_are_scikit_learns():
    logits = np.array([[5, 0, 0, 0, 0], [0, 5, 0, 0, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 5]], dtype=np.float32)
    scores = score(logits, [0, 1, 1, 4])
    right, wrong = np.log(np.exp(5) + 4) - 5, np.log(np.exp(5) + 4)
    assert scores["loss"] == pytest.approx((3 * right + wrong) / 4, rel=1e-6)
    assert scores["acc"] == 0.75
    assert scores["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_scores_where_a_class_does_not_occur():
    assert score(np.eye(5, dtype=np.float32)[:1], [0])["acc"] == 1


def test_baselines():
    texts = ["good fun", "good fun too", "bad bore", "bad bore again", "good fun"]
    baselines = fit_baselines(texts, [1, 1, 0, 0, 1])
    assert baselines["majority class"].predict(["bad bore"]).tolist() == [1]
    assert baselines["TF-IDF + logistic regression"].predict(["bad bore", "good fun"]).tolist() == [0, 1]
    assert list(fit_baselines(texts, [1] * 5)) == ["majority class"]


def test_refusal_counts_against_the_whole_file():
    refuse_if_too_many([], 0, skip_bad_rows=False)


@needs_shared_data
@pytest.mark.parametrize(
    ("dataset", "sizes", "classes"), [("sst", (8544, 1101, 2210), 5), ("cfimdb", (1707, 245, 488), 2)]
)
def test_the_real_files(dataset, sizes, classes):
    task = Sentiment(dataset, SHARED / "data")
    splits = [task.read(name) for name in ("train", "dev", "test")]
    assert tuple(len(split.ids) for split in splits) == sizes
    assert not any(split.bad for split in splits)
    assert set(splits[0].labels) == set(range(classes)) == set(splits[1].labels)
    assert set(splits[2].labels) == {None}
    assert all(text for split in splits for text in split.texts)
    assert all(len(set(split.ids)) == len(split.ids) for split in splits)
