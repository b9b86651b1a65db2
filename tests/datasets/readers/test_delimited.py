"""csv and tsv as the world writes them."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.rows import open_rows
from mmgpt.datasets.readers.table_config import TableConfig

CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        '"',
        '""',
        'a "b',
        "x\ny",
        "x\r\ny",
        "\r",
        "\u2028",
        "\u0085",
        "\x0b",
        "\x0c",
        "\x1c",
        "\ufeff",
        ",",
        "\t",
        "nan",
        " ",
    ]
)
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=6))


def read(root, **options):
    return open_source(build(TableConfig, {"reader": "table", **options}, "table"), root)


def answers(source) -> list[str]:
    return [source[n].messages[-1].text for n in range(len(source))]


def put(root, name: str, text: str | bytes):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def rows_of(root, name: str, text: str | bytes, **options) -> list[list[str]]:
    return [list(row.values()) for row in open_rows([put(root, name, text)], **options)]


@given(table=TABLES, suffix=st.sampled_from(["csv", "tsv"]), mark=st.booleans(), is_all=st.booleans())
def test_any_table_of_the_csv_writer_is_read_back_as_it_was(table, suffix, mark, is_all, tmp_path_factory):
    header = ["a", "b", "c", "d"][: len(table[0]) if table else 1]
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if is_all else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter="," if suffix == "csv" else "\t", quoting=quoting).writerows([header, *table])
    payload = ("\ufeff" if mark else "") + text.getvalue()
    is_quoted = True if suffix == "tsv" else None
    root = tmp_path_factory.mktemp("table")
    assert rows_of(root, f"rows.{suffix}", payload, is_quoted=is_quoted) == table


@given(
    table=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n")), min_size=2, max_size=2)
    ),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_tsv_without_quotes_is_its_lines_and_tabs_whatever_stands_between(table, end, tmp_path_factory):
    table = [[a, b.rstrip("\r")] for a, b in table]
    payload = end.join("\t".join(row) for row in [["a", "b"], *table]) + end
    assert rows_of(tmp_path_factory.mktemp("table"), "rows.tsv", payload) == table


STRAY = 'path\tsentence\na\t"Is it safe?" he said.\nb\tplain\nc\t"open\nd\tswallowed\ne\tclosing" here\nf\tlast\n'


def test_every_line_of_a_tsv_is_a_row_and_its_quotes_are_text(tmp_path):
    put(tmp_path, "cv.tsv", STRAY)
    source = read(tmp_path, path="cv.tsv", prompt="{path}", answer="{sentence}")
    assert answers(source) == ['"Is it safe?" he said.', "plain", '"open', "swallowed", 'closing" here', "last"]
    with pytest.raises(UserError, match=r"cv.tsv: not a readable tsv table .*begins on line 2"):
        read(tmp_path, path="cv.tsv", prompt="{path}", answer="{sentence}", is_quoted=True)


def test_the_quoted_fields_of_a_tsv_are_read_where_the_config_says_so(tmp_path):
    put(tmp_path, "bench.tsv", 'q\ta\n"one\ntwo"\t"say ""x"""\n')
    (sample,) = (read(tmp_path, path="bench.tsv", prompt="{q}", answer="{a}", is_quoted=True)[n] for n in range(1))
    assert [message.text for message in sample.messages] == ["one\ntwo", 'say "x"']
    with pytest.raises(UserError, match=r"line 2: 1, not 2\); if its fields are quoted, set is_quoted: true"):
        read(tmp_path, path="bench.tsv", prompt="{q}", answer="{a}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('q,a\n1?,red\n2?,"open\n3?,blue\n4?,"more\n', r"row that begins on line 3 .*noticed on line 5"),
        ('q,a\n1?,red\n2?,"open\n3?,blue\n', r"row that begins on line 3 .*noticed on line 4"),
        ('q,a\n1?,"red" one\n', r"row that begins on line 2"),
        ('q,a\n"1"?,red\n', r"row that begins on line 2"),
        ("q,a\n1?,red\n2?\n", r"row 1 has more or fewer fields than the header \(line 3: 1, not 2\)"),
        ('q,a\n"1\n?",red\n2?,blue,green\n', r"row 1 has .* \(line 4: 3, not 2\)"),
        ("q,a,a\n1?,red,WRONG\n", r"two columns are called 'a'; give each a name of its own"),
        ("q,a, a \n1?,red,WRONG\n", r"two columns are called 'a'"),
        (",q,a,\n0,1?,red,x\n", r"two columns are called ''"),
        ("q,a\n1?,x\ry\n", r"row that begins on line 2 has a quote or a line end where none belongs"),
        (b"q,a\n" + b"1?,caf\xe9\n", r"not a UTF-8 text file \(line 2: "),
        ("q,a\n1?,red\n".encode("utf-16"), r"not a UTF-8 text file \(it is UTF-16\); save it as UTF-8"),
        ("q,a\n1?,red\n".encode("utf-16-le"), r"not a UTF-8 text file \(it looks like UTF-16\)"),
        ("q,a\n1?,red\n".encode("utf-32"), r"not a UTF-8 text file \(it is UTF-32\)"),
        (b"\x1f\x8b\x08\x00", r"it is compressed by gzip\); unpack it by gunzip"),
        (b"PK\x03\x04", r"it is a zip or a spreadsheet"),
        (b"version https://git-lfs.github.com/spec/v1\noid", r"it is a pointer of Git LFS.*; run git lfs pull"),
        ("", r"holds no samples"),
        ("q,a\n", r"holds no samples"),
    ],
)
def test_a_csv_that_would_be_read_wrongly_is_refused_with_its_line(text, told, tmp_path):
    put(tmp_path, "rows.csv", text)
    with pytest.raises(UserError, match=rf"rows.csv: .*{told}|rows.csv: {told}"):
        read(tmp_path, path="rows.csv", prompt="{q}", answer="{a}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "\ufeffq,a\r\n1?,red\r\n2?,blue\r\n"),
        ("rows.csv", "\ufeff\ufeffq,a\n1?,red\n2?,blue"),
        ("rows.csv", '\ufeff"q","a"\n1?,red\n\n2?,blue\n\n\n'),
        ("rows.csv", " q , a\n1?,red\n2?,blue\n"),
        ("rows.csv", "q,a,,\n1?,red,,\n2?,blue, ,\n"),  # what a spreadsheet leaves at the right
        ("rows.csv", "q,a\r1?,red\r2?,blue\r"),  # an old Mac's
        ("ROWS.CSV", "q,a\n1?,red\n2?,blue\n"),
        ("Rows.Tsv", "\ufeffq\ta\r\n1?\tred\r\n2?\tblue"),
        ("rows.tsv", "q\ta\r1?\tred\r2?\tblue"),
        ("rows.tsv", "q\ta\n1?\tred\n\n   \n2?\tblue\n\n"),
    ],
)
def test_marks_line_ends_and_empty_edges_change_nothing(name, text, tmp_path):
    put(tmp_path, name, text)
    source = read(tmp_path, path=name, prompt="{q}", answer="{a}")
    assert [source[n].messages[0].text for n in range(2)] == ["1?", "2?"]
    assert answers(source) == ["red", "blue"]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x00"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.txt"])
