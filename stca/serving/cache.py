"""The encoded histories of many users in one pool per layer, for one writer and many readers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stca.nn.attention import Keep
from stca.serving import snapshots
from stca.serving.pages import Integers, integers, whole
from stca.serving.pool import NO_TIME, Pool, User, check_users
from stca.serving.rows import STORAGES
from stca.serving.selection import Selection, Statistics, for_each


class HistoryCache:
    """Encoded rows of many users, in pages of one pool per layer.

    A row's encoding depends on that row alone, so what is new is encoded and appended, and nothing else changes. One
    thread writes at a time, others wait; readers wait for no encoding, and see each user's history whole, as it was
    before or after an append. Rows that a `Selection` refers to are not overwritten before it is released.

    Memory is taken once: capacity_rows * layers * D elements of `storage`, or twice as many where keys and values are
    kept. Where pages are used up, those who have not been used for longest are evicted.

    Args:
        layers: M, encodings of every row.
        dim: D.
        capacity_rows: of all users, rounded up to whole pages. Each user's first and last page are filled in part.
        dtype: of rows as they come and as `STCA.attend` takes them.
        storage: of rows in the pool: `dtype` (None), another float dtype, or torch.int8 with a scale for each row, of
            keys and values for each head. Where it is neither `dtype` nor int8, `select` copies and converts what it
            selects.
        keep: what a row is, as of `STCA.encode_history`: "rows", encoded and of width D, for one head, or where memory
            counts; "keys_values", for 2 heads and more, to which rows cost H times the FLOPs at each request.
        num_heads: H, for keys and values.
        page_rows: of a page. Attention on the CPU reads runs of 32 rows in place, 64 of bfloat16.
        device: of the pools; on a GPU writers and readers use one stream.
        encoder: names the weights that made the rows: snapshots of another encoder are refused.

    Raises:
        ValueError: sizes below 1, heads that do not divide D, or what is none of those.

    Example:
        >>> model = stca.nn.STCA(dim=16, num_layers=2, num_heads=4).requires_grad_(False)
        >>> cache = stca.serving.HistoryCache(layers=2, dim=16, capacity_rows=4096)
        >>> cache.extend_from(model.encode_history, ["ann", "bob"], torch.randn(9, 16), torch.tensor([0, 5, 9]))
        >>> with cache.select(["bob", "ann"], last=3) as histories:
        ...     offsets = torch.tensor([0, 1, 3]), histories.history_offsets
        ...     index = histories.history_index
        ...     z = model.attend(torch.randn(3, 16), histories.encoded, *offsets, history_index=index)
        >>> z.shape, histories.history_offsets.tolist()
        (torch.Size([3, 16]), [0, 3, 6])
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        capacity_rows: int,
        *,
        dtype: torch.dtype = torch.float32,
        storage: torch.dtype | None = None,
        keep: Keep = "rows",
        num_heads: int = 1,
        page_rows: int = 256,
        device: torch.device | str = "cpu",
        encoder: str = "",
    ) -> None:
        sizes = {"layers": layers, "dim": dim, "capacity_rows": capacity_rows, "num_heads": num_heads}
        sizes["page_rows"] = page_rows
        checked = (whole("HistoryCache", name, size, least=1) for name, size in sizes.items())
        layers, dim, capacity_rows, num_heads, page_rows = checked
        storage = storage or dtype
        if dtype not in STORAGES[:-1] or storage not in STORAGES:
            raise ValueError(f"HistoryCache: dtype and storage must be of {STORAGES}, got {dtype} and {storage}")
        if keep not in ("rows", "keys_values"):
            raise ValueError(f"HistoryCache: keep must be 'rows' or 'keys_values', got {keep!r}")
        if dim % num_heads != 0:
            raise ValueError(f"HistoryCache: num_heads must divide dim = {dim}, got {num_heads}")
        self.layers, self.dtype, self.storage, self.encoder = layers, dtype, storage, encoder
        self.row_shape = (dim,) if keep == "rows" else (2, num_heads, dim // num_heads)
        self._pool = Pool(layers, self.row_shape, capacity_rows, dtype, storage, page_rows, torch.device(device))

    def append(self, user: User, rows: Sequence[Tensor], times: Sequence[int] | Tensor | None = None) -> None:
        """Puts encoded rows behind those of a user, who need not be there yet; n may be 0.

        Args:
            user: an integer of 64 bits or a text.
            rows: [n, D] of every layer, or [n, 2, H, D / H], what `STCA.encode_history` gave.
            times: [n], when each row happened, never falling, for `until`; in any unit. None: before all times.

        Raises:
            TypeError: a user that is neither.
            ValueError: rows of another shape, dtype, device or number of layers, or times that fall.
            MemoryError: more rows than there is room for, though everybody else but whom a `Selection` holds may go.
        """
        count = len(rows[0]) if len(rows) and isinstance(rows[0], Tensor) and rows[0].dim() else 0
        self._pool.append("HistoryCache.append", [user], rows, np.array([0, count]), times)

    def extend_from(
        self,
        encode: Callable[[Tensor], Sequence[Tensor]],
        users: Sequence[User],
        history: Tensor,
        offsets: Tensor,
        times: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Encodes the new raw rows of several users in one batch and appends them, of all users or of none.

        Args:
            encode: `STCA.encode_history`, with `keep="keys_values"` in a `partial` where those are kept.
            users: [U], each once.
            history: [N, D], the new rows.
            offsets: [U + 1] of integers, user u owns rows offsets[u]:offsets[u+1].
            times: [N], as of `append`.

        Raises:
            ValueError: a user twice, or offsets that do not fit; what `append` refuses, it refuses as that does.
        """
        users, ends = (
            check_users("HistoryCache.extend_from", users),
            integers("HistoryCache.extend_from", "offsets", offsets),
        )
        if ends.shape != (len(users) + 1,) or ends[0] != 0 or ends[-1] != len(history) or (np.diff(ends) < 0).any():
            raise ValueError(
                f"HistoryCache.extend_from: offsets must be [U + 1] for {len(users)} users, from 0 to N = "
                f"{len(history)}, never falling, got {ends.tolist()}"
            )
        self._pool.append("HistoryCache.extend_from", users, encode(history), ends, times)

    def select(
        self,
        users: Sequence[User],
        last: int | Sequence[int] | None = None,
        until: int | Sequence[int] | None = None,
    ) -> Selection:
        """Histories of users [U], in that order, for `STCA.attend`; a user may be there several times.

        Args:
            users: all in the cache.
            last: the most recent rows of each that remain, for all users or for each.
            until: only rows strictly before this time, for all users or for each.

        Raises:
            MissingUsersError: users who are not there.
            ValueError: `last` below 0, or another number of them than users.
        """
        pool, users = self._pool, check_users("HistoryCache.select", users)
        lasts, untils = for_each("last", last, users), for_each("until", until, users)
        if lasts is not None and (lasts < 0).any():
            raise ValueError(f"HistoryCache.select: last must be at least 0, got {lasts.min()}")
        slots: list[Integers] = [np.empty(0, dtype=np.int64)]
        with pool.lock:
            histories = pool.look_up("HistoryCache.select", users, counts=True)
            for i, history in enumerate(histories):
                own = pool.slots_of(history)
                if untils is not None:
                    own = own[: np.searchsorted(pool.times[own], untils[i])]
                slots.append(own if lasts is None else own[max(0, len(own) - lasts[i]) :])
            distinct = dict(zip(users, histories, strict=True)).values()
            held = np.concatenate([slots[0], *(history.pages for history in distinct)])
            pool.pages.hold(held)
        try:
            index = torch.from_numpy(np.concatenate(slots)).to(pool.device)
            offsets = torch.from_numpy(np.cumsum([len(own) for own in slots])).to(pool.device)
            selection = Selection([rows.kept for rows in pool.rows], index, offsets, lambda: pool.pages.let_go(held))
        except BaseException:
            pool.pages.let_go(held)
            raise
        if self.storage in (self.dtype, torch.int8):
            return selection
        with selection:
            return Selection([rows.read(index) for rows in pool.rows], None, offsets, lambda: None)

    def keep(self, user: User, last: int) -> None:
        """Forgets all but the `last` rows of a user. Pages that hold none of them become free.

        Raises:
            MissingUsersError: who is not there.
            ValueError: `last` below 0.
        """
        last, [user] = whole("HistoryCache.keep", "last", last, least=0), check_users("HistoryCache.keep", [user])
        with self._pool.writer, self._pool.lock:
            [history] = self._pool.look_up("HistoryCache.keep", [user])
            self._pool.keep(user, history, last)

    def evict(self, users: Iterable[User] = (), *, before: int | None = None, free_rows: int = 0) -> int:
        """Forgets users: those named, those whose last row is from before a time, and then those unused for longest.

        Args:
            users: any iterable of them; who is not there is passed over.
            before: a time as of `append`.
            free_rows: users go until so many rows are free, or nobody is left.

        Returns:
            Their number.
        """
        users, free_rows = check_users("HistoryCache.evict", users), whole("HistoryCache.evict", "free_rows", free_rows)
        before = None if before is None else whole("HistoryCache.evict", "before", before)
        with self._pool.writer, self._pool.lock:
            old = [u for u, history in self._pool.users.items() if before is not None and history.last_time < before]
            return self._pool.forget([*users, *old]) + self._pool.make_room(-(-free_rows // self._pool.page_rows))

    def last_time(self, user: User) -> int | None:
        """The time of the last row that a user ever got; None of one who is not there, or got none with a time."""
        [user] = check_users("HistoryCache.last_time", [user])
        with self._pool.lock:
            history = self._pool.users.get(user)
        return None if history is None or history.last_time == NO_TIME else history.last_time

    def length(self, user: User) -> int:
        """Rows of a user; 0 of one who is not there."""
        [user] = check_users("HistoryCache.length", [user])
        history = self._pool.users.get(user)
        return 0 if history is None else history.length

    def __contains__(self, user: User) -> bool:
        return check_users("HistoryCache", [user])[0] in self._pool.users

    def statistics(self) -> Statistics:
        """What the cache holds, and what it did so far."""
        pool = self._pool
        with pool.lock:
            held = len(pool.users), sum(history.length for history in pool.users.values())
            free = pool.pages.free_count * pool.page_rows
            return Statistics(*held, free, pool.hits, pool.misses, pool.appended, pool.evicted)

    def snapshot(self, path: Path | str) -> None:
        """Writes all histories to a safetensors file, which is whole or what it was; takes as much memory again.

        Raises:
            ValueError: a path that cannot be written to.
        """
        with self._pool.writer:
            snapshots.write(path, self._label(), self._pool)

    def load(self, path: Path | str) -> None:
        """Takes in what `snapshot` wrote of users who are not there, as if used before all who are: nobody is evicted.

        Raises:
            ValueError: a file that is cut, is no snapshot, or is of other layers, widths, storage or encoder, by path.
        """
        snapshots.read(path, self._label(), self._pool)

    def _label(self) -> dict[str, str]:
        names = "layers", "row_shape", "storage", "encoder"
        return {"format": "stca.serving.HistoryCache", **{name: str(getattr(self, name)) for name in names}}
