"""server/settings.py and server/options.py: three sources, one configuration, one-line errors."""

import json
from pathlib import Path

import pytest

from engine.config import EngineConfig
from server.config import ServerConfig
from server.option_kinds import SIZE
from server.options import OPTIONS
from server.settings import SettingsError, resolve, resolve_data_dir


def write(folder: Path, text: str, name: str = "serve.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_those_of_the_structs() -> None:
    config = resolve({}, {})
    assert config.server == ServerConfig()
    assert config.engine == EngineConfig(model="smollm2")
    assert config.data_dir == str(Path.home() / ".local/share/qwen-serve")


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\nmax_num_seqs: 1\nworkers: 3\n")
    environment = {"QWEN_SERVE_PORT": "2", "QWEN_SERVE_MAX_NUM_SEQS": "2", "HOME": "/"}
    config = resolve({"port": "4", "host": None, "config": file}, environment)
    assert (config.server.port, config.engine.max_num_seqs, config.server.workers) == (4, 2, 3)


def test_the_file_can_be_named_by_the_environment_and_the_flag_wins(tmp_path: Path) -> None:
    one = write(tmp_path, "port: 1\n", "one.yml")
    two = write(tmp_path, "port = 2\n", "two.toml")
    environment = {"QWEN_SERVE_CONFIG": one}
    assert resolve({}, environment).server.port == 1
    assert resolve({"config": two}, environment).server.port == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.yaml",
            "model: /m\nserved-model-name: [a, b]\nkv-cache-memory: 2GiB\n"
            "enable_prefix_caching: false\nmax_num_batched_tokens: 256\nunknown_fields: warn\n",
        ),
        (
            "a.toml",
            'model = "/m"\nserved_model_name = ["a", "b"]\nkv_cache_memory = 2147483648\n'
            'enable_prefix_caching = "no"\nmax_num_batched_tokens = 256\nunknown_fields = "warn"\n',
        ),
    ],
)
def test_yaml_and_toml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    config = resolve({"config": write(tmp_path, text, name)}, {})
    assert config.engine == EngineConfig(
        model="/m",
        kv_cache_memory_bytes=2 * 1024**3,
        enable_prefix_caching=False,
        max_num_batched_tokens=256,
    )
    assert config.server == ServerConfig(served_model_names=("a", "b"), unknown_fields="warn")


def test_several_values_by_flag_and_by_comma() -> None:
    environment = {"QWEN_SERVE_API_KEY": "k1, k2", "QWEN_SERVE_SERVED_MODEL_NAME": "x"}
    config = resolve({"served_model_name": ["a,b", "c"], "api_key": []}, environment)
    assert config.server.served_model_names == ("a,b", "c")
    assert config.server.api_keys == ("k1", "k2")


