"""What the service takes and gives: JSON by these models, or the same fields as safetensors."""

from typing import Annotated, Any

import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ranker.requests import COUNTER_BUCKETS, COUNTERS
from safetensors import SafetensorError
from safetensors.numpy import load, save

MOST_CANDIDATES, MOST_EVENTS = 2000, 1000
Number = Annotated[int, Field(ge=0, lt=2**63)]
Counter = Annotated[int, Field(ge=0, lt=COUNTER_BUCKETS)]
Counters = Annotated[list[Counter], Field(min_length=COUNTERS, max_length=COUNTERS)]


class Body(BaseModel):
    """A body with fields that it does not know is refused."""

    model_config = ConfigDict(extra="forbid")


class NewEvent(Body):
    """What a user did: an event that comes again, by its user and id, is not counted twice."""

    user: Number
    event_id: Annotated[str, Field(min_length=1, max_length=200)]
    item: Number
    label: Annotated[int, Field(ge=0, le=1)] = 1
    time: Number


class NewEvents(Body):
    """Some of them."""

    events: Annotated[list[NewEvent], Field(min_length=1, max_length=MOST_EVENTS)]


class Score(Body):
    """Candidates of a user, with the counters of each that `ranker.requests.item_counters` makes; 0 when None."""

    user: Number
    candidates: Annotated[list[Number], Field(min_length=1, max_length=MOST_CANDIDATES)]
    counters: Annotated[list[Counters], Field(max_length=MOST_CANDIDATES)] | None = None
    time: Number | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = 1000

    @model_validator(mode="after")
    def _fits(self) -> "Score":
        if self.counters is not None and len(self.counters) != len(self.candidates):
            raise ValueError(
                f"counters must be as many as candidates, {len(self.candidates)}, got {len(self.counters)}"
            )
        return self


def refused(field: str, message: str, value: Any) -> RequestValidationError:
    """The error that answers 422 with a field's name."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": message, "input": value}])


def read_score(body: bytes) -> Score:
    """A `Score` from safetensors: `user`, `time` and `deadline_ms` of one element, `candidates` [m], `counters` [m, 9].

    Raises:
        RequestValidationError: what is no safetensors, or no `Score`.
    """
    try:
        arrays = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise refused("safetensors", f"must be a whole safetensors: {error}", len(body)) from error
    for name, values in arrays.items():  # [2^40, 0] takes no byte of a body, and 2^40 lists of a server
        if name not in Score.model_fields:
            raise refused(name, f"must be one of {sorted(Score.model_fields)}", None)
        if values.ndim > 2 or max(values.shape, default=1) > MOST_CANDIDATES:
            message = f"must have at most 2 dimensions, each at most {MOST_CANDIDATES}, got {list(values.shape)}"
            raise refused(name, message, None)
    fields: dict[str, Any] = {name: values.tolist() for name, values in arrays.items()}
    for name in ("user", "time", "deadline_ms"):
        if isinstance(fields.get(name), list) and len(fields[name]) == 1:
            [fields[name]] = fields[name]
    try:
        return Score.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


def write_scores(scores: list[float]) -> bytes:
    """Safetensors with `scores` [m], float32."""
    return save({"scores": np.array(scores, dtype=np.float32)})
