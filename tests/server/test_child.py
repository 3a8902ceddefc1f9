"""What children write: read to its end whatever it is, or the child would wait for ever."""

import asyncio
import sys

import pytest

from server.child import Child, ChildCommand

MANY = 3 << 20  # far above what one line may have


def command(code: str, lines: list[str]) -> ChildCommand:
    return ChildCommand("a child", (sys.executable, "-c", code), b"{}", on_line=lines.append)


async def run(code: str) -> tuple[str, list[str]]:
    lines: list[str] = []
    child = await Child.start(command(code, lines))
    return await asyncio.wait_for(child.wait(), 60), lines


async def test_a_line_that_is_too_long_comes_in_pieces(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        f"import sys; print('a' * {MANY}); print('b'); "
        f"sys.stderr.write('c' * {MANY} + '\\nerror: it is over\\n')"
    )
    how, lines = await run(code)
    assert how == "it is over"
    assert "".join(lines) == "a" * MANY + "b" and lines[-1] == "b"
    assert capfd.readouterr().err == "c" * MANY + "\n"


@pytest.mark.parametrize(
    "written", [b"\xff\xfe\n", b"\x00\n", b"no end", b"\n\n", b"\r\n"], ids=repr
)
async def test_what_is_no_text(written: bytes) -> None:
    how, lines = await run(f"import os; os.write(1, {written!r})")
    assert how == "a child ended with exit status 0"
    assert lines == written.decode(errors="replace").rstrip("\n").split("\n") or not any(lines)


async def test_lines_come_as_they_are_written() -> None:
    _, lines = await run("print('a'); print(); print('b', end='')")
    assert lines == ["a", "", "b"]
