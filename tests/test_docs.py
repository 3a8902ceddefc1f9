"""docs/configuration.md says what the options really are."""

from pathlib import Path

from server.options import OPTIONS, markdown_table

CONFIGURATION = Path(__file__).parent.parent / "docs" / "configuration.md"


def documented_rows() -> dict[str, str]:
    lines = CONFIGURATION.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `") and "`--" in line}


def test_every_option_is_documented_with_its_default() -> None:
    rows = documented_rows()
    expected = {line.split("`")[1]: line for line in markdown_table().splitlines()[2:]}
    assert rows == expected, f"the table of docs/configuration.md must be\n{markdown_table()}"


def test_the_table_holds_each_default_and_variable() -> None:
    rows = documented_rows()
    assert list(rows) == [option.name for option in OPTIONS]
    assert "| `8000` |" in rows["port"]
    assert "QWEN_SERVE_KV_CACHE_MEMORY" in rows["kv_cache_memory"]
