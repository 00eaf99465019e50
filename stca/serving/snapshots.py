"""Files of a cache's rows: safetensors, users in the order in which they were last used."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stca.files import whole_file
from stca.serving.pool import Pool


def write(path: Path | str, label: dict[str, str], pool: Pool) -> None:
    """Writes what the pool holds."""
    from safetensors.torch import save_file

    with pool.lock:
        users = dict(pool.users)
    slots = [pool.slots_of(history) for history in users.values()]
    places = np.concatenate([np.empty(0, dtype=np.int64), *slots])
    tensors = {
        "users": torch.frombuffer(bytearray(json.dumps([*users]).encode()), dtype=torch.uint8),
        "offsets": torch.tensor([0, *(len(own) for own in slots)]).cumsum(0),
        "times": torch.from_numpy(pool.times[places]),
    }
    index = torch.from_numpy(places).to(pool.device)
    for i, rows in enumerate(pool.rows):
        tensors |= {f"layer{i}.{part}": values for part, values in enumerate(rows.take(index))}
    with whole_file(path) as part:
        save_file(tensors, part, metadata=label)


def read(path: Path | str, label: dict[str, str], pool: Pool) -> None:
    """Adds what a file holds to a pool."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if found == label else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: must be a whole snapshot of a HistoryCache: {error}") from error
    if found != label:
        raise ValueError(f"{path}: must be a snapshot of {label}, got one of {found}")
    users = json.loads(bytes(tensors["users"].tolist()))
    offsets = tensors["offsets"].numpy()
    layers = [[tensors[f"layer{i}.{part}"] for part in range(len(rows.parts))] for i, rows in enumerate(pool.rows)]
    with pool.writer:
        for u in range(len(users)):
            own = slice(int(offsets[u]), int(offsets[u + 1]))

            def put(slots: Tensor, own: slice = own) -> None:
                for rows, parts in zip(pool.rows, layers, strict=True):
                    rows.put(slots, [values[own] for values in parts])

            pool.add(
                "HistoryCache.load", [users[u]], np.array([0, own.stop - own.start]), tensors["times"][own].numpy(), put
            )
