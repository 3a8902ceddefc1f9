"""The comparison without servers, against programs that answer at once."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest.machine import Machine
from loadtest.offline import Cell, Contender, LlamaCpp, Worker, compare, contender
from loadtest.processes import tree
from loadtest.report import Report, ServerReport

WORKER = """
import json, sys
print("a library says hello")
print('result {"ready": true}', flush=True)
for line in sys.stdin:
    cell = json.loads(line)
    print("noise")
    if cell["num_streams"] == 13:
        raise SystemExit
    print('result {"tokens_per_s": %d}' % (100 + cell["num_streams"]), flush=True)
"""
LLAMA = """
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given.get("-p") == "13":
    sys.exit("no such prompt")
if "-npl" in given:
    print("some words first")
    print(json.dumps({"speed_pp": 1.0, "speed_tg": float(given["-npl"]) + int(given["-c"])}))
else:
    print(json.dumps([{"avg_ts": float(given["-p"])}]))
"""


def worker(name: str, *, has_decode: bool = True) -> Worker:
    about = ServerReport(name=name, command=[sys.executable, "-c", WORKER])
    return Worker(about, has_decode=has_decode)


def llama(folder: Path) -> LlamaCpp:
    for name in ("llama-bench", "llama-batched-bench", "llama-server"):
        program = "print('version: 8')" if name == "llama-server" else LLAMA
        (folder / f"{name}.py").write_text(program)
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/{name}.py" "$@"')
        (folder / name).chmod(0o755)
    return LlamaCpp("llama.cpp", folder, "m.gguf", 2)


def report(contenders: Sequence[Contender]) -> Report:
    return Report(
        title="",
        machine=Machine.here(),
        seed=0,
        workloads={},
        servers=[one.about for one in contenders],
    )


def test_a_worker_answers_and_ends() -> None:
    one = worker("ours")
    (pid,) = one.pids
    assert one.tokens_per_s(Cell(num_prompt_tokens=512)) == 100
    assert one.tokens_per_s(Cell(num_prompt_tokens=128, num_streams=8)) == 108
    one.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_without_decode() -> None:
    one = worker("transformers", has_decode=False)
    assert one.tokens_per_s(Cell(num_prompt_tokens=128, num_streams=8)) is None
    assert one.tokens_per_s(Cell(num_prompt_tokens=128)) == 100
    one.close()


def test_a_worker_that_ends() -> None:
    one = worker("ours")
    with pytest.raises(RuntimeError, match="ours ended"):
        one.tokens_per_s(Cell(num_prompt_tokens=128, num_streams=13))
    one.close()
    with pytest.raises(RuntimeError, match="gone ended"):
        Worker(ServerReport(name="gone", command=[sys.executable, "-c", ""]))


def test_the_programs_of_llama_cpp(tmp_path: Path) -> None:
    one = llama(tmp_path)
    assert one.about.version == "version: 8"
    assert one.tokens_per_s(Cell(num_prompt_tokens=512)) == 512
    decode = Cell(num_prompt_tokens=128, num_streams=8, num_steps=64)
    assert one.tokens_per_s(decode) == 8 + 8 * (128 + 64)
    with pytest.raises(RuntimeError, match="no such prompt"):
        one.tokens_per_s(Cell(num_prompt_tokens=13))


def test_engines_take_turns(tmp_path: Path) -> None:
    contenders: list[Contender] = [
        worker("ours"),
        llama(tmp_path),
        worker("prefill-only", has_decode=False),
    ]
    cells = [Cell(num_prompt_tokens=512), Cell(num_prompt_tokens=128, num_streams=8)]
    result = report(contenders)
    compare(contenders, cells, 2, result, tmp_path / "out.json")
    assert all(tree(pid) for one in contenders for pid in one.pids)
    for one in contenders:
        one.close()
    order = [(run.round, run.workload, run.server) for run in result.runs]
    assert order == [
        *((0, "prefill-512", name) for name in ("llama.cpp", "prefill-only", "ours")),
        *((0, "decode-8", name) for name in ("llama.cpp", "ours")),
        *((1, "prefill-512", name) for name in ("prefill-only", "ours", "llama.cpp")),
        *((1, "decode-8", name) for name in ("ours", "llama.cpp")),
    ]
    rows = {(row.workload, row.server): row for row in result.summary}
    assert rows["prefill-512", "llama.cpp"].ratio == 100 / 512
    assert rows["decode-8", "ours"].metric == "output_tokens_per_s"
    saved = json.loads((tmp_path / "out.json").read_text())
    assert len(saved["runs"]) == len(result.runs)


@pytest.mark.parametrize(
    ("name", "hub_model", "message"),
    [
        ("tgi", "", "tgi does not begin with llama.cpp, vllm, transformers, qwen-serve"),
        ("vllm", "", "give --hub-model"),
        ("transformers", "/no/such/folder", "give --hub-model"),
    ],
)
def test_peers_that_cannot_be(name: str, hub_model: str, message: str) -> None:
    options = SimpleNamespace(model="m.gguf", hub_model=hub_model, threads=2, engine="{}")
    with pytest.raises(ValueError, match=message):
        contender(name, sys.executable, options)  # type: ignore[arg-type]
