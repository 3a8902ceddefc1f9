"""Model files, configuration files and the engine's journal with bytes changed: one clear error."""

import base64
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.bin_files import BinFiles
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.gguf import GgufFile
from engine.journal import Entry, Journal, read
from engine.safetensors_files import SafetensorsFiles
from protocol.errors import ApiError
from server.config import ServeConfig
from server.prompts import encode_messages
from server.served_model import ModelText, served_model
from server.settings import SettingsError, resolve
from tests.engine import tiny_models
from tests.fuzz.budget import budget, damaged
from tests.protocol.vocabularies import byte_level_small
from tests.server.small_app import small_state

SEEDS = st.integers(0, 2**32)
MORE_MEMORY = 4 << 30  # what no file here may need
TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content|trim + '<|im_end|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A length that a file claims must not be allocated before it is checked."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MORE_MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it, small."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write(tiny_models.build("qwen2", num_hidden_layers=1), folder)
    (folder / "tokenizer.json").write_text(byte_level_small().to_str())
    config = {
        "chat_template": TEMPLATE,
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {"300": {"content": "<|x|>", "special": True}},
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [1, 2], "temperature": 0.5, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def use(folder: Path) -> None:
    """All that the server makes of the files that describe a model."""
    checkpoint = Checkpoint.open(folder)
    text = ModelText.of(checkpoint)
    served = served_model(checkpoint, text, small_state().engine.info, ["m"])  # type: ignore[attr-defined]
    served.tokenizer.encode("Hi <|im_end|> é", parse_special=True)
    if served.chat_template is not None:
        try:
            encode_messages([], served)
        except ApiError as error:
            assert error.status == 400


def check(use_it: Callable[[], object]) -> None:
    try:
        use_it()
    except (CheckpointError, ConfigError) as error:
        assert str(error) and len(str(error)) < 5000


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@budget(80)
@given(seed=SEEDS)
def test_what_describes_a_model(model: Path, name: str, seed: int) -> None:
    good = (model / name).read_bytes()
    try:
        (model / name).write_bytes(damaged(good, seed))
        check(lambda: use(model))
    finally:
        (model / name).write_bytes(good)


def test_the_model_is_right(model: Path) -> None:
    use(model)


@budget(80)
@given(seed=SEEDS)
def test_chat_templates(model: Path, seed: int) -> None:
    path = model / "chat_template.jinja"
    try:
        path.write_bytes(damaged(TEMPLATE.encode(), seed))
        check(lambda: use(model))
    finally:
        path.unlink()


def write_safetensors(folder: Path) -> Path:
    weights = {"a.weight": torch.ones(4, 8), "b": torch.arange(6, dtype=torch.float16)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def write_bin(folder: Path) -> Path:
    torch.save({"a.weight": torch.ones(4, 8)}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def read_safetensors(folder: Path) -> None:
    files = SafetensorsFiles.open(folder)
    for name in files.shapes:
        files.read(name)


def read_bin(folder: Path) -> None:
    files = BinFiles.open(folder)
    for name in files.shapes:
        files.read(name).sum()


@pytest.mark.parametrize(
    ("write", "use_it"),
    [(write_safetensors, read_safetensors), (write_bin, read_bin)],
    ids=["safetensors", "bin"],
)
@budget(150)
@given(seed=SEEDS)
def test_weights(
    tmp_path_factory: pytest.TempPathFactory,
    write: Callable[[Path], Path],
    use_it: Callable[[Path], None],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    path = write(folder)
    path.write_bytes(damaged(path.read_bytes(), seed))
    check(lambda: use_it(folder))
    shutil.rmtree(folder)


@budget(100)
@given(seed=SEEDS)
def test_an_index_of_weights(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("index")
    write_safetensors(folder).rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"a.weight": "model-1.safetensors"}}
    path = folder / "model.safetensors.index.json"
    path.write_bytes(damaged(json.dumps(index).encode(), seed))
    check(lambda: read_safetensors(folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def gguf_header(smollm2_path: Path) -> bytes:
    """The first part of a real file: metadata, vocabulary and the list of tensors."""
    with smollm2_path.open("rb") as file:
        return file.read(2 << 20)


@pytest.mark.real_model
@budget(25)
@given(seed=SEEDS)
def test_a_gguf_file(
    tmp_path_factory: pytest.TempPathFactory, gguf_header: bytes, seed: int
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    head = damaged(gguf_header[:4000], seed) if seed % 2 else gguf_header[:4000]
    rest = gguf_header[4000:] if seed % 2 else damaged(gguf_header[4000:], seed)
    path.write_bytes(head + rest)
    with path.open("ab") as file:
        file.truncate(100 << 20)  # the tensors, as a hole
    check(lambda: GgufFile.open(path))
    check(lambda: use(path))
    shutil.rmtree(path.parent)


TIKTOKEN = b"\n".join(b"%s %d" % (base64.b64encode(bytes([i])), i) for i in range(256)) + b"\n"


@pytest.fixture(scope="module")
def qwen(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the files of the first Qwen."""
    folder = tmp_path_factory.mktemp("qwen")
    config = json.loads((model / "config.json").read_text()) | {"model_type": "qwen"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    generation = {"chat_format": "chatml", "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@budget(80)
@given(seed=SEEDS)
def test_tiktoken_files(qwen: Path, seed: int) -> None:
    (qwen / "qwen.tiktoken").write_bytes(damaged(TIKTOKEN, seed))
    check(lambda: use(qwen))


def test_the_tiktoken_file_is_right(qwen: Path) -> None:
    (qwen / "qwen.tiktoken").write_bytes(TIKTOKEN)
    use(qwen)


@budget(80)
@given(seed=SEEDS)
def test_vocab_and_merges(model: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("merges")
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    (folder / "model.safetensors").touch()
    spec = json.loads((model / "tokenizer.json").read_text())["model"]
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in spec["merges"])
    files = {
        "vocab.json": json.dumps(spec["vocab"]).encode(),
        "merges.txt": f"#version: 0.2\n{merges}\n".encode(),
        "added_tokens.json": b'{"<|x|>": 290}',
    }
    chosen = sorted(files)[seed % 3]
    for name, content in files.items():
        (folder / name).write_bytes(damaged(content, seed) if name == chosen else content)
    check(lambda: use(folder))
    shutil.rmtree(folder)


YAML = b"""port: 8001
api_key: [a, "b"]
engine: {a: 1}
rope_scaling: {rope_type: yarn, factor: 4.0}
kv_cache_memory: 2GiB
served_model_name: &x [m, n]
other: *x
"""
TOML = b"""port = 8001
api_key = ["a", "b"]
rope_scaling = {rope_type = "yarn", factor = 4.0}
kv_cache_memory = "2GiB"
"""


def settings_of(path: Path) -> ServeConfig | None:
    try:
        return resolve({"config": str(path)}, {})
    except SettingsError as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize(("suffix", "content"), [(".yaml", YAML), (".toml", TOML)])
@budget(150)
@given(seed=SEEDS)
def test_configuration_files(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes, seed: int
) -> None:
    path = tmp_path_factory.mktemp("config") / f"c{suffix}"
    path.write_bytes(damaged(content, seed))
    settings_of(path)
    shutil.rmtree(path.parent)


@budget(150)
@given(seed=SEEDS)
def test_journals(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    Journal(str(path)).begin([("a", 1), ("é", 2**40)])
    whole = path.read_bytes()
    path.write_bytes(damaged(whole[:40], seed) + whole[40:])
    assert isinstance(read(path), Entry)
    shutil.rmtree(path.parent)
