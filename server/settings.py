"""Merges configuration file, environment and flags (later wins) into one frozen ServeConfig.

Every problem is a SettingsError of one line that names the key, the value and where it was set.
Knows the options only as the data of server/options.py; server/cli.py calls it.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import EngineConfig
from server.config import ServeConfig, ServerConfig
from server.options import ENVIRONMENT_PREFIX, OPTIONS, Option, data_dir_of

_BY_NAME = {option.name: option for option in OPTIONS}
_BY_VARIABLE = {option.variable: option for option in OPTIONS}

_SECRET = ("key", "auth", "store")  # a store's URL may hold its password

Given = Mapping[str, str | bool | Sequence[str] | None]  # flags by option name; None = not given


class SettingsError(Exception):
    """An unknown key or a bad value; the message is one line that names it and its source."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """One option's texts as they were found."""

    texts: tuple[str, ...]
    source: str  # "--port", "QWEN_SERVE_PORT" or "port in serve.yaml"


def resolve(flags: Given, environment: Mapping[str, str]) -> ServeConfig:
    """Build the configuration.

    `engine.model` stays the name as given and `engine_address` empty: the supervisor knows them
    only once the model is on disk and its run-time folder exists. Raises SettingsError.
    """
    from_flags = _read_flags(flags)
    from_environment = _read_environment(environment)
    file = (from_environment | from_flags).get("config")
    from_file = _read_file(Path(file.texts[0]).expanduser()) if file else {}
    values = {
        name: _value_of(_BY_NAME[name], setting)
        for name, setting in (from_file | from_environment | from_flags).items()
    }
    return _build(values)


def resolve_data_dir(flag: str | None, environment: Mapping[str, str]) -> Path:
    """The data directory alone, for the commands that need nothing else."""
    option = _BY_NAME["data_dir"]
    return data_dir_of(flag or environment.get(option.variable) or str(option.default))


def _read_flags(flags: Given) -> dict[str, _Setting]:
    found = {}
    for name, given in flags.items():
        if given is None or given == ():
            continue
        option = _BY_NAME[name]
        if isinstance(given, bool):
            texts: tuple[str, ...] = ("true" if given else "false",)
        else:
            texts = (given,) if isinstance(given, str) else tuple(given)
        if texts:
            found[name] = _Setting(texts, option.flag)
    return found


def _read_environment(environment: Mapping[str, str]) -> dict[str, _Setting]:
    found = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        option = _BY_VARIABLE.get(variable)
        if option is None:
            shown = _shown(variable, text)
            raise SettingsError(f"unknown option {variable} with value {shown} in the environment")
        texts = tuple(part.strip() for part in text.split(",")) if option.repeatable else (text,)
        found[option.name] = _Setting(texts, variable)
    return found


def _read_file(path: Path) -> dict[str, _Setting]:
    found = {}
    for key, value in _parse_file(path).items():
        option = _BY_NAME.get(str(key).replace("-", "_"))
        if option is None or option.name == "config":
            shown = _shown(str(key), str(value))
            raise SettingsError(f"unknown option {key} with value {shown} in {path}")
        source = f"{key} in {path}"
        if option.name in found:
            raise SettingsError(f"{source}: the option is set twice")
        found[option.name] = _Setting(_texts_of(option, value, source), source)
    return found


def _parse_file(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML or TOML file; its values are still raw."""
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            parsed: Any = tomllib.loads(content)
        elif path.suffix in (".yaml", ".yml"):
            parsed = yaml.safe_load(content)
        else:
            raise SettingsError(f"the configuration file {path} must end in .yaml, .yml or .toml")
    except OSError as exc:
        raise SettingsError(
            f"the configuration file {path} cannot be read: {exc.strerror}"
        ) from exc
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as exc:
        reason = " ".join(str(exc).split())
        raise SettingsError(f"the configuration file {path} is not valid: {reason}") from exc
    except RecursionError as exc:
        raise SettingsError(f"the configuration file {path} is nested too deeply") from exc
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise SettingsError(f"the configuration file {path} must hold keys and values")
    return parsed


def _texts_of(option: Option, value: Any, source: str) -> tuple[str, ...]:
    """A file's value as texts, so that a value means the same wherever it is written."""
    entries = value if option.repeatable and isinstance(value, list) else [value]
    texts = []
    for entry in entries:
        if option.kind.is_text and not isinstance(entry, str):
            raise _bad_value(option, str(entry), source, "it must be text; put it in quotes")
        if option.kind.is_object and isinstance(entry, dict):
            entry = json.dumps(entry)
        if not isinstance(entry, str | int | float):
            raise _bad_value(option, str(entry), source, "it must be a single value")
        texts.append(str(entry).lower() if isinstance(entry, bool) else str(entry))
    return tuple(texts)


def _value_of(option: Option, setting: _Setting) -> object:
    values = []
    for text in setting.texts:
        try:
            values.append(option.kind.parse(text))
        except ValueError as exc:
            raise _bad_value(option, text, setting.source, str(exc)) from exc
    return tuple(values) if option.repeatable else values[-1]


def _bad_value(option: Option, text: str, source: str, reason: str) -> SettingsError:
    shown = _shown(option.name, text)
    return SettingsError(f"bad value {shown} for {option.name} (from {source}): {reason}")


def _shown(name: str, text: str) -> str:
    """A value as an error message may show it: never a secret, not even under a mistyped name."""
    is_secret = any(word in name.lower() for word in _SECRET) or ("@" in text and "://" in text)
    return "(hidden)" if is_secret else repr(text)


def _build(values: Mapping[str, object]) -> ServeConfig:
    def value(option: Option) -> Any:
        return values.get(option.name, option.default)

    def of_struct(struct: type) -> dict[str, Any]:
        return {option.target: value(option) for option in OPTIONS if option.struct is struct}

    return ServeConfig(
        server=ServerConfig(**of_struct(ServerConfig)),
        engine=EngineConfig(**of_struct(EngineConfig)),
        data_dir=str(data_dir_of(str(value(_BY_NAME["data_dir"])))),
        source=value(_BY_NAME["source"]),
        revision=value(_BY_NAME["revision"]),
        engine_address="",
    )
