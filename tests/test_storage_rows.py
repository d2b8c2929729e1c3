"""One reader a format: rows hold what stands in the file, and what cannot be kept is refused by file and row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from statewise.errors import UsageError
from statewise.storage.rows import read_rows

MARK = "\ufeff"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values_of(path, file_format="json", **options):
    return [row.values for row in read_rows(path, file_format, options)]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_text_may_hold_what_python_takes_for_a_line_break(tmp_path, letter):
    # JSON asks for the escape of control characters only.
    rows = [{"a": f"x{letter}y", "n": 1}, {"a": "z", "n": 2}]
    lines = "\n".join(json.dumps(row, ensure_ascii=letter < " ") for row in rows)
    assert values_of(write(tmp_path, "a.jsonl", lines)) == rows
    assert values_of(write(tmp_path, "a.csv", f"a,n\nx{letter}y,1\nz,2\n"), "csv") == rows
    assert values_of(write(tmp_path, "a.txt", f"x{letter}y\nz\n"), "text") == [{"text": f"x{letter}y"}, {"text": "z"}]


@pytest.mark.parametrize(
    ("name", "text"), [("json", '{"a": "b"}\r\n\r\n'), ("json", '[{"a": "b"}]'), ("csv", "a\r\nb\r\n\r\n")]
)
def test_a_byte_order_mark_line_ends_of_windows_and_blank_lines_are_passed_over(tmp_path, name, text):
    assert values_of(write(tmp_path, "a", MARK + text), name) == [{"a": "b"}]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["007", "1"], ["007", "1"]),
        (["1.50", "2.0"], ["1.50", "2.0"]),
        (["1", "2.5"], ["1", "2.5"]),
        (["1e5", "2"], ["1e5", "2"]),
        (["NA", "nan"], ["NA", "nan"]),
        (["null", "None"], ["null", "None"]),
        (["2024-01-02", "2024-01-03"], ["2024-01-02", "2024-01-03"]),
        (["true", "false"], ["true", "false"]),
        (["36893488147419103232", "1"], ["36893488147419103232", "1"]),
        ([" 1", "2 "], [" 1", "2 "]),
        (["1,000", "2"], ["1,000", "2"]),
        (["-3", "40"], [-3, 40]),
        (["0.5", "-2.0"], [0.5, -2.0]),
        (["True", "False"], [True, False]),
        (["3", ""], [3, None]),
    ],
)
def test_a_csv_cell_prints_as_it_stands_in_the_file(tmp_path, cells, expected):
    lines = "".join(f'"{cell}",x\n' for cell in cells)
    read = [row["a"] for row in values_of(write(tmp_path, "a.csv", "a,b\n" + lines), "csv")]
    assert [(type(value), value) for value in read] == [(type(value), value) for value in expected]
    assert [str(value) for value, cell in zip(read, cells, strict=True) if cell] == [cell for cell in cells if cell]


def test_a_cell_in_quotes_may_hold_lines_commas_and_quotes_and_any_length(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path, "a.csv", f'a,b\n"1\n2, ""3""",x\n{long},y\n')
    (first, second) = read_rows(path, "csv")
    assert first.values == {"a": '1\n2, "3"', "b": "x"}
    assert (second.values["a"], second.place, second.number) == (long, f"{path}:4", 4)


def test_options_say_what_separates_cells_and_what_a_file_without_a_header_has(tmp_path):
    path = write(tmp_path, "a.tsv", "1,2\tx\n")
    assert values_of(path, "csv", delimiter="\t", column_names=["a", "b"]) == [{"a": "1,2", "b": "x"}]
    assert values_of(path, "csv", sep="\t", column_names=["a", "b"]) == [{"a": "1,2", "b": "x"}]
    path = write(tmp_path, "a.json", json.dumps({"data": [{"a": 1}], "version": 2}))
    assert values_of(path, field="data") == [{"a": 1}]


