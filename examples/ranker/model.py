"""The ranker and the two baselines that it is measured against."""

import torch
from torch import Tensor, nn

import stca
from ranker.batches import TIME_BUCKETS, Batch


class ItemEmbedding(nn.Module):
    """A fixed random code per item, by which an item is recognised though never trained on, plus a learned part."""

    code: Tensor

    def __init__(self, num_items: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("code", torch.randn(num_items, dim, generator=generator))
        self.learned = nn.Embedding(num_items, dim)
        nn.init.zeros_(self.learned.weight)

    def forward(self, item: Tensor) -> Tensor:
        """Items [n] -> [n, D]."""
        embedded: Tensor = self.code[item] + self.learned(item)
        return embedded


class Ranker(nn.Module):
    """Embeddings -> STCA -> RankMixer -> logit.

    A history row is the sum of its item's, action's and age's embeddings. RankMixer sees four tokens: what STCA found,
    the candidate, the user, and how much history there was.
    """

    def __init__(
        self,
        num_items: int,
        num_users: int,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.item = ItemEmbedding(num_items, dim)
        self.action = nn.Embedding(2, dim)
        self.age = nn.Embedding(TIME_BUCKETS, dim)
        self.user = nn.Embedding(num_users, dim)
        self.length = nn.Embedding(TIME_BUCKETS, dim)
        self.candidate = nn.Embedding(num_items, dim)
        self.stca = stca.nn.STCA(dim, num_layers, num_heads, share_ffn=True)
        self.mixer = stca.nn.RankMixer(4, dim)
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(dim, 1)
        for table in (self.user, self.candidate, self.length):
            nn.init.normal_(table.weight, std=0.05)
        for table in (self.action, self.age):
            nn.init.normal_(table.weight, std=0.3)
        # Attention starts as similarity: a target finds its own item in the history from the first step on. A soft
        # layer's weights tell how often the item occurs, a sharp one reads what happened there.
        for layer, sharpness in zip(self.stca.layers, torch.linspace(1.25, 1.75, num_layers).tolist(), strict=True):
            attention = layer.attention
            assert isinstance(attention, stca.nn.TargetAttention)
            with torch.no_grad():
                attention.w_q.mul_(sharpness)
                attention.w_k.copy_(attention.w_q)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [T]."""
        history = self.item(batch.history_item) + self.action(batch.history_action) + self.age(batch.history_age)
        z = self.stca(
            self.item(batch.item), history, batch.target_offsets, batch.history_offsets, visible=batch.visible
        )
        tokens = torch.stack(
            [
                z,
                self.dropout(self.candidate(batch.item)),
                self.dropout(self.user(batch.user)),
                self.length(batch.length),
            ],
            dim=1,
        )
        logits: Tensor = self.logit(self.mixer(tokens)).squeeze(1)
        return logits


class BiasOnly(nn.Module):
    """A bias for each item and user, no history."""

    def __init__(self, num_items: int, num_users: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, 1)
        self.user = nn.Embedding(num_users, 1)
        self.constant = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.item.weight)
        nn.init.zeros_(self.user.weight)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [T]."""
        logits: Tensor = (self.item(batch.item) + self.user(batch.user)).squeeze(1) + self.constant
        return logits


class MeanPooled(nn.Module):
    """The ranker with the mean of the visible history rows in place of attention."""

    def __init__(self, num_items: int, num_users: int, dim: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.ranker = Ranker(num_items, num_users, dim, num_layers=1, num_heads=1, dropout=dropout)
        self.ranker.stca = None  # type: ignore[assignment]
        self.fuse = stca.nn.SwiGLUFFN(2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [T]."""
        ranker = self.ranker
        rows = ranker.item(batch.history_item) + ranker.action(batch.history_action) + ranker.age(batch.history_age)
        # Attention with scores of 0 is the mean of the rows that a target sees.
        mean = stca.ops.target_attention(
            torch.zeros(batch.item.shape[0], 1, rows.shape[1]),
            rows[:, None],
            None,
            batch.target_offsets,
            batch.history_offsets,
            visible=batch.visible,
        )[:, 0]
        z = self.down(self.fuse(torch.cat([mean, ranker.item(batch.item)], dim=1)))
        tokens = torch.stack(
            [z, ranker.candidate(batch.item), ranker.user(batch.user), ranker.length(batch.length)], dim=1
        )
        logits: Tensor = ranker.logit(ranker.mixer(tokens)).squeeze(1)
        return logits
