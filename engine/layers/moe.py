"""A sparse feed-forward network: each token takes the experts that a router picks for it.

As in Qwen2-MoE and Qwen3-MoE: softmax over all experts in float32, the best few, optionally
renormalised, and optionally one expert more that every token takes, behind a gate of its own.
"""

import torch

from engine.backends.base import Backend
from engine.layers.linear import Linear
from engine.layers.mlp import MLP
from engine.layers.module import Module
from engine.models.config import DecoderConfig, MixtureOfExperts


class MoE:
    """router: hidden_size -> num_experts."""

    __slots__ = ("_options", "experts", "router", "shared", "shared_gate")

    def __init__(
        self,
        backend: Backend,
        config: DecoderConfig,
        options: MixtureOfExperts,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._options = options
        size, width = config.hidden_size, options.intermediate_size
        self.router = Linear(backend, size, options.num_experts, dtype=dtype)
        self.experts = [MLP(backend, size, width, dtype=dtype) for _ in range(options.num_experts)]
        self.shared = self.shared_gate = None
        if options.shared_intermediate_size:
            shared_width = options.shared_intermediate_size
            self.shared = MLP(backend, size, shared_width, dtype=dtype)
            self.shared_gate = Linear(backend, size, 1, dtype=dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (num_tokens, hidden_size) -> the same shape."""
        scores = self.router(x).float().softmax(dim=-1)
        weights, chosen = scores.topk(self._options.num_experts_per_token, dim=-1)
        if self._options.renormalizes:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        out = self._run_experts(x, weights.to(x.dtype), chosen)
        if self.shared is not None and self.shared_gate is not None:
            out += torch.sigmoid(self.shared_gate(x)) * self.shared(x)
        return out

    def _run_experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """weights, chosen: (num_tokens, num_experts_per_token). Sums the experts' outputs."""
        out = torch.zeros_like(x)
        order = chosen.flatten().argsort(stable=True)  # (token, choice) pairs, by expert
        tokens = order // chosen.shape[1]
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                pairs = order[start : start + count]
                rows = tokens[start : start + count]
                out.index_add_(0, rows, expert(x[rows]) * weights.view(-1, 1)[pairs])
            start += count
        return out

    def parts(self) -> dict[str, Module]:
        parts: dict[str, Module] = {"router": self.router}
        for i, expert in enumerate(self.experts):
            parts |= {f"experts.{i}.{name}": part for name, part in expert.parts().items()}
        if self.shared is not None and self.shared_gate is not None:
            parts |= {f"shared.{name}": part for name, part in self.shared.parts().items()}
            parts["shared_gate"] = self.shared_gate
        return parts
