"""Files of `HistoryCache.snapshot`, beside what safetensors itself reads."""

import json
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from caches import selected
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from readers import refused
from readers.values import changed_bytes, changed_json, changed_safetensors
from stca.serving import HistoryCache

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.int8)}


def _cache(storage: torch.dtype) -> HistoryCache:
    return HistoryCache(2, 4, 2048, storage=storage, page_rows=4, encoder="one")


def seeds() -> dict[str, bytes]:
    """A file of each storage, and one of nobody."""
    found = {}
    with TemporaryDirectory() as folder:
        for name, dtype in _DTYPES.items():
            cache, generator = _cache(dtype), torch.Generator().manual_seed(1)
            for user, n in (("b\ud800", 5), (3, 0), ("3", 9), ("b\ud800", 2)):
                rows = [torch.randn(n, 4, generator=generator) for _ in range(2)]
                cache.append(user, rows, range(n) if user == "3" else None)
            cache.keep("3", 6)
            cache.snapshot(path := Path(folder, "cache"))
            found[name] = path.read_bytes()
        _cache(torch.float32).snapshot(path)
        return found | {"nobody": path.read_bytes()}


def mutate(data: bytes, rng: Random) -> bytes:
    """The header or a tensor changed, and the users as what they are."""
    if rng.random() < 0.2:
        with suppress(SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError):
            return _regrouped(data, rng)
    begin, end = data.rfind(b"["), data.rfind(b"]") + 1
    if rng.random() < 0.2 and 0 <= begin < end:
        users = changed_json(data[begin:end], rng)
        return data[:begin] + users[: end - begin].ljust(end - begin) + data[end:]
    return (changed_bytes if rng.random() < 0.2 else changed_safetensors)(data, rng)


def _regrouped(data: bytes, rng: Random) -> bytes:
    """The same rows, of users some more or fewer."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = load(data)
    users, ends = json.loads(bytes(tensors["users"].tolist())), tensors["offsets"].tolist()
    last = tensors["last_times"].tolist()
    if rng.random() < 0.6 or len(users) < 2:
        at = rng.randrange(len(users) + 1)
        users.insert(at, rng.choice((rng.randrange(99), f"u{rng.randrange(99)}")))
        ends.insert(at, rng.choice((ends[at], ends[max(0, at - 1)])))
        last.insert(at, rng.choice((0, 10**6, -(2**63))))
    else:
        at = rng.randrange(len(users) - 1)
        del users[at], ends[at + 1], last[at]
    tensors |= {"users": torch.tensor(list(json.dumps(users).encode()), dtype=torch.uint8)}
    tensors |= {"offsets": torch.tensor(ends), "last_times": torch.tensor(last)}
    return save(tensors, header.get("__metadata__"))


def check(data: bytes, folder: Path) -> None:
    """All users of a valid file are there afterwards, with their own rows and times; of another, nobody is."""
    (path := folder / "cache").write_bytes(data)
    label, tensors = _read(path)
    storage = _DTYPES.get(label.get("storage", ""), torch.float32)
    cache = _cache(storage)
    users = _users(tensors, storage) if label == cache._label() else None
    try:
        cache.load(path)
    except ValueError as error:
        refused(error, path)
    assert cache.statistics().users == len(users or ())
    if users is None:
        return
    ends = tensors["offsets"].tolist()
    for user, begin, end, last in zip(users, ends, ends[1:], tensors["last_times"].tolist(), strict=False):
        with cache.select([user]) as chosen:
            rows = selected(chosen)
        for layer, own in enumerate(rows):
            expected = tensors[f"layer{layer}.0"][begin:end].float()
            if storage == torch.int8:
                expected = expected * tensors[f"layer{layer}.1"][begin:end]
            assert torch.equal(own.view(torch.uint8), expected.view(torch.uint8)) or torch.equal(
                own.nan_to_num(7), expected.nan_to_num(7)
            )
        times = tensors["times"][begin:end].tolist()
        for until in {*times}:
            with cache.select([user], until=until) as chosen:
                assert int(chosen.history_offsets[1]) == sum(time < until for time in times)
        assert cache.last_time(user) == (None if last == -(2**63) else last)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}, {}


def _users(tensors: dict[str, Tensor], storage: torch.dtype) -> list[int | str] | None:
    """The users of a file in which everything fits, else None."""
    parts = {"0": (storage, 4)} | ({"1": (torch.float32, 1)} if storage == torch.int8 else {})
    wanted = {f"layer{i}.{part}" for i in range(2) for part in parts} | {"users", "offsets", "times", "last_times"}
    if set(tensors) != wanted or tensors["users"].dtype != torch.uint8 or tensors["users"].dim() != 1:
        return None
    try:
        users = json.loads(bytes(tensors["users"].tolist()))
    except (ValueError, RecursionError):
        return None
    if not isinstance(users, list) or any(type(user) not in (int, str) for user in users) or len({*users}) < len(users):
        return None
    numbers = [tensors[name] for name in ("offsets", "times", "last_times")]
    if any(x.dtype != torch.int64 or x.dim() != 1 for x in numbers):
        return None
    ends, times, last = (x.tolist() for x in numbers)
    if len(ends) != len(users) + 1 or len(last) != len(users) or ends[0] != 0 or ends[-1] != len(times):
        return None
    if ends != sorted(ends):
        return None
    for layer in range(2):
        for part, (dtype, width) in parts.items():
            x = tensors[f"layer{layer}.{part}"]
            if x.dtype != dtype or list(x.shape) != [len(times), width]:
                return None
    for begin, end, latest in zip(ends, ends[1:], last, strict=False):
        own = [*times[begin:end], latest]
        if begin < end and own != sorted(own):
            return None
    return users
