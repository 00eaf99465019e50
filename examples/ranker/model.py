"""The ranker and the two baselines that it is measured against."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import stca
from ranker.requests import COUNTER_BUCKETS, COUNTERS, TIME_BUCKETS
from stca.batch import RequestBatch


class ItemEmbedding(nn.Module):
    """A fixed random code per item, by which an item is recognised though never trained on, plus a learned part.

    The code fills the first half of the row alone.
    """

    code: Tensor

    def __init__(self, num_items: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        code = torch.randn(num_items, dim, generator=generator)
        code[:, dim // 2 :] = 0
        self.register_buffer("code", code)
        self.learned = nn.Embedding(num_items, dim)
        nn.init.zeros_(self.learned.weight)

    def forward(self, item: Tensor) -> Tensor:
        """Items [n] -> [n, D]."""
        embedded: Tensor = self.code[item] + self.learned(item)
        return embedded


def start_attention(layer: stca.nn.STCALayer, sharpness: float) -> None:
    """Lets a layer start as a look-up by similarity or, with a sharpness near 0, as the mean of the history.

    Which item a row is lies in its first half, what happened and when in its second. The FFN starts block diagonal, one
    block a half, so that the second half can be read without the noise of item codes; queries and keys start as the
    same rotation, so that equal rows score highest; values and output as the identity. The query of a later layer
    starts as the target alone.
    """
    ffn, attention = layer.history_ffn, layer.attention
    assert isinstance(ffn, stca.nn.SwiGLUFFN)
    assert isinstance(attention, stca.nn.TargetAttention)
    dim, hidden = ffn.w_u.shape[0], ffn.w_u.shape[1] // 2
    half = dim // 2
    with torch.no_grad():
        for inward in (ffn.w_u, ffn.w_v):
            inward[:half, hidden:] = 0
            inward[half:, :hidden] = 0
            inward.mul_(2**0.5)
        ffn.w_o[:hidden, half:] = 0
        ffn.w_o[hidden:, :half] = 0
        nn.init.orthogonal_(attention.w_q)
        attention.w_k.copy_(attention.w_q)
        attention.w_q.mul_(sharpness**2)
        nn.init.eye_(attention.w_v)
        nn.init.eye_(attention.w_o)
        if layer.w_c is not None:
            layer.w_c.zero_()
            nn.init.eye_(layer.w_c[-dim:])


class Ranker(nn.Module):
    """Embeddings -> STCA -> RankMixer -> logit.

    A history row is the sum of its item's, action's and time's embeddings. A target is the event that it may
    become: its item with action 1, just now. RankMixer sees four tokens: what STCA found, the candidate, the user,
    and how much history there was with how popular the item was before. The first layer starts by looking up the
    candidate in the history, the others by averaging it; `use_lse` tells how often the candidate was there.
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
        self.time = nn.Embedding(TIME_BUCKETS, dim)
        self.user = nn.Embedding(num_users, dim)
        self.length = nn.Embedding(TIME_BUCKETS, dim)
        self.candidate = nn.Embedding(num_items, dim)
        self.counters = nn.EmbeddingBag(COUNTERS * COUNTER_BUCKETS, dim, mode="sum")
        stack = stca.nn.STCA(dim, num_layers, num_heads, share_ffn=True, use_lse=True)
        self.stca: nn.Module = stack
        self.mixer = stca.nn.RankMixer(4, dim)
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(dim, 1)
        for table in (self.user, self.candidate, self.length):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.normal_(self.counters.weight, std=0.1)
        nn.init.normal_(self.action.weight, std=0.5)
        with torch.no_grad():
            # Neighbouring times start alike.
            walk = torch.randn(TIME_BUCKETS, dim).cumsum(dim=0)
            self.time.weight.copy_(0.5 * (walk - walk.mean(dim=0)) / walk.std())
            for table in (self.action, self.time):
                table.weight[:, : dim // 2] = 0
        for i, layer in enumerate(stack.layers):
            assert isinstance(layer, stca.nn.STCALayer)
            start_attention(layer, sharpness=1.5 if i == 0 else 0.3)

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits [T]."""
        z = self.stca(
            self.target_rows(batch.targets),
            self.history_rows(batch.history),
            batch.target_offsets,
            batch.history_offsets,
            visible=batch.visible,
            history_index=batch.history_index,
        )
        return self.logits(z, batch.targets)

    def history_rows(self, history: Mapping[str, Tensor]) -> Tensor:
        """What STCA reads of events: [N, D]."""
        rows: Tensor = self.item(history["item_id"]) + self.action(history["label"]) + self.time(history["time_bucket"])
        return rows

    def target_rows(self, targets: Mapping[str, Tensor]) -> Tensor:
        """What STCA asks for targets: [T, D]."""
        rows: Tensor = self.item(targets["item_id"]) + self.action.weight[1] + self.time(targets["time_bucket"])
        return rows

    def logits(self, z: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Logits [T] from what STCA found, [T, D]."""
        slots = torch.arange(COUNTERS) * COUNTER_BUCKETS
        about = self.length(targets["length_bucket"]) + self.counters(targets["counters"] + slots)
        candidate, user = self.candidate(targets["item_id"]), self.user(targets["user_id"])
        tokens = torch.stack([z, self.dropout(candidate), self.dropout(user), about], dim=1)
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

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits [T]."""
        logits: Tensor = (self.item(batch.targets["item_id"]) + self.user(batch.targets["user_id"])).squeeze(
            1
        ) + self.constant
        return logits


class MeanPool(nn.Module):
    """What takes the place of STCA in the second baseline: the mean of the rows that a target sees."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fuse = stca.nn.SwiGLUFFN(2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(
        self, targets: Tensor, history: Tensor, target_offsets: Tensor, history_offsets: Tensor, **rows: Tensor | None
    ) -> Tensor:
        """As STCA's."""
        q = torch.zeros(len(targets), 1, history.shape[1])  # Attention with scores of 0 is the mean.
        mean = stca.ops.target_attention(
            q,
            history[:, None],
            None,
            target_offsets,
            history_offsets,
            visible=rows["visible"],
            history_index=rows["history_index"],
        )
        z: Tensor = self.down(self.fuse(torch.cat([mean[:, 0], targets], dim=1)))
        return z


def mean_pooled(num_items: int, num_users: int, dim: int = 64) -> Ranker:
    """The ranker with the mean of the history in place of STCA."""
    model = Ranker(num_items, num_users, dim, num_layers=1)
    model.stca = MeanPool(dim)
    return model
