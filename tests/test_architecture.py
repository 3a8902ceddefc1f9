"""The import directions, and that nothing the server imports needs torch.

protocol imports nothing of ours; engine only itself; server imports protocol and the torch-free
files of engine. Imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "loadtest", "protocol", "server", "tests")
THIRD_PARTY = {
    "protocol": {"jinja2", "markupsafe", "msgspec", "pydantic", "pydantic_core"}
    | {"sentencepiece", "tiktoken", "tokenizers"},
    "engine": {"gguf", "llguidance", "msgspec", "numpy", "redis"} | {"safetensors", "torch", "zmq"},
}
OURS = {
    "protocol": {"protocol"},
    "engine": {"engine"},
    "server": {"server", "protocol", "engine"},
}
ENGINE_FOR_THE_SERVER = {
    *("engine.checkpoint", "engine.client", "engine.config", "engine.errors", "engine.fake"),
    *("engine.gguf", "engine.ipc", "engine.journal", "engine.messages", "engine.quantize_job"),
    *("engine.queue", "engine.redis_queue.names", "engine.tokenizer_files"),
}
WITHOUT_TORCH = (
    *sorted(ENGINE_FOR_THE_SERVER),
    *("engine.block_manager", "engine.scheduler", "engine.sequence"),
    *("engine.core", "engine.grammar_compiler", "engine.grammar_process"),
    *("loadtest.frontend", "server.app", "server.cli", "server.worker"),
)


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Every module a file imports, `from a import b` as a.b too: b may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            if (ROOT / node.module.replace(".", "/")).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", OURS)
def test_import_directions(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules_of(package)
        for module in imports_of(path)
        if (top := module.partition(".")[0]) in PACKAGES and top not in OURS[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_third_party_packages(package: str) -> None:
    allowed = THIRD_PARTY[package] | OURS[package] | sys.stdlib_module_names
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules_of(package)
        for module in imports_of(path)
        if module.partition(".")[0] not in allowed
    }
    assert wrong == set()


def test_server_imports_only_the_engines_public_files() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules_of("server")
        for module in imports_of(path)
        if module.partition(".")[0] == "engine" and not is_for_the_server(module)
    }
    assert wrong == set()


def is_for_the_server(module: str) -> bool:
    # "from engine import messages" yields "engine" as well, which is an empty file
    return module == "engine" or any(
        module == allowed or module.startswith(allowed + ".") for allowed in ENGINE_FOR_THE_SERVER
    )


def test_package_files_are_empty() -> None:
    """Or importing one torch-free file would import the whole package."""
    files = [
        path for package in ("engine", "server") for path in (ROOT / package).glob("__init__.py")
    ]
    assert [path.read_text() for path in files] == ["", ""]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        f"import {module}\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
