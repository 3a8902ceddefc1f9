"""Memory in huge pages: what is handed out, and what Linux was asked for."""

import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine import huge_pages

PAGE = 2 << 20


def test_pieces_of_a_pool() -> None:
    """They start at cache lines, are as long as asked for, and overlap nowhere."""
    pool = huge_pages.Pool()
    sizes = [1, 64, 65, 1000, 40 << 20, 7, 20 << 20, 20 << 20, 0]
    pieces = [pool.take(size) for size in sizes]
    for i, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.dtype == torch.uint8 and piece.shape == (size,)
        assert piece.data_ptr() % 64 == 0
        piece.fill_(i)
    for i, piece in enumerate(pieces):
        assert bool((piece == i).all())


def test_threads_share_a_pool() -> None:
    """No two of them get the same memory."""
    pool = huge_pages.Pool()

    def take(number: int) -> list[torch.Tensor]:
        pieces = [pool.take(64 + i % 3) for i in range(300)]
        for piece in pieces:
            piece.fill_(number)
        return pieces

    with ThreadPoolExecutor(8) as threads:
        for number, pieces in enumerate(threads.map(take, range(8))):
            assert all(bool((piece == number).all()) for piece in pieces)


def _flags(address: int) -> list[str]:
    """Of the mapping that an address lies in."""
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first:
                start, end = (int(number, 16) for number in first.split("-"))
                inside = start <= address < end
            elif inside and first == "VmFlags:":
                return line.split()[1:]
    raise AssertionError(f"{address:#x} is not mapped")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux")
def test_whole_pages_are_asked_for() -> None:
    tensor = torch.empty(4 * PAGE, dtype=torch.uint8)
    assert huge_pages.advise(tensor) is tensor
    inner = -(-tensor.data_ptr() // PAGE) * PAGE
    assert "hg" in _flags(inner)
    assert "hg" in _flags(huge_pages.Pool().take(PAGE).data_ptr())


def test_less_than_a_page_stays_as_it_is() -> None:
    tensor = torch.arange(1000)
    assert torch.equal(huge_pages.advise(tensor), torch.arange(1000))
