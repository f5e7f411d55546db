"""The model as a module of PyTorch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ._sae import Sae


class TorchSae(nn.Module):
    """Encoder and decoder as the engine computes them.

    `W_enc` (D, M), `W_dec` (M, D), `b_enc` (M), `b_dec` (D), as SAEBench names and shapes them. `forward` gives
    reconstructions. A model that normalises rows keeps mean and deviation of those that it encoded last, for `decode`.
    """

    def __init__(self, sae: Sae) -> None:
        super().__init__()

        def parameter(values: object) -> nn.Parameter:
            return nn.Parameter(torch.tensor(values))

        self.W_enc = parameter(sae.w_enc.T.copy())
        self.W_dec = parameter(sae.w_dec)
        self.b_enc = parameter(sae.b_lat)
        self.b_dec = parameter(sae.b_pre)
        forward = sae.architecture
        self.k: int = sae.k
        self.eps = float(forward["norm_eps"]) if sae.normalize else None
        self.relu_only = forward["inference"] == "relu"
        self.signed = forward["activation"] == "abs-topk"
        self.cfg = SimpleNamespace(
            architecture="relu" if self.relu_only else "topk",
            d_in=sae.d_in,
            d_sae=sae.n_latents,
            dtype="float32",
            device="cpu",
            model_name="",
            hook_name="",
            hook_layer=0,
            context_size=None,
            prepend_bos=False,
            dataset_trust_remote_code=False,
            seqpos_slice=(None,),
            apply_b_dec_to_input=True,
        )
        self._mean: torch.Tensor | None = None
        self._std: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return self.W_enc.dtype

    def _scores(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        x = x.to(self.dtype)
        mean = std = None
        if self.eps is not None:
            mean = x.mean(dim=-1, keepdim=True)
            std = x.std(dim=-1, keepdim=True)
            x = (x - mean) / (std + self.eps)
        return (x - self.b_dec) @ self.W_enc + self.b_enc, mean, std

    def _code(self, scores: torch.Tensor) -> torch.Tensor:
        if self.relu_only:
            return scores.relu()
        by = scores.abs() if self.signed else scores
        indices = by.topk(self.k, dim=-1).indices
        kept = torch.zeros_like(scores).scatter(-1, indices, scores.gather(-1, indices))
        return kept if self.signed else kept.relu()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Dense codes (..., M) of rows (..., D)."""
        scores, self._mean, self._std = self._scores(x)
        return self._code(scores)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Rows (..., D) of codes (..., M); of a model that normalises rows, those that were encoded last."""
        out = codes @ self.W_dec + self.b_dec
        if self.eps is not None:
            if self._mean is None or self._std is None or self._mean.shape[:-1] != codes.shape[:-1]:
                raise ValueError(
                    "this model normalises rows: encode them first, then decode as many codes, so that mean and "
                    "deviation of each are known"
                )
            out = out * self._std + self._mean
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., D) of rows (..., D)."""
        scores, mean, std = self._scores(x)
        out = self._code(scores) @ self.W_dec + self.b_dec
        return out if mean is None or std is None else out * std + mean


def module_of(sae: Sae) -> TorchSae:
    """The module of a model."""
    return TorchSae(sae)
