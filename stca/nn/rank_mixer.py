"""The ranking head of the STCA paper: parameter-free mixing of feature tokens and a network of its own for each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stca.nn.ffn import hidden_width
from stca.nn.module import Module, check_like, check_tensor
from stca.nn.product import einsum


class RankMixerLayer(Module):
    r"""One layer: :math:`S = \mathrm{LN}(\mathrm{mix}(X) + X)`, :math:`X' = \mathrm{LN}(\mathrm{PFFN}(S) + S)`."""

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        ffn_ratio: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        hidden = hidden_width("RankMixer", dim, ffn_ratio)
        self.w_in = nn.Parameter(torch.empty(num_tokens, dim, hidden, device=device, dtype=dtype))
        self.b_in = nn.Parameter(torch.empty(num_tokens, hidden, device=device, dtype=dtype))
        self.w_out = nn.Parameter(torch.empty(num_tokens, hidden, dim, device=device, dtype=dtype))
        self.b_out = nn.Parameter(torch.empty(num_tokens, dim, device=device, dtype=dtype))
        self.mix_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.ffn_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the networks' weights so that variance is kept, biases are 0; the norms reset their own."""
        for weight, bias in ((self.w_in, self.b_in), (self.w_out, self.b_out)):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, tokens, D] -> [B, tokens, D]."""
        check_like("RankMixer", self.w_in, tokens=x)  # by its name: FSDP and the like put it there for the call
        B, tokens, D = x.shape
        mixed = x.view(B, tokens, tokens, D // tokens).transpose(1, 2).reshape(B, tokens, D)
        s = self.mix_norm(mixed + x)
        hidden = F.gelu(einsum("btd,tdf->btf", s, self.w_in) + self.b_in)
        y: Tensor = self.ffn_norm(einsum("btf,tfd->btd", hidden, self.w_out) + self.b_out + s)
        return y


class RankMixer(Module):
    r"""Mixes the tokens of each example and averages them.

    Every token is cut into as many heads as there are tokens, and new token k is made of all the k-th heads; then each
    token passes a two-layer GELU network of its own. Residuals and layer norms as in `RankMixerLayer`.

    Args:
        num_tokens: tokens of one example, divides dim.
        dim: D, width of a token.
        num_layers: layers.
        ffn_ratio: hidden width of the networks over D.

    Shapes:
        tokens [B, num_tokens, D] -> [B, D], the mean over the tokens of the last layer.

    Raises:
        ValueError: num_tokens that do not divide dim, no layer, a width below 1, or tokens of another shape.

    Source:
        RankMixer as arXiv 2511.06077 puts it on top of STCA.

    Example:
        >>> stca.nn.RankMixer(num_tokens=4, dim=16)(torch.randn(3, 4, 16)).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        num_layers: int = 2,
        ffn_ratio: float = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"RankMixer: num_layers must be at least 1, got {num_layers}")
        if num_tokens < 1 or dim % num_tokens != 0:
            raise ValueError(f"RankMixer: num_tokens must divide dim = {dim}, got {num_tokens}")
        self.num_tokens = num_tokens
        self.dim = dim
        self.layers = nn.ModuleList(
            RankMixerLayer(num_tokens, dim, ffn_ratio, device, dtype) for _ in range(num_layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, num_tokens, D] -> [B, D]."""
        check_tensor("RankMixer", "tokens", tokens)
        if tokens.dim() != 3 or tokens.shape[1:] != (self.num_tokens, self.dim):
            raise ValueError(f"RankMixer: tokens must be [B, {self.num_tokens}, {self.dim}], got {list(tokens.shape)}")
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.mean(dim=1)
