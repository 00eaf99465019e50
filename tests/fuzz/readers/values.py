"""Changes of values, of JSON, and of safetensors, that keep the rest of them valid."""

import json
import struct
from random import Random
from typing import Any

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    127,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
)
TEXTS = (
    "",
    " ",
    "0",
    "-0",
    "007",
    "1e3",
    "nan",
    "inf",
    "true",
    "NULL",
    "\\N",
    "é",
    "\ud800",
    "\0",
    '"',
    "a,b",
    "\n",
    "x" * 300,
)
OTHERS: tuple[Any, ...] = (None, True, False, 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), [], {}, [[]])


def value(rng: Random) -> Any:
    """Any value that JSON has."""
    return rng.choice((rng.choice(INTEGERS), rng.choice(TEXTS), rng.choice(OTHERS), rng.randrange(-9, 99)))


def changed(x: Any, rng: Random) -> Any:
    """The same value with a part of it replaced, removed, doubled or moved."""
    if isinstance(x, dict) and x and rng.random() < 0.85:
        name, x = rng.choice([*x]), dict(x)
        match rng.randrange(8):
            case 0:
                del x[name]
            case 1:
                x[str(value(rng))] = x[name]
            case _:
                x[name] = changed(x[name], rng)
        return x
    if isinstance(x, list) and x and rng.random() < 0.85:
        at, x = rng.randrange(len(x)), list(x)
        match rng.randrange(8):
            case 0:
                del x[at]
            case 1:
                x.insert(at, x[at])
            case 2:
                x.insert(rng.randrange(len(x)), x.pop(at))
            case 3:
                return x * rng.choice((2, 30))
            case _:
                x[at] = changed(x[at], rng)
        return x
    if isinstance(x, int) and rng.random() < 0.5:
        return x + rng.choice((-1, 1, 2, 2**32))
    return value(rng)


def changed_json(data: bytes, rng: Random) -> bytes:
    """JSON with something changed, or as it is where it is none."""
    try:
        return json.dumps(changed(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        return data


def changed_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes flipped, cut, doubled or put in another place."""
    x = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(x) + 1)
        end = min(len(x), at + rng.choice((1, 1, 4, 8, 100)))
        match rng.randrange(6):
            case 0:
                x[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
            case 1:
                del x[at:end]
            case 2:
                x[at:at] = x[at:end]
            case 3:
                x[at:end] = bytes((b ^ (1 << rng.randrange(8))) for b in x[at:end])
            case 4:
                x[at:end] = rng.choice((b"\0", b"\xff", b",", b"\n", b'"', b"-", b"9")) * (end - at)
            case _ if rng.random() < 0.2:
                del x[at:]
    return bytes(x)


SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "I16": 2, "F16": 2, "BF16": 2, "U16": 2, "I32": 4, "F32": 4, "U32": 4}
SIZES |= {"I64": 8, "F64": 8, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "F4": 1}


def changed_safetensors(data: bytes, rng: Random) -> bytes:
    """Header or data changed; mostly with offsets that fit the shapes again."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
        names = [name for name in header if name != "__metadata__"]
        if rng.random() < 0.4 and content:
            parts = {name: content[slice(*header[name]["data_offsets"])] for name in names}
            name = rng.choice(names)
            parts[name] = changed_bytes(parts[name], rng)[: len(parts[name])].ljust(len(parts[name]), b"\0")
            return data[: 8 + length] + b"".join(parts.values())
        if rng.random() < 0.7 and names:
            entry = header[rng.choice(names)]
            if rng.random() < 0.3:
                entry["dtype"] = rng.choice([*SIZES])
            else:
                entry["shape"] = _shape(entry["shape"], rng)
        else:
            header = changed(header, rng)
        if rng.random() < 0.9:
            content = _fitted(header, content)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        RecursionError,
        OverflowError,
        MemoryError,
    ):
        return changed_bytes(data, rng)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content


def _shape(shape: list[int], rng: Random) -> list[int]:
    shape = list(shape)
    if rng.random() < 0.3:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, 1, 2, 2**40)))
    elif shape:
        at = rng.randrange(len(shape))
        shape[at] = rng.choice((0, 1, shape[at] + 1, max(0, shape[at] - 1), 2 ** rng.randrange(64)))
    return shape


def _fitted(header: Any, content: bytes) -> bytes:
    """The content as long as the shapes say, to which the offsets are set."""
    end, parts = 0, []
    for name, entry in header.items():
        if name != "__metadata__":
            size = SIZES[entry["dtype"]]
            for n in entry["shape"]:
                size *= n
            if not 0 <= size < 1 << 16:
                raise ValueError(size)
            parts.append(content[slice(*entry["data_offsets"])][:size].ljust(size, b"\1"))
            entry["data_offsets"] = [end, end := end + size]
    return b"".join(parts)