@pytest.mark.parametrize(
    ("file_format", "content", "told"),
    [
        ("json", "", "a: holds no rows"),
        ("csv", "", "a: holds no rows"),
        ("csv", "a,b\n", "a: holds no rows"),
        ("text", "\n\n", "a: holds no rows"),
        ("json", b'{"a": 1}\n{"a": "\xe9"}\n', "a:2: not UTF-8 text"),
        ("csv", b"a\nb\n\xe9\n", "a:3: not UTF-8 text"),
        ("text", b"a\n\xe9\n", "a:2: not UTF-8 text"),
        ("json", '{"a": 1}\n{"a": 1\n', "a:2: not valid JSON"),
        ("json", '{\n "a": 1\n}\n', r"a:1: not valid JSON.*one object a line"),
        ("json", '[{"a": 1},\n {"a" 2}]', "a: not valid JSON.* line 2"),
        ("json", '[{"a": 1}, 5]', "a, row 2: expected one JSON object, got int"),
        ("json", '{"a": 1}\n{"a": 1, "a": 2}\n', "a:2: not valid JSON: the key 'a' stands there twice"),
        ("json", '{"a": {"b": 1, "b": 2}}\n', "a:1: .* the key 'b' stands there twice"),
        ("json", '{"a": NaN}\n', "a:1: not valid JSON: NaN is no JSON number"),
        ("json", '{"a": 1e999}\n', "a:1: column 'a' holds inf, which is no finite number"),
        ("json", '{"a": 1}\n{"a": 36893488147419103232}\n', "a:2: column 'a' holds 36893488147419103232.*64 bits"),
        ("json", '{"a": [{"b": 9223372036854775808}]}\n', "a:1: column 'a' holds .*64 bits"),
        ("json", '{"a": ' + "9" * 5000 + "}\n", "a:1: not valid JSON"),
        ("json", '{"a": 1}\n{"a": "x\\ud800"}\n', "a:2: column 'a' holds half a character"),
        ("json", '{"a": {"x\\udc00": 1}}\n', "a:1: column 'a' holds half a character"),
        ("json", '{"a": ' + "[" * 60 + "]" * 60 + "}\n", "a:1: column 'a' is nested more than"),
        ("json", '{"a": ' + "[" * 9999 + "]" * 9999 + "}\n", "a:1: not valid JSON"),
        ("csv", "a,b\n1,2\n1,2,3\n", "a:3: 3 cells, but 2 columns"),
        ("csv", 'a,b\n"1\n1",2\n1\n', "a:4: 1 cells, but 2 columns"),
        ("csv", "a,b,a\n1,2,3\n", "a: column 'a' stands twice"),
        ("csv", 'a,b\n1,2\n1,"2\n1,2\n', "a:3: not valid CSV: unexpected end of data"),
        ("csv", 'a,b\n"1"1,2\n', "a:2: not valid CSV"),
        ("parquet", "a,b\n", "a: not a Parquet file"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused_by_file_and_line(tmp_path, file_format, content, told):
    with pytest.raises(UsageError, match=rf"/{told}"):
        read_rows(write(tmp_path, "a", content), file_format)


@pytest.mark.parametrize("file_format", ["json", "csv", "parquet", "text"])
def test_a_file_that_is_not_there_or_a_folder_and_an_unknown_option_are_refused(tmp_path, file_format):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=r"cannot be read|can be read"):
            read_rows(path, file_format)
    with pytest.raises(UsageError, match=rf"option 'skiprows' of dataset_kwargs is not known for {file_format}"):
        read_rows(write(tmp_path, "a", "a\nb\n"), file_format, {"skiprows": 1})


def test_parquet_keeps_its_values_and_a_nan_of_pandas_is_no_value(tmp_path):
    folder = tmp_path / "part=1 [x]"  # a reader of partitions would make a column of it
    folder.mkdir()
    table = pa.table({"a": ["x", None], "b": [float("nan"), 0.5], "c": [[1, 2], []]})
    pq.write_table(table, folder / "a.parquet")
    first, second = read_rows(folder / "a.parquet", "parquet")
    assert first.values == {"a": "x", "b": None, "c": [1, 2]}
    assert second.values == {"a": None, "b": 0.5, "c": []}
    assert second.place.endswith("a.parquet, row 2")
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(UsageError, match=r"twice\.parquet: two columns have one name"):
        read_rows(tmp_path / "twice.parquet", "parquet")
