"""`qwen-serve quantize`: writes a GPTQ checkpoint of a model into a folder of its own.

Turns the calibration's texts into token ids, has engine/quantize_process.py do the work, and puts
the tokenizer and what else describes the model beside the weights. The folder appears whole or not
at all. No torch.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from engine.checkpoint import Checkpoint, GgufVocabulary
from engine.errors import EngineError
from engine.quantize_job import LayerQuantized, QuantizeJob, QuantizeOptions
from protocol import gguf_tokenizer
from server.calibration import CalibrationError, encode_samples, read_samples
from server.child import Child, ChildCommand
from server.hub_files import DESCRIPTIONS
from server.served_model import ModelText

_COMMAND = (sys.executable, "-P", "-m", "engine.quantize_process")
# Code is copied for other programs that run it (Qwen v1, Baichuan, ChatGLM); this one never does.
_COPIED = (*DESCRIPTIONS, "NOTICE*", "*.py")
_NOT_COPIED = ("config.json", "*.index.json", "quantize_config.json", "quant_config.json", ".*")

Say = Callable[[str], None]


class QuantizeError(Exception):
    """It could not be done; the message is one line fit to be shown to a user."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """Which texts, and how much of them."""

    path: Path | None = None  # None = the shipped ones
    num_samples: int = 128
    max_length: int = 2048  # tokens of one sample


def quantize(
    model: Path,
    output: Path,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    say: Say,
    command: tuple[str, ...] = _COMMAND,
) -> None:
    """Quantize the folder or .gguf file `model` into `output`, which is absent or empty.

    `say` gets lines of progress. Raises QuantizeError; `output` is then as it was.
    """
    output = Path(os.path.abspath(output))
    _check_output(output)
    try:
        checkpoint = Checkpoint.open(model)
        text = ModelText.of(checkpoint)
        lines = read_samples(calibration.path)[: calibration.num_samples]
        samples = encode_samples(
            lines,
            text,
            max_length=calibration.max_length,
            skips_refused=calibration.path is None,
        )
    except (EngineError, CalibrationError) as exc:
        raise QuantizeError(exc) from exc
    say(f"calibrating with {len(samples)} samples, {sum(map(len, samples)):,} tokens")
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    job = QuantizeJob(
        **msgspec.structs.asdict(options),
        model=os.path.abspath(model),
        output=str(partial),
        token_ids=samples,
    )
    child = ChildCommand(
        "the quantizer",
        command,
        msgspec.json.encode(job),
        on_line=lambda line: say(_progress(line)),
    )
    try:
        asyncio.run(_write(checkpoint, child, partial, output))
    except OSError as exc:
        raise QuantizeError(f"{output} cannot be written: {exc.strerror or exc}") from exc


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise QuantizeError(f"{output} exists already; name a new or an empty folder")
    if not output.parent.is_dir():
        raise QuantizeError(f"there is no folder {output.parent}")


async def _write(
    checkpoint: Checkpoint, command: ChildCommand, partial: Path, output: Path
) -> None:
    """Fill `partial` and give it its name; take it away where that fails or a signal comes."""
    stopping = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    try:
        partial.mkdir()
        await _run(command, stopping)
        _write_description(checkpoint, partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


async def _run(command: ChildCommand, stopping: asyncio.Event) -> None:
    """Run the child to its end, or until told to stop. Raises QuantizeError."""
    child = await Child.start(command)
    ending = asyncio.create_task(child.wait())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((ending, stop), return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        child.send(signal.SIGKILL)
    stop.cancel()
    end = await ending
    if stopping.is_set():
        raise QuantizeError("stopped; nothing was written")
    if child.exit_status != 0:
        raise QuantizeError(end)


def _progress(line: str) -> str:
    done = msgspec.json.decode(line, type=LayerQuantized)
    errors = ", ".join(f"{name} {error:.2%}" for name, error in done.errors.items())
    return (
        f"layer {done.layer} of {done.num_layers}: {done.seconds:.1f} s, "
        f"squared error of the outputs: {errors}"
    )


def _write_description(checkpoint: Checkpoint, folder: Path) -> None:
    """Everything but the weights and the config, which are there."""
    if checkpoint.gguf_vocabulary is not None:
        _write_gguf_tokenizer(checkpoint, checkpoint.gguf_vocabulary, folder)
        return
    for file in checkpoint.path.iterdir():
        is_wanted = any(fnmatchcase(file.name, pattern) for pattern in _COPIED)
        is_ours = any(fnmatchcase(file.name, pattern) for pattern in _NOT_COPIED)
        if is_wanted and not is_ours and file.is_file():
            shutil.copyfile(file, folder / file.name)


def _write_gguf_tokenizer(checkpoint: Checkpoint, vocabulary: GgufVocabulary, folder: Path) -> None:
    """The files of a hub folder that say what a GGUF file says of its tokenizer."""
    tokenizer = gguf_tokenizer.tokenizer_json(
        model=vocabulary.model,
        pre=vocabulary.pre,
        tokens=vocabulary.tokens,
        token_types=vocabulary.token_types,
        merges=vocabulary.merges,
    )
    ids = {"bos_token": vocabulary.bos_token_id, "eos_token": vocabulary.eos_token_id}
    named = {key: vocabulary.tokens[i] for key, i in ids.items() if i is not None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos_token,
        "clean_up_tokenization_spaces": False,
        **named,
        **({"chat_template": checkpoint.chat_template} if checkpoint.chat_template else {}),
    }
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    generation = {"eos_token_id": list(checkpoint.eos_token_ids)}
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
