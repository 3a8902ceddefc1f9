"""Writes a GPTQ checkpoint of a model, as a QuantizeJob asks for it (engine/quantize_process.py).

One layer is in memory at a time: its matrices are
quantized in the order in which they are used, each for the inputs that the quantized ones before it
give. Writes the weights and config.json; tokenizer and chat template are the caller's.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.calibration import Calibration, RecordingBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.layers.linear import Linear
from engine.layers.module import Module
from engine.load import resolve_device
from engine.models.decoder import Decoder
from engine.placement import Placement, hub_placements, place_tensors
from engine.quant.config import read_quantization
from engine.quant.gptq import GptqOptions, output_error, quantize_gptq
from engine.quant.gptq_tensors import gptq_tensors
from engine.quant.groupwise import GroupwiseWeight
from engine.quantize_job import LayerQuantized, QuantizeJob
from engine.safetensors_writer import SafetensorsWriter
from engine.weights import decoder_config, open_source, resolve_dtype

STAGES = ("qkv", "output", "gate_up", "down")  # in the order in which a layer uses them
_GROUP_SIZES = (256, 128, 64, 32, 16)  # that an error message may propose
_GGUF_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

Report = Callable[[LayerQuantized], None]


def quantize_checkpoint(job: QuantizeJob, report: Report) -> None:
    """Write the weights and the config of the quantized model into the job's folder.

    Raises CheckpointError for a model that cannot be quantized, and ConfigError for options that do
    not suit it.
    """
    checkpoint = Checkpoint.open(job.model)
    config = _output_config(checkpoint, job)
    quantizer = _Quantizer(checkpoint, job)
    quantizer.run(report)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (Path(job.output) / "config.json").write_text(text, encoding="utf-8")


class _Quantizer:
    """One run: from the checkpoint's weights, module by module, to the files."""

    def __init__(self, checkpoint: Checkpoint, job: QuantizeJob) -> None:
        config = decoder_config(checkpoint)
        if config.moe is not None:
            raise CheckpointError(
                f"Models of type {checkpoint.config['model_type']!r} are not quantised: mixtures "
                "of experts are not supported."
            )
        if packed := read_quantization(checkpoint):
            raise CheckpointError(f"{checkpoint.path} is quantised already, by {packed.method}.")
        device = resolve_device(job.device)
        self._backend = RecordingBackend()
        self._decoder = Decoder(config, self._backend, dtype=torch.float32, device=device)
        self._source = open_source(checkpoint)
        self._placements = place_tensors(
            self._decoder, checkpoint, self._source.shapes, self._source.is_ignorable
        )
        self._outputs = hub_placements(self._decoder, checkpoint.config["model_type"])
        self._dtype = _plain_dtype(checkpoint)
        self._job = job
        group_size = None if job.group_size == -1 else job.group_size
        self._options = GptqOptions(job.bits, group_size, job.act_order, job.symmetric, job.damp)
        self._writer = SafetensorsWriter(Path(job.output))
        self._check_samples(config.vocab_size)
        self._check_shapes()

    def run(self, report: Report) -> None:
        """Quantize and write all."""
        modules = self._decoder.modules()
        self._fill("embedding", modules["embedding"])
        context = self._decoder.config.max_position_embeddings
        samples = [sample[:context] for sample in self._job.token_ids]
        calibration = Calibration(self._decoder, self._backend, samples)
        self._write("embedding", modules["embedding"])
        for i, layer in enumerate(self._decoder.layers):
            started_s = time.monotonic()
            parts = layer.parts()
            for name, part in parts.items():
                self._fill(f"layers.{i}.{name}", part)
            errors = {}
            for name in STAGES:
                linear = parts[name]
                assert isinstance(linear, Linear)
                moments = calibration.input_moments(layer, linear)
                errors[name] = self._quantize(f"layers.{i}.{name}.weight", linear, moments)
            if i + 1 < len(self._decoder.layers):
                calibration.advance(layer)
            for name, part in parts.items():
                self._write(f"layers.{i}.{name}", part)
            seconds = time.monotonic() - started_s
            num_layers = len(self._decoder.layers)
            report(
                LayerQuantized(layer=i + 1, num_layers=num_layers, seconds=seconds, errors=errors)
            )
        for name in ("norm", "head"):
            if name in modules:  # not a tied head
                self._fill(name, modules[name])
                self._write(name, modules[name])
        self._writer.close()

    def _fill(self, name: str, module: Module) -> None:
        for parameter, tensor in module.parameters().items():
            target = torch.empty(tensor.shape, dtype=torch.float32, device=self._decoder.device)
            for part in self._of(f"{name}.{parameter}", self._placements):
                rows = target[part.rows]
                for job in self._source.fill_jobs(part.source, rows, part.row_order, part.columns):
                    job()
            setattr(module, parameter, target)

    def _quantize(self, parameter: str, linear: Linear, moments: torch.Tensor) -> float:
        """Quantize and write one weight; what follows sees it as it will be served."""
        assert isinstance(linear.weight, torch.Tensor)
        quantized = quantize_gptq(linear.weight, moments, self._options)
        widened = quantized.dequantize()
        error = output_error(linear.weight, widened, moments)
        linear.weight = widened
        for part in self._of(parameter, self._outputs):
            rows = quantized.select_rows(part.rows_of_source(len(widened)))
            self._write_quantized(part.source.removesuffix(".weight"), rows)
        return error

    def _write_quantized(self, module: str, weight: GroupwiseWeight) -> None:
        less_one = self._options.symmetric
        for suffix, tensor in gptq_tensors(weight, zeros_are_less_one=less_one).items():
            self._writer.add(f"{module}.{suffix}", tensor)

    def _write(self, name: str, module: Module) -> None:
        """Write what of a module is not quantized, and give its memory back."""
        is_quantized = name.startswith("layers.") and name.endswith(STAGES)
        for parameter, tensor in module.parameters().items():
            if not (is_quantized and parameter == "weight"):
                for part in self._of(f"{name}.{parameter}", self._outputs):
                    plain = tensor[part.rows_of_source(len(tensor))].to(self._dtype, copy=True)
                    self._writer.add(part.source, plain)
            setattr(module, parameter, torch.empty_like(tensor, device="meta"))

    @staticmethod
    def _of(parameter: str, placements: list[Placement]) -> list[Placement]:
        return [placement for placement in placements if placement.parameter == parameter]

    def _check_samples(self, vocab_size: int) -> None:
        samples = self._job.token_ids
        if not samples or not all(samples):
            raise ConfigError("The calibration has no samples, or an empty one.")
        worst = max(max(sample) for sample in samples)
        if worst >= vocab_size:
            raise ConfigError(
                f"The calibration has the token id {worst}; the model has {vocab_size}."
            )

    def _check_shapes(self) -> None:
        """Raises ConfigError where the layout has no place for a module of such a size."""
        bits, group_size = self._options.bits, self._options.group_size
        parameters, per_word = self._decoder.parameters(), 32 // bits
        widths = set()
        for part in self._outputs:
            module, _, suffix = part.parameter.rpartition(".")
            if suffix != "weight" or not module.endswith(STAGES):
                continue
            rows, columns = parameters[part.parameter][part.rows].shape
            if rows % per_word or columns % per_word:
                raise ConfigError(
                    f"{part.source} of the shape ({rows}, {columns}) cannot be quantised to {bits} "
                    f"bits: GPTQ packs {per_word} numbers into a word."
                )
            widths.add(columns)
        if group_size is not None and any(width % group_size for width in widths):
            fitting = [n for n in _GROUP_SIZES if not any(width % n for width in widths)]
            raise ConfigError(
                f"--group-size {group_size} does not divide the widths of the model's matrices, "
                f"{', '.join(map(str, sorted(widths)))}; "
                f"{', '.join(map(str, [*fitting, '-1 (a whole row)']))} would."
            )


