"""Fields of a request's JSON, and OpenAI's way to say what is wrong."""

from collections.abc import Mapping
import json
import math
from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error",
          404: "not_found_error", 429: "rate_limit_error",
          500: "server_error", 503: "server_error"}  # fmt: skip


class ApiError(Exception):
  """An answer that is an error, as OpenAI writes it."""

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
  ):
    super().__init__(message)
    self.status = status
    self.body = {
      "error": {
        "message": message,
        "type": _KINDS.get(status, "invalid_request_error"),
        "param": param,
        "code": code,
      }
    }


def decode(body: bytes) -> dict[str, Any]:
  """The JSON object of a body; ApiError where it is none."""
  try:
    value = json.loads(body.decode("utf-8"))
    # Lone surrogates, which JSON can spell, are no text.
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeError as error:
    raise ApiError(400, f"the body is not UTF-8 ({error})") from error
  except (ValueError, RecursionError) as error:
    raise ApiError(400, f"the body is not JSON ({error})") from error
  if not isinstance(value, dict):
    raise ApiError(400, "the body is not a JSON object")
  return value


def check_known(
  body: Mapping[str, Any],
  *,
  honoured: frozenset[str],
  harmless: frozenset[str],
  neutral: Mapping[str, tuple[Any, ...]],
) -> None:
  """ApiError for the first field that would be dropped in silence.

  Args:
    body: the request.
    honoured: fields that are read.
    harmless: fields that change nothing of an answer.
    neutral: fields that are not implemented -> values at which they do
      nothing.
  """
  for name, value in body.items():
    if name in honoured or name in harmless or value is None:
      continue
    if name not in neutral:
      raise ApiError(
        400,
        f"Unrecognized request argument supplied: {name}",
        param=name,
        code="unknown_parameter",
      )
    if value not in neutral[name]:
      raise ApiError(
        400,
        f"{name}: {value!r:.80} is not supported; expected"
        f" {' or '.join(map(repr, neutral[name]))}",
        param=name,
        code="unsupported_value",
      )


def number(
  body: Mapping[str, Any],
  name: str,
  default: Any,
  *,
  least: float,
  most: float = math.inf,
  whole: bool = False,
) -> Any:
  """A number in [least, most]; `default` where it is absent or null."""
  value = body.get(name)
  if value is None:
    return default
  kinds = int if whole else (int, float)
  if (
    not isinstance(value, kinds)
    or isinstance(value, bool)
    or not least <= value <= most
  ):
    kind = "an integer" if whole else "a number"
    bounds = f"from {least:g}" + (f" to {most:g}" if most < math.inf else "")
    raise ApiError(
      400,
      f"{name}: {value!r:.80}; expected {kind} {bounds}",
      param=name,
      code="invalid_value",
    )
  return value if whole else float(value)


def of_kind(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
  """A value of a JSON kind; `default` where it is absent or null."""
  value = body.get(name)
  if value is None:
    return default
  if not isinstance(value, kind):
    raise ApiError(
      400,
      f"{name}: {value!r:.80}; expected {_NAMES[kind]}",
      param=name,
      code="invalid_type",
    )
  return value


_NAMES = {
  bool: "true or false",
  str: "text",
  list: "a list",
  dict: "an object",
}


def top_k(body: Mapping[str, Any]) -> int:
  """How many of the likeliest tokens to sample from; 0 (or -1) for all."""
  found = number(body, "top_k", 0, least=-1, most=(1 << 31) - 1, whole=True)
  return max(0, found)


def token_ids(value: Any, name: str, vocab_size: int) -> list[int]:
  """A non-empty list of ids of the vocabulary."""
  if not isinstance(value, list) or not value:
    raise ApiError(
      400, f"{name}: {value!r:.80}; expected a list of token ids", param=name
    )
  for i in value:
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size:
      raise ApiError(
        400,
        f"{name}: id {i!r:.80}; expected integers from 0 to {vocab_size - 1}",
        param=name,
        code="invalid_value",
      )
  return value
