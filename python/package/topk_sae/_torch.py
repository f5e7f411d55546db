"""The model as a module of PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ._sae import Sae


@dataclass
class TorchSaeConfig:
    """What SAEBench reads from the `cfg` of an SAE. Most fields only need to be there."""

    d_in: int
    d_sae: int
    architecture: str
    model_name: str = ""
    hook_layer: int = 0
    hook_name: str = ""
    context_size: int | None = None
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = 0
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


class TorchSae(nn.Module):
    """Encoder and decoder as the engine computes them.

    Parameters `W_enc` (D, M), `W_dec` (M, D), `b_enc` (M), `b_dec` (D), as SAEBench names and shapes them. `encode` gives
    dense codes (..., M) of rows (..., D), `decode` goes back, `forward` does both. A model that normalises rows keeps the
    mean and deviation of those that it encoded last for `decode`, which must be given as many codes.
    """

    norms: torch.Tensor
    threshold: torch.Tensor | None

    def __init__(self, sae: Sae, unit_norm: bool, model_name: str, hook_layer: int, hook_name: str) -> None:
        super().__init__()
        # Copies, for the engine's own cannot be written.
        w_enc, w_dec, b_enc, b_dec = (
            torch.from_numpy(tensor.copy()) for tensor in (sae.w_enc, sae.w_dec, sae.b_lat, sae.b_pre)
        )
        norms = torch.ones(sae.n_latents)
        if unit_norm:
            norms = w_dec.norm(dim=1)
            # A latent that decodes to nothing has no direction.
            norms[norms == 0] = 1
        self.W_enc = nn.Parameter(w_enc.T.contiguous())
        self.W_dec = nn.Parameter(w_dec / norms[:, None])
        self.b_enc = nn.Parameter(b_enc)
        self.b_dec = nn.Parameter(b_dec)
        self.register_buffer("norms", norms)
        threshold = sae.threshold
        self.register_buffer("threshold", None if threshold is None else torch.from_numpy(threshold.copy()))
        self.k = sae.k
        self.eps = float(sae.architecture["norm_eps"]) if sae.normalize else None
        self.relu = sae.architecture["inference"] == "relu"
        self.signed = sae.architecture["activation"] == "abs-topk"
        kind = "standard" if self.relu else "topk" if threshold is None else "jumprelu"
        self.cfg = TorchSaeConfig(sae.d_in, sae.n_latents, kind, model_name, hook_layer, hook_name)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return self.W_enc.dtype

    def _encoded(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        x = x.to(self.dtype)
        statistics = None
        if self.eps is not None:
            mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
            x, statistics = (x - mean) / (std + self.eps), (mean, std)
        scores = (x - self.b_dec) @ self.W_enc + self.b_enc
        if self.relu:
            return scores.relu() * self.norms, statistics
        if self.threshold is not None:
            return torch.where(scores > self.threshold, scores, 0.0) * self.norms, statistics
        by = scores.abs() if self.signed else scores
        kept = by.topk(self.k, dim=-1).indices
        codes = torch.zeros_like(scores).scatter(-1, kept, scores.gather(-1, kept))
        return (codes if self.signed else codes.relu()) * self.norms, statistics

    def _decoded(
        self, codes: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        out = codes @ self.W_dec + self.b_dec
        return out if statistics is None else out * statistics[1] + statistics[0]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Dense codes (..., M) of rows (..., D)."""
        codes, self._last = self._encoded(x)
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Rows (..., D) of codes (..., M)."""
        if self.eps is not None and (self._last is None or self._last[0].shape[:-1] != codes.shape[:-1]):
            raise ValueError(
                "this model normalises rows: encode the rows first, then decode as many codes, so that the mean and "
                "deviation of each are known"
            )
        return self._decoded(codes, self._last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., D) of rows (..., D)."""
        return self._decoded(*self._encoded(x))

    def check_decoder_norms(self) -> bool:
        """Whether all rows of the decoder have length 1, as SAEBench wants them: `sae.to_torch(unit_norm=True)`."""
        tolerance = 1e-2 if self.dtype in (torch.bfloat16, torch.float16) else 1e-5
        norms = self.W_dec.detach().norm(dim=1).float()
        return bool(torch.allclose(norms, torch.ones_like(norms), atol=tolerance))
