"""What `soak.py` does again and again: requests that can be made again elsewhere, training, serving from a cache."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import stca
from stca.serving import HistoryCache, MissingUsersError

DIM, USERS, LONGEST = 32, 12, 400


def ragged(generator: np.random.Generator, count: int, longest: int) -> Tensor:
    """Offsets [count + 1] of random lengths."""
    return torch.from_numpy(np.append(0, generator.integers(0, longest + 1, count).cumsum()))


def model_of(seed: int) -> stca.nn.STCA:
    """A small model, the same in every process."""
    torch.manual_seed(seed)
    return stca.nn.STCA(DIM, num_layers=2, num_heads=2)


class Scored(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Requests with their scores, made by the worker that is asked; every one can be made again elsewhere."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(i)
        x, history = (torch.randn(n, DIM, generator=generator) for n in (3 + i, 20 * i))
        with torch.no_grad():
            z = model_of(0)(x, history, torch.tensor([0, len(x)]), torch.tensor([0, len(history)]))
        return x, history, z


def train_step(model: stca.nn.STCA, optimizer: torch.optim.Optimizer, generator: np.random.Generator) -> None:
    """One step on requests of random sizes."""
    R = int(generator.integers(1, 9))
    targets, rows = ragged(generator, R, 20), ragged(generator, R, LONGEST)
    optimizer.zero_grad()
    z = model(torch.randn(int(targets[-1]), DIM), torch.randn(int(rows[-1]), DIM), targets, rows)
    z.square().mean().nan_to_num().backward()
    optimizer.step()


class Serving:
    """A cache with one writer, any number of scorers, and every user's raw rows to compare with."""

    def __init__(self) -> None:
        self.model = model_of(0).requires_grad_(False)
        self.cache = HistoryCache(2, DIM, USERS * LONGEST // 3, page_rows=16)
        self.raw = torch.randn(USERS, LONGEST, DIM, generator=torch.Generator().manual_seed(1))
        self.written = [0] * USERS

    def write(self, generator: np.random.Generator) -> None:
        """Appends to a user, who may have been evicted, or forgets one."""
        user, more = int(generator.integers(USERS)), int(generator.integers(0, 40))
        begin = self.written[user] if user in self.cache else 0
        if begin + more > LONGEST or generator.random() < 0.05:
            self.cache.evict([user])
            return
        rows = self.raw[user, begin : begin + more]
        try:
            self.cache.extend_from(self.model.encode_history, [user], rows, torch.tensor([0, more]))
        except MemoryError:  # scorers hold what would have to go
            return
        self.written[user] = begin + more

    def score(self, generator: np.random.Generator) -> bool:
        """Scores a user from the cache and from the raw rows; False where the user is not there.

        Nothing is drawn from torch's own generator: a worker that is forked while a thread holds its lock seeds it at
        its start, and waits for ever.
        """
        user = int(generator.integers(USERS))
        x = torch.from_numpy(generator.standard_normal((int(generator.integers(1, 30)), DIM), dtype=np.float32))
        targets = torch.tensor([0, len(x)])
        try:
            selection = self.cache.select([user])
        except MissingUsersError:
            return False
        with selection as found, torch.no_grad():
            rows = self.raw[user, : int(found.history_offsets[1])]
            cached = self.model.attend(
                x, found.encoded, targets, found.history_offsets, history_index=found.history_index
            )
            whole = self.model(x, rows, targets, found.history_offsets)
        torch.testing.assert_close(cached, whole, rtol=1e-3, atol=1e-4)
        return True
