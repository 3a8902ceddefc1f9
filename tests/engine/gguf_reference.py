"""transformers' own model of a GGUF file: its config mapping, its names, gguf-py's dequantisation.

`from_pretrained(gguf_file=...)` does the same but insists on accelerate, which nothing here needs.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


@cache
def reference_model(path: Path) -> Any:
    """The model in float32, ready to be called."""
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    if "lm_head.weight" in missing:
        assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval()
