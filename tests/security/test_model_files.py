"""Model files made to run code, to read what is not theirs, or to fill the memory."""

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch

from engine.bin_files import BinFiles
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.safetensors_files import SafetensorsFiles
from engine.shards import shard_paths
from protocol.prompt import ChatTemplate, TemplateError
from tests.server.small_app import byte_tokenizer

MESSAGES = [{"role": "user", "content": "x"}]
MIB = 1 << 20
LITTLE_BYTES = 256 * MIB


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What is refused must not have been made first."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + LITTLE_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('__cla' ~ 'ss__') }}",
    "{{ messages.__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages.clear() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ ('%s' * 10**8) }}",
    "{{ 'a' * 10**12 }}",
    "{{ [0] * 10**12 }}",
    "{{ 10**10**10 }}",
    "{{ range(10**9)|list }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '%9999999999d'|format(1) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ ('x'|indent(10**10, true)) }}",
    "{{ [1]|tojson(indent=10**10) }}",
    "{{ 'a\\tb'.expandtabs(10**10) }}",
    "{{ lipsum(n=10**6) }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ url_for }}{{ config.x.y }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ (1).__class__.__base__ }}",
    "{{ messages|sum(start='') }}{{ a.b.c }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{{ m().x.y }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
)


@pytest.mark.parametrize("source", ESCAPES, ids=lambda source: source[:50])
def test_a_template_cannot_leave_its_sandbox_or_fill_the_memory(
    source: str, little_memory: None
) -> None:
    before = [dict(message) for message in MESSAGES]
    try:
        text = ChatTemplate(source, byte_tokenizer()).render(MESSAGES)
    except (TemplateError, jinja2.TemplateError):
        pass
    else:
        assert len(text) < 1 << 20
        assert "class" not in text and "module" not in text and "object at" not in text
    assert before == MESSAGES


NAMES = (
    *("../other.safetensors", "/etc/passwd", "a/../../b", "a/b.safetensors", "..", ".", ""),
    *("a\x00.safetensors", "\\\\host\\share", "~/x", "x" * 5000, "../" * 100 + "etc/passwd"),
)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:30]))
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    opened = SafetensorsFiles if kind == "model.safetensors" else BinFiles
    with pytest.raises(CheckpointError):
        opened.open(folder)


def test_links_are_followed_as_the_hub_s_cache_needs(tmp_path: Path) -> None:
    """The hub's own tools make folders of links. What is linked to must still be weights."""
    (tmp_path / "model.safetensors").symlink_to("/etc/passwd")
    assert shard_paths(tmp_path, "model.safetensors", "*.safetensors")
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        SafetensorsFiles.open(tmp_path)


def test_a_device_is_no_model(tmp_path: Path) -> None:
    link = tmp_path / "m.gguf"
    link.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError):
        Checkpoint.open(link)


class Payload:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


PAYLOADS = {
    "a function of os": (os.mkdir, "exploded"),
    "eval": (eval, "__import__('os').mkdir('exploded')"),
    "exec": (exec, "import os; os.mkdir('exploded')"),
    "getattr": (getattr, "a", "upper"),
    "another pickle": (pickle.loads, pickle.dumps(1)),
    "torch.load": (torch.load, "x"),
    "a class": (io.FileIO, "exploded", "w"),
}


@pytest.mark.parametrize("call", PAYLOADS.values(), ids=PAYLOADS.keys())
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, ...], is_archive: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"a": torch.ones(2), "b": Payload(*call)},
        tmp_path / "pytorch_model.bin",
        pickle_protocol=4 if not is_archive else 2,
        _use_new_zipfile_serialization=is_archive,
    )
    with pytest.raises(CheckpointError):
        BinFiles.open(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_an_archive_that_unpacks_to_more_than_there_is(
    tmp_path: Path, entry: str, little_memory: None
) -> None:
    good = tmp_path / "good.bin"
    torch.save({"a": torch.ones(1000)}, good)
    path = tmp_path / "pytorch_model.bin"
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            if not name.endswith(f"/{entry}"):
                bomb.writestr(name, source.read(name))
                continue
            with bomb.open(name, "w", force_zip64=True) as file:
                for _ in range(2 * LITTLE_BYTES // MIB):
                    file.write(bytes(MIB))
    assert path.stat().st_size < MIB
    with pytest.raises(CheckpointError, match="is compressed"):
        BinFiles.open(tmp_path)
