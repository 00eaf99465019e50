"""Files of a cache's rows: safetensors, users in the order in which they were last used."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from stca.files import whole_file
from stca.serving.pool import Pool, User, check_users


def write(path: Path | str, label: dict[str, str], pool: Pool) -> None:
    """Writes what the pool holds."""
    from safetensors.torch import save_file

    with pool.lock:
        users = dict(pool.users)
    slots = [pool.slots_of(history) for history in users.values()]
    places = np.concatenate([np.empty(0, dtype=np.int64), *slots])
    tensors = {
        "users": torch.frombuffer(bytearray(json.dumps([*users]).encode()), dtype=torch.uint8),
        "offsets": torch.from_numpy(np.cumsum([0, *(len(own) for own in slots)])),
        "times": torch.from_numpy(pool.times[places]),
        "last_times": torch.from_numpy(np.array([history.last_time for history in users.values()], dtype=np.int64)),
    }
    index = torch.from_numpy(places).to(pool.device)
    for i, rows in enumerate(pool.rows):
        tensors |= {f"layer{i}.{part}": values for part, values in enumerate(rows.take(index))}
    # safetensors has a temporary file of its own, beside what it writes: a killed process leaves both in this folder.
    with whole_file(path) as part, TemporaryDirectory(".part", f"{part.stem}.", part.parent) as folder:
        save_file(tensors, Path(folder, "rows"), metadata=label)
        Path(folder, "rows").replace(part)


def read(path: Path | str, label: dict[str, str], pool: Pool) -> None:
    """Adds users whom a file holds and the pool does not, those used last first, each before all who are there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if found == label else {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, RuntimeError) as error:  # torch's, of sizes that no tensor has
        raise ValueError(f"{path}: must be a whole snapshot of a HistoryCache: {error}") from error
    if found != label:
        raise ValueError(f"{path}: must be a snapshot of {label}, got one of {found}")
    try:
        users = _checked(tensors, pool)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    offsets = tensors["offsets"].numpy()
    layers = [[tensors[f"layer{i}.{part}"] for part in range(len(rows.parts))] for i, rows in enumerate(pool.rows)]
    with pool.writer:
        for u in reversed(range(len(users))):
            own = slice(int(offsets[u]), int(offsets[u + 1]))
            with pool.lock:
                room = pool.pages.free_count * pool.page_rows if len(pool.users) < len(pool.times) else -1
            if users[u] in pool.users or own.stop - own.start > room:
                continue

            def put(slots: Tensor, own: slice = own) -> None:
                for rows, parts in zip(pool.rows, layers, strict=True):
                    rows.put(slots, [values[own] for values in parts])

            count, times = np.array([0, own.stop - own.start]), tensors["times"][own].numpy()
            pool.add("HistoryCache.load", [users[u]], count, times, put)
            with pool.lock:
                if users[u] in pool.users:  # nobody evicted them since
                    last_time = int(tensors["last_times"][u])
                    pool.users[users[u]] = replace(pool.users[users[u]], last_time=last_time)
                    pool.users.move_to_end(users[u], last=False)


def _checked(tensors: dict[str, Tensor], pool: Pool) -> list[User]:
    """The users of a file, all of which is looked at before any of it is taken in.

    Raises:
        ValueError: what `write` could not have written, by the tensor.
    """
    users = _users(tensors)
    count, rows = (tensors[name].numel() if name in tensors else 0 for name in ("users", "times"))
    wanted = {"users": _form(torch.uint8, count), "offsets": _form(torch.int64, len(users) + 1)}
    wanted |= {"times": _form(torch.int64, rows), "last_times": _form(torch.int64, len(users))}
    for i, layer in enumerate(pool.rows):
        wanted |= {f"layer{i}.{n}": _form(part.dtype, rows, *part.shape[1:]) for n, part in enumerate(layer.parts)}
    got = {name: _form(x.dtype, *x.shape) for name, x in tensors.items()}
    for name in {**wanted, **got}:
        if wanted.get(name) != got.get(name):
            raise ValueError(f"tensor {name} must be {wanted.get(name)}, got {got.get(name)}")
    offsets, times, last_times = (tensors[name].numpy() for name in ("offsets", "times", "last_times"))
    if offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"tensor offsets must go from 0 to the {rows} rows, and never fall")
    some = offsets[1:] > offsets[:-1]  # users who have rows
    within = np.ones(rows, dtype=bool)
    within[offsets[:-1][some]] = False
    if (times[1:] < times[:-1])[within[1:]].any() or (last_times[some] < times[offsets[1:][some] - 1]).any():
        raise ValueError("tensors times and last_times must never fall within a user")
    return users


def _users(tensors: dict[str, Tensor]) -> list[User]:
    try:
        users: list[User] = json.loads(bytes(tensors["users"].flatten().tolist()))
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"tensor users must be JSON: {error!r}") from error
    if not isinstance(users, list) or any(type(user) not in (int, str) for user in users):
        raise ValueError("tensor users must be a list of integers and texts")
    check_users("tensor users", users)
    if len(set(users)) < len(users):
        raise ValueError(f"tensor users must differ, got {len(users)} of whom {len(set(users))} differ")
    return users


def _form(dtype: torch.dtype, *shape: int) -> str:
    return f"{dtype} {list(shape)}"
