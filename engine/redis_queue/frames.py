"""What the streams of a queue carry, one msgpack frame in the field `f` of an entry."""

from collections.abc import Mapping

import msgspec

from engine.messages import EngineInfo, EngineRequest, EngineStats, Finished, TokenEvent

FIELD = b"f"
_ATTEMPT = "~"


class Submission(msgspec.Struct, frozen=True, tag="submit"):
    """A server wants a request computed. Its id names the attempt, too: see attempt_id."""

    server: str
    request: EngineRequest


class Withdrawal(msgspec.Struct, frozen=True, tag="withdraw"):
    """A server does not want these attempts any more."""

    server: str
    ids: list[str]


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """An engine computes these attempts; always before their events."""

    ids: list[str]


class Left(msgspec.Struct, frozen=True, tag="left"):
    """An engine has ended well: what it has not finished goes to others."""


class Report(msgspec.Struct, frozen=True):
    """From one engine to one server."""

    engine: str
    number: int  # counted up by 1 for each pair of them: a repeated or lost report shows
    messages: list[Taken | TokenEvent | Finished | Left]


class EngineBeat(msgspec.Struct, frozen=True):
    """What an engine says of itself, every BEAT_S."""

    number: int  # grows
    info: EngineInfo
    stats: EngineStats
    max_num_seqs: int
    num_taken: int  # attempts that it has not finished


ToEngineFrame = Submission | Withdrawal

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngineFrame] = msgspec.msgpack.Decoder(ToEngineFrame)
_report = msgspec.msgpack.Decoder(Report)
_beat = msgspec.msgpack.Decoder(EngineBeat)


def entry(frame: ToEngineFrame | Report) -> dict[bytes, bytes]:
    """The fields of a stream entry."""
    return {FIELD: _encoder.encode(frame)}


def encode_beat(beat: EngineBeat) -> bytes:
    return _encoder.encode(beat)


def to_engine_frame(fields: Mapping[bytes, bytes]) -> ToEngineFrame:
    """Raises msgspec.DecodeError for what is not one."""
    return _to_engine.decode(fields.get(FIELD, b""))


def report(fields: Mapping[bytes, bytes]) -> Report:
    """Raises msgspec.DecodeError for what is not one."""
    return _report.decode(fields.get(FIELD, b""))


def decode_beat(raw: bytes) -> EngineBeat:
    """Raises msgspec.DecodeError for what is not one."""
    return _beat.decode(raw)


def attempt_id(request_id: str, attempt: int) -> str:
    """What the `attempt`th submission of a request is called between server and engine."""
    return f"{request_id}{_ATTEMPT}{attempt}"


def request_id_of(attempt: str) -> str:
    """The request's own id; one without an attempt is itself."""
    return attempt.rpartition(_ATTEMPT)[0] or attempt