def _plain_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Of what is not quantized: as it was, and for GGUF bfloat16."""
    if checkpoint.format == "gguf":
        return torch.bfloat16
    return resolve_dtype("auto", checkpoint, torch.device("cpu"))


def _output_config(checkpoint: Checkpoint, job: QuantizeJob) -> dict[str, Any]:
    """The config.json of the quantized model: the model's own and its quantization_config."""
    if checkpoint.format == "gguf":
        config = _config_of_gguf(checkpoint)
    else:
        config = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "gptq",
        # "gptq" stores zero points less one, and some refuse it where they are not symmetric.
        "checkpoint_format": "gptq" if job.symmetric else "gptq_v2",
        "bits": job.bits,
        "group_size": job.group_size,
        "desc_act": job.act_order,
        "sym": job.symmetric,
        "damp_percent": job.damp,
        "static_groups": False,
        "true_sequential": True,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["qwen-serve"]},
    }
    return config


def _config_of_gguf(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys that transformers' classes of these families need."""
    config = {key: value for key, value in checkpoint.config.items() if value is not None}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "factors":
        raise CheckpointError(
            f"{checkpoint.path} has the scaling of its positions as a list of factors, which a "
            "config.json cannot say; quantise the model's safetensors."
        )
    if config.pop("partial_rotary_factor") != 1:
        raise CheckpointError(f"{checkpoint.path} rotates a part of each head only.")
    vocabulary = checkpoint.gguf_vocabulary
    ids = {
        "bos_token_id": vocabulary.bos_token_id if vocabulary else None,
        "eos_token_id": next(iter(checkpoint.eos_token_ids), None),
    }
    return {
        "architectures": [_GGUF_CLASSES[config["model_type"]]],
        **config,
        **{key: value for key, value in ids.items() if value is not None},
        "torch_dtype": "bfloat16",
    }
