"""What the references share: float32, one sequence, no cache, no batch. Nothing of engine/."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def angles(length: int, dim: int, base: float) -> torch.Tensor:
    """(length, dim / 2) float32."""
    inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
    return torch.outer(torch.arange(length).float(), inv_freq)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """q, k, v (heads, length, d); causal. Returns (length, heads * d)."""
    length = q.shape[1]
    parts = []
    for start in range(0, length, 1024):  # rows at once: all scores of 32K tokens are gigabytes
        end = min(start + 1024, length)
        scores = q[:, start:end] @ k[:, :end].transpose(1, 2) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, start:end, :end]
        future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        parts.append(weights @ v[:, :end])
    return torch.cat(parts, dim=1).transpose(0, 1).reshape(length, -1)


def heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(length, heads * d) -> (heads, length, d)."""
    return x.view(x.shape[0], num_heads, -1).transpose(0, 1)
