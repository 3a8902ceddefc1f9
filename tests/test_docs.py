"""docs/configuration.md says what the options really are, and the other documents name only what
there is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from server.app import create_app
from server.options import OPTIONS, markdown_table
from tests.server.small_app import small_state

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# Wherever it stands: in backticks, in a diagram, in the tree.
_PATH = re.compile(
    r"(?<![\w./-])(?:(?:\.ci|docs|engine|loadtest|protocol|server|tests)/[\w./-]*"
    r"|Makefile|pyproject\.toml|LICENSE|[A-Z]+\.md)"
)
_LINK = re.compile(r"\]\(([^)#]+)")
_ENDPOINT = re.compile(r"^\| `([A-Z]+) (/\S*)` \|", re.MULTILINE)


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


def test_the_readme_lists_every_endpoint() -> None:
    documented = _ENDPOINT.findall(README.read_text(encoding="utf-8"))
    assert len(documented) == len(set(documented))
    assert set(documented) == set(real_endpoints())


def real_endpoints() -> Iterator[tuple[str, str]]:
    """Method and path of all that answers, the description of the API itself included."""
    app = create_app(small_state())
    for path, operations in app.openapi()["paths"].items():
        yield from ((method.upper(), path) for method in operations)
    for route in app.routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {ROOT / match.rstrip(".") for match in _PATH.findall(text)}
    linked = {document.parent / link for link in _LINK.findall(text) if "://" not in link}
    assert sorted(str(path) for path in named | linked if not path.exists()) == []
