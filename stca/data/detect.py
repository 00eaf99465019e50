"""Which published form a log has."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from stca.data.formats import BY_NAME, FORMATS, LogFormat
from stca.data.source import column_names


def detect_format(path: Path, forms: Mapping[str, LogFormat] = FORMATS) -> LogFormat:
    """The form of a log: by its name where it has no header, else the first whose columns are all there.

    Raises:
        ValueError: a file that cannot be read, or columns of none: by the first that is missing of the nearest form, of
            which half the columns must be there, else by what an event must have.
    """
    named = BY_NAME.get(path.name.lower().removesuffix(".gz").removesuffix(".zip"), "")
    if named in forms:
        return forms[named]
    like = next(iter(forms.values()))
    delimiters = (",", "\t", ";", "|") if (like.delimiter, like.header) == (",", None) else (like.delimiter,)
    wrong: list[tuple[int, str]] = []
    most: list[str] = []
    for delimiter in delimiters:
        present = column_names(path, replace(like, delimiter=delimiter))
        most = max(most, present, key=len)
        for name, form in forms.items():
            missing = [theirs for theirs in form.columns.values() if theirs not in present]
            if form.header == like.header and not missing:
                return replace(form, delimiter=delimiter)
            own = FORMATS.get(name, form).columns.values()  # without what the caller named
            if form.header == like.header and 2 * sum(theirs in present for theirs in own) >= len(own):
                wrong.append((len(missing), missing_column(missing[0], f"of a {name} log ", present)))
    if wrong:
        raise ValueError(f"{path}: {min(wrong, key=lambda each: each[0])[1]}")
    needed = forms.get("generic", like).columns.items()
    lacks = [ours if ours == theirs else f"{ours} ({theirs})" for ours, theirs in needed if theirs not in most]
    raise ValueError(
        f"{path}: must have the columns of a known form of log, or say which are meant (--column "
        f"{lacks[0].partition(' ')[0]}=...): {', '.join(lacks)} missing, got {most}; "
        "if the file has no header, name its columns"
    )


def missing_column(theirs: str, of: str, present: list[str]) -> str:
    """What to say of a column that a file does not have."""
    near = get_close_matches(theirs, present, 1)
    hint = f", is it {near[0]}?" if near else "; if the file has no header, name its columns"
    return f"column {theirs} {of}is missing, got {present}{hint}"