def test_signs_that_end_lines_elsewhere_stand_inside_a_field(sign, name, tmp_path):
    lines = {"csv": ["q,a", f"1?,x{sign}y"], "tsv": ["q\ta", f"1?\tx{sign}y"], "txt": [f"1?\tx{sign}y"]}
    spelt = sign if ord(sign) > 0x1F else f"\\u{ord(sign):04x}"
    kind = name.partition(".")[2]
    put(tmp_path, name, "\n".join(lines.get(kind, [f'{{"q": "1?", "a": "x{spelt}y"}}'] * 2)) + "\n")
    columns = {"columns": ["q", "a"]} if kind == "txt" else {}
    assert answers(read(tmp_path, path=name, prompt="{q}", answer="{a}", **columns))[0] == f"x{sign}y"


def test_an_unnamed_column_with_values_is_a_column_like_any_other(tmp_path):
    put(tmp_path, "pandas.csv", ",q,a\n0,1?,red\n")
    with pytest.raises(UserError, match=r"pandas.csv: nothing reads ''; .*write ignore: \[\"\"\]"):
        read(tmp_path, path="pandas.csv", prompt="{q}", answer="{a}")
    assert answers(read(tmp_path, path="pandas.csv", prompt="{q}", answer="{a}", ignore=[""])) == ["red"]
