"""Times, labels and features are what the file says, or an error that names the row."""

import decimal
import warnings
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import events, parquet, write

from stca.data import FORMATS, LogFormat

NOW = 1_694_282_882
ALL = {name: name for name in ("user_id", "item_id", "timestamp", "label")}


def _times(path: Path | list[Path], **options: Any) -> list[int]:
    return [row["timestamp"] for row in events(path, **options)]


@pytest.mark.parametrize(("unit", "rate"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("kind", ["text", "int64", "float64", "real text"])
def test_units_are_found_and_said(tmp_path: Path, unit: str, rate: int, kind: str) -> None:
    values = [NOW * rate + rate - 1, (NOW + 5) * rate, 0]
    if kind == "text":
        path = write(tmp_path / "log.csv", *(f"1,1,{value},1" for value in values))
    elif kind == "real text":
        path = write(tmp_path / "log.csv", *(f"1,1,{value // 1000}e3,1" for value in values))
    else:
        path = parquet(tmp_path / "log.parquet", timestamp=pa.array(values).cast(kind, safe=False))
    with pytest.warns(UserWarning, match=rf"column timestamp is taken for {unit} since 1970, as 1\.?69428288"):
        found = _times(path)
    last = NOW + (kind == "float64" and unit == "ns")  # a float holds no such nanoseconds: it is the next second's
    assert found == [last, NOW + 5, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _times(path, form=LogFormat(ALL, per_second=rate)) == found
        assert _times(path, form=LogFormat(ALL, per_second=rate * 2))[1] == (NOW + 5) // 2


def test_seconds_are_quiet_and_mixtures_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", f"1,1,{NOW},1", "1,1,5,1", "1,1,-7,1", "1,1,1.9,1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _times(path) == [NOW, 5, -7, 1]
        assert _times(write(tmp_path / "small.csv", "1,1,0,1", "1,1,9,1")) == [0, 9]
    for other in (f"1,1,{NOW}000,1", f"1,1,{NOW}000000,1"):
        late = write(tmp_path / "late.csv", *[f"1,1,{NOW},1"] * 70_000, other)
        with pytest.raises(ValueError, match=rf"column timestamp must be of one unit, got {NOW} \(s.*{NOW}000"):
            events(late)
        with pytest.raises(ValueError, match=r"must be of one unit, got .*log.csv.*other.csv"):
            events([path, write(tmp_path / "other.csv", other)])
    for hour in ("12", "1230", ""):
        with pytest.raises(ValueError, match=rf"column timestamp must be times, got 20180920{hour} .*%Y%m%d"):
            events(write(tmp_path / "days.csv", f"1,1,20180920{hour},1", f"1,1,20181231{hour},1"))
    days = LogFormat(ALL, time_format="%Y%m%d")
    assert _times(tmp_path / "days.csv", form=days) == [1537401600, 1546214400]
    assert _times(parquet(tmp_path / "days.parquet", timestamp=[20180920]), form=days) == [1537401600]
    assert _times(write(tmp_path / "first.csv", "1,1,20190301,1"), form=days) == [1551398400]
    with pytest.raises(ValueError, match=r"none.csv: column timestamp must be times like .*, got '20190229' in row 2"):
        events(write(tmp_path / "none.csv", "1,1,20190301,1", "1,1,20190229,1"), form=days)


def test_typed_times_have_their_unit(tmp_path: Path) -> None:
    ns = NOW * 10**9 + 789
    for kind in ("s", "ms", "us", "ns"):
        for zone in (None, "Asia/Tokyo"):
            column = (
                pa.array([ns, -(10**9)], pa.int64())
                .cast(pa.timestamp("ns", zone))
                .cast(pa.timestamp(kind, zone), safe=False)
            )
            assert _times(parquet(tmp_path / "log.parquet", timestamp=column)) == [NOW, -1]
    for kind in (pa.date32(), pa.date64()):
        days = pa.array([date(2018, 9, 20), date(1969, 12, 31)], kind)
        assert _times(parquet(tmp_path / "log.parquet", timestamp=days)) == [1537401600, -86400]
    exact = pa.array([decimal.Decimal("1694282882.75"), decimal.Decimal("-0.25")])
    assert _times(parquet(tmp_path / "log.parquet", timestamp=exact)) == [NOW, -1]
    old = pa.array([253402300799, -62135596800], pa.timestamp("s"))
    path = parquet(tmp_path / "log.parquet", timestamp=old)
    assert _times(path) == [253402300799, -62135596800]
    pq.write_table(pq.read_table(path), path, use_deprecated_int96_timestamps=True)
    assert _times(path) == [253402300799, -62135596800]
    late = pa.array([253402300800], pa.timestamp("s"))
    with pytest.raises(ValueError, match=r"late.parquet: column timestamp must be a time in the years 1 to 9999, got"):
        events(parquet(tmp_path / "late.parquet", timestamp=late))
    for wrong in (pa.array([1], pa.time32("s")), pa.array([1], pa.duration("s")), pa.array([True]), pa.array([[1]])):
        with pytest.raises(ValueError, match=r"log.parquet: column timestamp must be numbers or times, got"):
            events(parquet(tmp_path / "log.parquet", timestamp=wrong))


def test_times_of_text(tmp_path: Path) -> None:
    at = datetime(2023, 9, 9, 18, 8, 2, tzinfo=UTC)
    east = at.astimezone(timezone(timedelta(hours=9))).isoformat()
    texts = [
        "2023-09-09 18:08:02",
        "2023-09-09T18:08:02.999999",
        east,
        "2023-09-09T18:08:02Z",
        "2023-09-09T18:08:02.123456789",
    ]
    path = write(tmp_path / "log.csv", *(f"1,1,{text},1" for text in texts))
    assert _times(path) == [int(at.timestamp())] * len(texts)
    assert _times(write(tmp_path / "log.csv", "1,1,2023-09-09,1", "1,1, 1969-12-31T23:59:59.5 ,1")) == [1694217600, -1]
    for wrong in ("soon", "2023-13-01", "1e400", "inf", "99999999999999999999", "2023-09-09 25:00:00"):
        with pytest.raises(
            ValueError, match=r"log.csv: column timestamp must .*, got '?(inf|1e.20|" + wrong + ")'? in row 3"
        ):
            events(write(tmp_path / "log.csv", f"1,1,{NOW},1", f"1,1,{NOW},1", f"1,1,{wrong},1"))
    far: int | float
    for far in (2**62, -(2**62), 1e300, float("nan"), float("-inf")):
        with pytest.raises(ValueError, match=r"log.parquet: column timestamp must .*, got .* in row 2"):
            events(parquet(tmp_path / "log.parquet", timestamp=[type(far)(0), far]))
        with pytest.raises(ValueError, match=r"log.parquet: column timestamp must .*, got .* in row 2"):
            events(
                parquet(tmp_path / "log.parquet", timestamp=[type(far)(0), far]),
                form=LogFormat(ALL, per_second=0.2),
            )


@pytest.mark.parametrize("wrong", ["", "NaN", "nan", "inf", "-inf", "yes", "2", "0.5", "1e400", "0x1"])
def test_labels_that_are_none(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"log.csv: column label must .* row 2$"):
        events(write(tmp_path / "log.csv", "1,1,1,1", f"1,1,1,{wrong}"))


@pytest.mark.parametrize("wrong", [None, float("nan"), float("inf"), -float("inf")])
def test_ratings_that_are_none(tmp_path: Path, wrong: float | None) -> None:
    path = parquet(tmp_path / "log.parquet", rating=[5.0, wrong])
    with pytest.raises(ValueError, match=r"log.parquet: column rating must .* in row 2"):
        events(path, form=FORMATS["ratings"])
    with pytest.raises(ValueError, match=r"log.parquet: column rating must .* in row 2"):
        events(path, form=LogFormat({**ALL, "label_stars": "rating"}))
    with pytest.raises(ValueError, match=r"log.parquet: column rating must .* in row 2"):
        events(path, form=LogFormat({**ALL, "stars": "rating"}))


def test_nulls_that_are_integers_and_times_of_half_a_float(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "-1,1,1,1", "7,1,1,1")
    with pytest.raises(ValueError, match=r"column user_id must not have empty values, got 1, the first in row 1"):
        events(path, form=LogFormat(ALL, nulls=("", "-1")))
    with pytest.raises(ValueError, match="column timestamp must be numbers or times, got float"):
        events(parquet(tmp_path / "log.parquet", timestamp=pa.array([1.6e9], pa.float32())))


def test_labels_of_any_type(tmp_path: Path) -> None:
    assert [row["label"] for row in events(write(tmp_path / "log.csv", "1,1,1,True", "1,1,1,false"))] == [1, 0]
    for column in (
        pa.array([True, False]),
        pa.array([1, 0], pa.uint8()),
        pa.array([1.0, -0.0]),
        pa.array(["1", "0.0"]),
    ):
        assert [row["label"] for row in events(parquet(tmp_path / "log.parquet", label=column))] == [1, 0]
    with pytest.raises(ValueError, match=r"column seconds must be finite, got inf in row 2"):
        events(
            parquet(tmp_path / "log.parquet", seconds=[1.0, 1e39]), form=LogFormat({**ALL, "label_seconds": "seconds"})
        )


def test_features_have_the_type_of_all_their_values(tmp_path: Path) -> None:
    form = LogFormat({**ALL, "price": "price"})
    header = "user_id,item_id,timestamp,label,price\n"
    whole = write(tmp_path / "a.csv", *["1,1,1,1,9"] * 70_000, header=header)
    real = write(tmp_path / "b.csv", "1,1,1,1, 9.5", header=header)
    digits = parquet(tmp_path / "c.parquet", price=["7", "08"])
    assert {type(row["price"]) for row in events(whole, form=form)} == {int}
    for paths in ([whole, real], [real, whole]):
        prices = [row["price"] for row in events(paths, form=form)]
        assert {type(price) for price in prices} == {float}
        assert sorted(prices)[-1] == 9.5
    assert [row["price"] for row in events(digits, form=form)] == [7, 8]
    narrow = parquet(tmp_path / "d.parquet", price=pa.array([3], pa.int16()))
    wide = parquet(tmp_path / "e.parquet", price=pa.array([2**40], pa.int64()))
    assert [row["price"] for row in events([narrow, wide], form=form)] == [3, 2**40]
    for text in ("cheap", "", "nan", "inf"):
        late = write(tmp_path / "late.csv", *["1,1,1,1,9"] * 70_000, f"1,1,1,1,{text}", header=header)
        with pytest.raises(ValueError, match=r"late.csv: column price must .* row 70001"):
            next(iter(events(late, form=form)))
    exact = write(tmp_path / "x.csv", "1,1,1,1,0.5", f"1,1,1,1,{2**60}", "1,1,1,1,1e300", header=header)
    assert [row["price"] for row in events(exact, form=form)] == [0.5, 2.0**60, 1e300]
    with pytest.raises(ValueError, match=rf"x.csv: column price must be numbers of double, got '{2**53 + 1}' in row 2"):
        events(write(tmp_path / "x.csv", "1,1,1,1,0.5", f"1,1,1,1,{2**53 + 1}", header=header), form=form)
    with pytest.raises(ValueError, match=r"f.parquet: column price must be numbers, got .*timestamp"):
        events(parquet(tmp_path / "f.parquet", price=pa.array([1], pa.timestamp("s"))), form=form)
    big = parquet(tmp_path / "g.parquet", price=[2**53 + 1])
    half = parquet(tmp_path / "h.parquet", price=[0.5])
    with pytest.raises(
        ValueError, match=rf"g.parquet: column price must be numbers of double, got {2**53 + 1} in row 1"
    ):
        events([half, big], form=form)


def test_features_of_a_declared_kind(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp,label,shop\n"
    path = write(tmp_path / "a.csv", "1,1,1,1,north", "1,1,1,1,south", "1,1,1,1,north", header=header)
    shop = {**ALL, "shop": "shop"}
    assert [row["shop"] for row in events(path, form=LogFormat(shop, kinds={"shop": "id"}))] == [0, 1, 0]
    with pytest.raises(ValueError, match=r"a.csv: column shop must be numbers of int64, got 'north' in row 1"):
        events(path, form=LogFormat(shop, kinds={"shop": "int"}))
    with pytest.raises(ValueError, match=r"b.csv: column user_id must be integers, got '01' in row 2"):
        events(write(tmp_path / "b.csv", "1,1,1,1", "01,1,1,1"), form=LogFormat(ALL, kinds={"user_id": "int"}))
    text = LogFormat(ALL, kinds={"user_id": "text"})
    assert [row["user_id"] for row in events(write(tmp_path / "b.csv", "7,1,1,1", "5,1,1,1"), form=text)] == [0, 1]
    assert [row["user_id"] for row in events(parquet(tmp_path / "c.parquet", user_id=[7, 5]), form=text)] == [0, 1]


def test_extra_columns_of_some_files(tmp_path: Path) -> None:
    some = write(tmp_path / "a.csv", "1,1,1,1,5", header="user_id,item_id,timestamp,label,request_id\n")
    with pytest.raises(ValueError, match=r"b.csv: column request_id of .*a.csv is missing"):
        events([some, write(tmp_path / "b.csv", "1,1,1,1")])
