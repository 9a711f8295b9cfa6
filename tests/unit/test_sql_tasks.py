"""JDBC tasks, as far as no database is needed."""

import pytest

from cluster.node.executors.sql_connections import connector, numbered
from cluster.node.executors.sql_task import open_databases


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("a = ? AND b=?", "a = $1 AND b=$2"),
        ("'?' || ? || 'it''s ?'", "'?' || $1 || 'it''s ?'"),
        ('"a?" = ?', '"a?" = $1'),
        ("E'\\'?' = ?", "E'\\'?' = $1"),
        ("'\\' = ?", "'\\' = $1"),
        ("? -- what?\n, ?", "$1 -- what?\n, $2"),
        ("/* ? /* ? */ ? */ ?", "/* ? /* ? */ ? */ $1"),
        ("$$ ? $$, ?", "$$ ? $$, $1"),
        ("$tag$ ? $$ ? $tag$, ?", "$tag$ ? $$ ? $tag$, $1"),
        ("doc ?? 'key' AND id = ?", "doc ? 'key' AND id = $1"),
        ("'never closed ?", "'never closed ?"),
        ("/* never closed ?", "/* never closed ?"),
        ("a = '50%' AND b = ?", "a = '50%' AND b = $1"),
    ],
)
def test_question_marks_become_numbers_outside_of_literals(statement: str, expected: str) -> None:
    assert numbered(statement) == expected


def test_several_databases_stand_in_one_setting() -> None:
    text = "a=sqlite:////tmp/a.db  b=postgresql://u:p@h/db\nc=mysql://u@h/db"
    assert list(open_databases(text, time_limit_ms=1000)) == ["a", "b", "c"]
    assert open_databases("", time_limit_ms=1000) == {}


@pytest.mark.parametrize("text", ["x", "x=", "=sqlite:///a", "a=oracle://u:hush@h/db"])
def test_what_is_no_database_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        open_databases(text, time_limit_ms=1000)
    assert "hush" not in str(refused.value)


def test_a_path_of_sqlite_is_absolute() -> None:
    with pytest.raises(ValueError):
        connector("sqlite://notes.db", time_limit_ms=1000)
