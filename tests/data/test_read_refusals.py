"""What is no log is refused by what it is, and what cannot be meant is said."""

import gzip
import os
from pathlib import Path

import pytest
from logs import HEADER, events, parquet, write

from stca.data.convert import main


def test_what_is_neither_text_nor_plain_parquet_is_named(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", item_id=[9]).read_bytes()
    others = {
        gzip.compress(whole): "Parquet that is packed",
        b"PARE" + whole[4:]: "Parquet that is encrypted",
        b'{"user": 1}\n': "JSON",
        f"{HEADER}1,2,3,1\n".encode("utf-16-le"): "UTF-16 or bytes of 0",
    }
    for content, kind in others.items():
        (path := tmp_path / "log.csv").write_bytes(content)
        with pytest.raises(ValueError, match=rf"log.csv: must be .*, got .*{kind}"):
            events(path)
    path = write(tmp_path / os.fsdecode(b"l\xe9g.csv"), "1,2,3,1")
    with pytest.raises(ValueError, match=r"l\\xe9g.csv': must be a name in UTF-8"):
        events(path)


def test_options_of_text_are_not_dropped(tmp_path: Path) -> None:
    path, out = parquet(tmp_path / "log.parquet", item_id=[9]), tmp_path / "out.parquet"
    for option in (["--header", "a,b"], ["--delimiter", "|"], ["--encoding", "latin-1"], ["--no-quotes"]):
        with pytest.raises(ValueError, match=rf"{option[0]} must be without Parquet and clones, got no text file"):
            main([str(path), str(out), *option])
    main(
        [
            str(write(tmp_path / "log.csv", "1;2;3;1", header="user_id;item_id;timestamp;label\n")),
            str(out),
            "--delimiter",
            ";",
        ]
    )
