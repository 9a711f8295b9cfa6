"""Functions for steps of the schema that fill new columns of old rows."""

from collections.abc import Callable

import msgspec
import orjson

from cluster.store.documents import inputs_of, term
from cluster.store.ports import Summary

_ENCODER = msgspec.msgpack.Encoder()
_SUMMARY = msgspec.msgpack.Decoder(Summary)
_INPUTS = msgspec.msgpack.Decoder(dict[str, str])


def _summary_part(encoded: bytes, name: str) -> str | int | None:
    part: str | int | None = getattr(_SUMMARY.decode(encoded), name)
    return part


def _searched_inputs(encoded: bytes) -> bytes | None:
    inputs = inputs_of(encoded)
    return _ENCODER.encode(inputs) if inputs else None


def _input_terms(encoded: bytes | None) -> str:
    inputs = {} if encoded is None else _INPUTS.decode(encoded)
    return orjson.dumps([term(name, text) for name, text in inputs.items()]).decode()


FUNCTIONS: tuple[tuple[str, int, Callable[..., str | bytes | int | None]], ...] = (
    ("summary_part", 2, _summary_part),
    ("searched_inputs", 1, _searched_inputs),
    ("input_terms", 1, _input_terms),
)
"""(name in SQL, how many arguments, function)"""