@pytest.mark.parametrize("given", [True, False])
def test_a_switch_given_as_a_flag(given: bool) -> None:
    environment = {"QWEN_SERVE_ENABLE_PREFIX_CACHING": "on"}
    config = resolve({"enable_prefix_caching": given}, environment)
    assert config.engine.enable_prefix_caching is given


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1073741824", 2**30),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2**31),
        ("4GB", 4 * 10**9),
        ("4gb", 4 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("7kb", 7000),
        ("1TiB", 2**40),
        ("1B", 1),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert SIZE.parse(text) == num_bytes


@pytest.mark.parametrize(
    ("flags", "environment", "parts"),
    [
        ({"port": "http"}, {}, ("port", "'http'", "--port", "whole number")),
        ({"port": "65536"}, {}, ("port", "'65536'", "from 0 to 65535")),
        ({"port": "8_0"}, {}, ("port", "'8_0'")),
        ({}, {"QWEN_SERVE_PORT": "tcp://10.0.0.1:80"}, ("port", "tcp://", "QWEN_SERVE_PORT")),
        ({"dtype": "int3"}, {}, ("dtype", "'int3'", "bfloat16")),
        ({"device": "tpu"}, {}, ("device", "'tpu'", "cuda")),
        ({"kv_cache_memory": "lots"}, {}, ("kv_cache_memory", "'lots'", "2GiB")),
        ({"kv_cache_memory": "0"}, {}, ("kv_cache_memory", "'0'", "more than 0")),
        ({"max_num_seqs": "0"}, {}, ("max_num_seqs", "'0'", "at least 1")),
        ({"max_model_len": "all"}, {}, ("max_model_len", "'all'", "whole number")),
        ({"rope_scaling": "yarn"}, {}, ("rope_scaling", "'yarn'", "JSON object")),
        ({"rope_scaling": '{"factor": [4]}'}, {}, ("rope_scaling", "its factor must be a single")),
        ({"model": " "}, {}, ("model", "empty")),
        ({"otlp_endpoint": "localhost:4318"}, {}, ("otlp_endpoint", "a URL such as http://")),
        ({"otlp_endpoint": "http://h:port"}, {}, ("otlp_endpoint", "a URL such as http://")),
        (
            {},
            {"QWEN_SERVE_ENABLE_PREFIX_CACHING": "maybe"},
            ("enable_prefix_caching", "'maybe'", "QWEN_SERVE_ENABLE_PREFIX_CACHING"),
        ),
        ({}, {"QWEN_SERVE_PROT": "80"}, ("QWEN_SERVE_PROT", "'80'", "environment")),
    ],
)
def test_a_bad_setting_is_one_line_with_key_value_and_source(
    flags: dict[str, str], environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(flags, environment)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("prot: 80\n", ("prot", "'80'", "serve.yaml")),
        ("config: other.yaml\n", ("config", "other.yaml", "serve.yaml")),
        ("port: [1, 2]\n", ("port", "serve.yaml", "single value")),
        ("port: true\n", ("port", "'true'", "serve.yaml")),
        ("port: 80.5\n", ("port", "'80.5'")),
        ("port:\n", ("port", "None")),
        ("model: 12\n", ("model", "'12'", "quotes")),
        ("max-num-seqs: 1\nmax_num_seqs: 2\n", ("max_num_seqs", "twice")),
        ("- port\n", ("serve.yaml", "keys and values")),
        ("port: [\n", ("serve.yaml", "not valid")),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({"config": write(tmp_path, text)}, {})
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_an_object_is_json_or_a_mapping_of_the_file(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    by_flag = resolve({"rope_scaling": json.dumps(scaling)}, {})
    file = tmp_path / "serve.yaml"
    file.write_text("rope_scaling: {rope_type: yarn, factor: 4.0}\n")
    by_file = resolve({"config": str(file)}, {})
    assert by_flag.engine.rope_scaling == by_file.engine.rope_scaling == scaling
    file.write_text("rope_scaling: {rope_type: yarn, factor: [4.0]}\n")
    with pytest.raises(SettingsError, match="its factor must be a single value"):
        resolve({"config": str(file)}, {})


def test_auto_length() -> None:
    assert resolve({"max_model_len": "auto"}, {}).engine.max_model_len == "auto"
    assert resolve({"max_model_len": "100"}, {}).engine.max_model_len == 100


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert resolve({"config": write(tmp_path, "# nothing\n")}, {}) == resolve({}, {})


@pytest.mark.parametrize("name", ["missing.yaml", "serve.ini"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, "port=1", "serve.ini")
    with pytest.raises(SettingsError, match=name):
        resolve({"config": str(tmp_path / name)}, {})


@pytest.mark.parametrize("text", ["api_key: 123456789\n", "api_keys: [secret123456789]\n"])
def test_no_error_shows_a_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({"config": write(tmp_path, text)}, {})
    assert "123456789" not in str(caught.value)


def test_data_dir_alone() -> None:
    assert resolve_data_dir(None, {"QWEN_SERVE_DATA_DIR": "/data"}) == Path("/data")
    assert resolve_data_dir("~/x", {"QWEN_SERVE_DATA_DIR": "/data"}) == Path.home() / "x"


def test_every_field_of_both_structs_has_an_option() -> None:
    for struct in (ServerConfig, EngineConfig):
        targets = {option.target for option in OPTIONS if option.struct is struct}
        assert targets == set(struct.__struct_fields__)


@pytest.mark.parametrize("content", ["port: " + "[" * 5000, "port: " + "{a: " * 5000])
def test_a_file_that_is_nested_too_deeply(tmp_path: Path, content: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match="nested too deeply"):
        resolve({"config": str(path)}, {})
