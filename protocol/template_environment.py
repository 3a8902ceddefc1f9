"""The sandboxed Jinja environment for chat templates, set up as transformers sets up its own.

Source: transformers' utils/chat_template_utils.py (trim_blocks, lstrip_blocks, loop controls,
tojson, raise_exception, strftime_now, {% generation %}). Adds limits on what a template may build.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_REPEATED = 1 << 20  # items a sequence may have after `*`
_MAX_POWER = 4096  # bits a number may have after `**`


class TemplateRefused(Exception):
    """raise_exception() in a template; carries the template's own message."""


class TemplateTooLarge(Exception):
    """A template built something far larger than any prompt."""


def compile_template(source: str) -> jinja2.Template:
    """Raises jinja2.TemplateError on a syntax error."""
    environment = _new_environment()
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]  # makes text of any size
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_make_dict,
        namespace=_TemplateNamespace,
    )
    return environment.from_string(source)


def variables_of(source: str) -> frozenset[str]:
    """Names that a template reads and may not have set. Raises jinja2.TemplateError (syntax)."""
    return frozenset(meta.find_undeclared_variables(_new_environment().parse(source)))


def _new_environment() -> "_Environment":
    return _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox limits range(); this limits repetition and powers too."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    _check_size(len(sequence) * count, _MAX_REPEATED)
        elif isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * right, _MAX_POWER)
        return super().call_binop(context, operator, left, right)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TemplateTooLarge(f"a value of size {size} (at most {limit})")


class _Generation(Extension):
    """{% generation %} marks the assistant's text for training; here its body is just printed."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance's set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateNamespace(Namespace):
    """namespace() without names that reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that namespace(self=...) works, as in Jinja
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
