"""What a log keeps of its ids, and the table beside it, as `--ids` reads them: an input is a zip of both."""

import io
import json
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from readers import refused
from readers.values import changed_bytes, changed_json
from stca.data import Names
from stca.data.convert import main

_LOG, _TABLE = "log.parquet", "log.user_id.parquet"


def packed(files: dict[str, bytes]) -> bytes:
    """A zip in which the same files are the same bytes."""
    with zipfile.ZipFile(whole := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    """Its files, or none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {each.filename: archive.read(each) for each in archive.infolist() if each.file_size < 1 << 20}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, LookupError):
        return {}


def seeds() -> dict[str, bytes]:
    """A log whose users have names, and whose items are integers."""
    with TemporaryDirectory() as place, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        (log := Path(place, "log.csv")).write_text("user_id,item_id,timestamp,label\nann,5,100,1\nbob,6,101,0\n")
        main([str(log), str(out := Path(place, _LOG)), "--events"])
        return {"log": packed({path.name: path.read_bytes() for path in (out, Path(place, _TABLE))})}


def mutate(data: bytes, rng: Random) -> bytes:
    """Metadata, ids or bytes of one of both changed."""
    files = unpacked(data)
    if not files:
        return data
    name = rng.choice([*files])
    with suppress(pa.ArrowException, OSError, ValueError, TypeError, LookupError):
        if rng.random() < 0.7:
            table = pq.read_table(pa.BufferReader(files[name]))
            metadata = dict(pq.read_metadata(pa.BufferReader(files[name])).metadata or {})
            metadata.pop(b"ARROW:schema", None)
            if b"stca.log" in metadata:
                metadata[b"stca.log"] = changed_json(metadata[b"stca.log"], rng)
            elif table.num_columns and len(table):
                ids = table[0].to_pylist()
                ids[rng.randrange(len(ids))] = rng.choice(("ann", "", None, "x"))
                table = table.set_column(0, table.column_names[0], pa.array(ids, pa.string()))
            pq.write_table(table.replace_schema_metadata(metadata), out := io.BytesIO(), write_page_checksum=True)
            return packed(files | {name: out.getvalue()})
    return packed(files | {name: changed_bytes(files[name], rng)})


def check(data: bytes, folder: Path) -> None:
    """Names are those that the table holds, which are those of the digest; else the log or its table is named."""
    files = unpacked(data)
    for name in (_LOG, _TABLE):
        (folder / name).write_bytes(files.get(name, b""))
    try:
        names = Names.load(folder / _LOG)
    except ValueError as error:
        refused(error, folder)
        return
    kept = json.loads(pq.read_metadata(folder / _LOG).metadata[b"stca.log"])
    assert set(names.known) == set(kept)
    for column, digest in kept.items():
        if digest is None:
            assert names.known[column] == {}
        elif names.known[column]:
            ids = pq.read_table(folder / f"log.{column}.parquet")[column].cast(pa.binary()).to_pylist()
            assert list(names.known[column]) == [each.decode("utf-8", "surrogateescape") for each in ids]
            assert names._digest(column) == digest
