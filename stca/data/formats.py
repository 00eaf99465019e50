"""Event logs as others publish them: which of their columns is what, and how their cells are to be read."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from typing import Literal

import pyarrow as pa

Kind = Literal["id", "text", "int", "float"]
NULLS = (
    *(
        "",
        "\\N",
        "NULL",
        "Null",
        "null",
        "(null)",
        "NIL",
        "nil",
        "None",
        "NONE",
        "none",
        "NaN",
        "nan",
        "-NaN",
        "-nan",
        "NaT",
    ),
    *("NA", "<NA>", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND"),
)
COMPRESSIONS = ("detect", "gzip", "bz2", "zstd", "lz4", "brotli", "none")
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class LogFormat:
    """Where a log keeps what an event is.

    Read, every log has the columns user_id, item_id and timestamp (s, int64), request_id (int64, or text where they are
    no integers; null where the log has none), label (float32), and whatever else was asked for: a name that begins with
    `label_` is what came of an event, known only afterwards; any other is a feature of the event, known before.

    Args:
        columns: name of ours to name of theirs, which every file must have: user_id, item_id, timestamp, label, and any
            more. Without `label`, every event has label 1.
        extra: the same, of columns that are taken where the files have them.
        delimiter: of text files, one ASCII character.
        header: names of the columns of a text file that does not begin with them; "" for one that is not needed.
        per_second: units of a timestamp in a second, 0.2 for units of 5 s. None: told from the values, which must lie
            between the years 1990 and 2100 in one of s, ms, us and ns; if they do in none, seconds. A warning names
            any unit but seconds.
        time_format: of timestamps that are text and not as ISO 8601 has them, with the directives of strptime but %f
            and %Z.
        positive: the least value that becomes label 1, or the texts that do; others 0. None: labels are 0 and 1.
        kinds: of further columns: "id" becomes a number as ids do, "int" is int64, "float" is float64. Of user_id,
            item_id and request_id: "int" (nothing else is taken) or "text" (every id is numbered). What is not named
            here is told from all of its values: integers if all are, else ids are text and features float64.
        nulls: texts that stand for an empty cell.
        compression: of text files: "gzip", "bz2", "zstd", "lz4", "brotli", "none", or told from their first bytes, as
            xz and zip (of one file) are too.
        encoding: of text files.
        quoted: whether '"' quotes cells of text files.
        impressions: a column whose cells hold several targets, `ITEM-LABEL ITEM-LABEL`: it is read as two columns of
            this name and `.item` and `.label` behind it.

    Raises:
        ValueError: a column that has no name, would take the place of another, or is of a kind that there is not; or
            anything else that no log can have.
    """

    columns: Mapping[str, str]
    extra: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    header: tuple[str, ...] | None = None
    per_second: float | None = None
    time_format: str | None = None
    positive: float | tuple[str, ...] | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    nulls: tuple[str, ...] = NULLS
    compression: str = "detect"
    encoding: str = "utf8"
    quoted: bool = True
    impressions: str | None = None

    def __post_init__(self) -> None:
        ours = [*self.columns, *self.extra]
        for name in ("user_id", "item_id", "timestamp"):
            if name not in self.columns:
                raise ValueError(f"LogFormat: columns must name {name}, got {list(self.columns)}")
        if len(set(ours)) < len(ours):
            raise ValueError(f"LogFormat: columns and extra must name a column once, got {ours}")
        for name, kind in self.kinds.items():
            allowed = _KINDS_OF.get(name, () if is_label(name) else ("id", "int", "float"))
            if name not in ours or kind not in allowed:
                raise ValueError(f"LogFormat: the kind of {name} must be one of {list(allowed)}, got {kind!r}")
        if self.impressions in self.wanted():
            apart = f"{self.impressions}.item and {self.impressions}.label"
            raise ValueError(f"LogFormat: columns and extra must name {apart}, got {self.impressions}, the impressions")
        if self.per_second is not None and not 1e-6 <= self.per_second <= 1e15:
            raise ValueError(f"LogFormat: per_second must be positive, 1e-6 to 1e15, got {self.per_second}")
        taken = ("\0", "\r", "\n", '"') if self.quoted else ("\0", "\r", "\n")
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in taken:
            wanted = "one ASCII character that ends no line and is no quote"
            raise ValueError(f"LogFormat: delimiter must be {wanted}, got {self.delimiter!r}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"LogFormat: compression must be one of {list(COMPRESSIONS)}, got {self.compression!r}")
        if any(directive in (self.time_format or "") for directive in ("%f", "%Z")):
            raise ValueError(f"LogFormat: time_format must be without %f and %Z, got {self.time_format!r}")
        texts = isinstance(self.positive, tuple) and self.positive and all(self.positive)
        if (
            not texts
            and self.positive is not None
            and not (isinstance(self.positive, Real) and isfinite(self.positive))
        ):
            raise ValueError(f"LogFormat: positive must be a number or a tuple of texts, got {self.positive!r}")
        try:
            codecs.getincrementaldecoder(self.encoding)().decode(pa.py_buffer("".encode(self.encoding)), final=True)
        except (LookupError, ValueError, AttributeError) as error:  # punycode takes none of Arrow's buffers
            raise ValueError(f"LogFormat: encoding must be one that Python has, got {self.encoding!r}") from error

    def check_roles(self, where: str) -> None:
        """Refuses columns of theirs that are read as two things of which one is what came of the event.

        Raises:
            ValueError: the column, by what it would be: a feature would tell the label, or an id the outcome.
        """
        for theirs in self.wanted():
            roles = [ours for ours, other in {**self.columns, **self.extra}.items() if other == theirs]
            main = [ours for ours in roles if ours in (*IDS, "timestamp")]
            if len(main) > 1 or (any(map(is_label, roles)) and not all(map(is_label, roles))):
                raise ValueError(f"{where}: column {theirs} must be one of {' and '.join(roles)}, got all of them")

    def wanted(self) -> list[str]:
        """Their names of all columns that are asked for, each once."""
        return list(dict.fromkeys([*self.columns.values(), *self.extra.values()]))

    def found(self, present: list[str]) -> dict[str, str]:
        """Name of ours to name of theirs of what is to be read of a file with these columns."""
        return {**self.columns, **{ours: theirs for ours, theirs in self.extra.items() if theirs in present}}


def is_label(ours: str) -> bool:
    """Whether a column is what came of an event."""
    return ours == "label" or ours.startswith("label_")


IDS = ("user_id", "item_id", "request_id")
_KINDS_OF = {**dict.fromkeys(IDS, ("int", "text")), "timestamp": ()}
GENERIC = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "label": "label"}
_REQUEST = {"request_id": "request_id"}
_RATED = {**GENERIC, "label": "rating"}
_KUAIRAND_LABELS = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "play_time_ms")

FORMATS = {
    "generic": LogFormat(GENERIC, _REQUEST),
    "ratings": LogFormat(_RATED, _REQUEST, positive=4),
    # RecBole's: the header carries types, user_id:token, and a quote is a character like any other.
    "inter": LogFormat(
        {name: f"{name}:{kind}" for name, kind in (("user_id", "token"), ("item_id", "token"), ("timestamp", "float"))}
        | {"label": "rating:float"},
        delimiter="\t",
        positive=4,
        quoted=False,
    ),
    "movielens": LogFormat({**_RATED, "user_id": "userId", "item_id": "movieId"}, positive=4),
    "movielens-100k": LogFormat(
        _RATED, delimiter="\t", header=("user_id", "item_id", "rating", "timestamp"), positive=4
    ),
    # 1::1193::5::978300760, that is, an empty column between any two.
    "movielens-1m": LogFormat(
        _RATED, delimiter=":", header=("user_id", "", "item_id", "", "rating", "", "timestamp"), positive=4
    ),
    "kuairand": LogFormat(
        {"user_id": "user_id", "item_id": "video_id", "timestamp": "time_ms", "label": "is_click"},
        {f"label_{name.removeprefix('is_')}": name for name in _KUAIRAND_LABELS}
        | {"duration_ms": "duration_ms", "tab": "tab"},
        per_second=1000,
    ),
    # The files "ratings only" of the 2018 edition; those of 2014 have the user before the item.
    "amazon-2018": LogFormat(_RATED, header=("item_id", "user_id", "rating", "timestamp"), positive=4),
    "amazon-2023": LogFormat({**_RATED, "item_id": "parent_asin"}, per_second=1000, positive=4),
    # What a user did beyond looking at an item is label 1.
    "taobao": LogFormat(
        {**GENERIC, "label": "behavior", "category": "category"},
        header=("user_id", "item_id", "category", "behavior", "timestamp"),
        positive=("buy", "cart", "fav"),
        kinds={"category": "int"},
    ),
    # H&M's purchases alone, each of label 1, by the day; article ids have leading zeros.
    "hm": LogFormat(
        {"user_id": "customer_id", "item_id": "article_id", "timestamp": "t_dat", "price": "price"},
        {"sales_channel_id": "sales_channel_id"},
        kinds={"user_id": "text", "item_id": "text", "price": "float"},
    ),
    # Listens: seconds since the log began, in steps of 5; label 1 where half of a track was played.
    "yambda": LogFormat(
        {"user_id": "uid", "item_id": "item_id", "timestamp": "timestamp", "label": "played_ratio_pct"},
        {"is_organic": "is_organic", "track_length_seconds": "track_length_seconds"},
        per_second=1,
        positive=50,
    ),
    # behaviors.tsv: a line is a request, and what was shown lies in one cell of it.
    "mind": LogFormat(
        {"user_id": "user", "item_id": "impressions.item", "timestamp": "time", "label": "impressions.label"}
        | {"request_id": "impression"},
        delimiter="\t",
        header=("impression", "user", "time", "history", "impressions"),
        time_format="%m/%d/%Y %I:%M:%S %p",
        quoted=False,
        impressions="impressions",
    ),
}
# Files without a header, told by their name.
BY_NAME = {
    "u.data": "movielens-100k",
    "ratings.dat": "movielens-1m",
    "userbehavior.csv": "taobao",
    "behaviors.tsv": "mind",
}
