"""What the routes of a server share, and what every request must pass."""

import asyncio
from collections.abc import Callable
import concurrent.futures
import dataclasses
import hmac
import pathlib
from typing import Any

from starlette import requests

from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import record
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import scoring

KEY_VARIABLE = "PIVOTRL_SERVE_KEY"
ADMIN_KEY_VARIABLE = "PIVOTRL_SERVE_ADMIN_KEY"


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may ask for.

  Attributes:
    context: tokens of a prompt and its completion.
    characters: of a prompt; more cannot fit into the context.
    body: bytes.
    n: completions of a prompt, and prompts of a request.
  """

  context: int
  characters: int
  body: int
  n: int


@dataclasses.dataclass
class Service:
  """What the routes share.

  Attributes:
    scheduler: runs rows on the engine.
    tokenizer: of the policy, with its chat template.
    vocab_size: ids are below it.
    model: name of what is served.
    limits: of requests.
    weights: that the engine samples from.
    load: `(path) -> weights` of a directory; InputError where it holds none
      of this shape.
    path: directory that the weights are from.
    score: of texts under the weights; None where the engine cannot.
    experts: what the engine's routes are told in; None where it tells none.
    recorded: where exchanges are kept, or None.
    key, admin_key: tokens of clients, and of those who may change weights; ""
      asks for none.
    changes: whether weights may be changed at all.
  """

  scheduler: scheduler.Scheduler
  tokenizer: tokenizer_lib.Tokenizer
  vocab_size: int
  model: str
  limits: Limits
  weights: Any
  load: Callable[[pathlib.Path], Any]
  path: str
  score: scoring.Score | None = None
  experts: endpoint.Experts | None = None
  recorded: record.Record | None = None
  key: str = ""
  admin_key: str = ""
  changes: bool = True
  # Rendering and decoding: long prompts must not hold up the event loop.
  text_thread: concurrent.futures.ThreadPoolExecutor = dataclasses.field(
    default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1, "text")
  )

  @property
  def version(self) -> str:
    return self.scheduler.engine.version

  async def in_text_thread(self, function: Callable[..., Any], *args: Any):
    """`function(*args)` without holding up the event loop."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self.text_thread, function, *args)


async def body(service: Service, request: requests.Request) -> dict[str, Any]:
  """The request's JSON object, read no further than the limit."""
  most = service.limits.body
  parts, size = [], 0
  declared = request.headers.get("content-length", "0")
  if declared.isdigit():
    size = int(declared)
  if size <= most:
    size = 0
    async for part in request.stream():
      parts.append(part)
      size += len(part)
      if size > most:
        break
  if size > most:
    raise fields.ApiError(413, f"the body is over {most} bytes")
  return await service.in_text_thread(fields.decode, b"".join(parts))


def encode(service: Service, text: str) -> list[int]:
  """Ids of a text, none of them added; ApiError where they cannot fit."""
  check_length(service, text)
  return service.tokenizer.hf.encode(text, add_special_tokens=False)


def check_length(service: Service, *texts: str) -> None:
  """ApiError for what would take long to encode, and does not fit."""
  size = sum(map(len, texts))
  if size > service.limits.characters:
    raise fields.ApiError(
      400,
      f"This model's maximum context length is {service.limits.context} tokens;"
      f" the prompt has {size} characters",
      code="context_length_exceeded",
    )


def check_key(service: Service, request: Any, *, admin: bool) -> None:
  """ApiError unless the request's key opens the route."""
  wanted = service.admin_key if admin and service.admin_key else service.key
  given = request.headers.get("authorization", "")
  if wanted and not hmac.compare_digest(
    given.encode(), f"Bearer {wanted}".encode()
  ):
    raise fields.ApiError(
      401,
      "no valid API key in the Authorization header",
      code="invalid_api_key",
    )
  if admin and not service.changes:
    raise fields.ApiError(
      403,
      f"weights are not changed from outside without ${KEY_VARIABLE} or"
      f" ${ADMIN_KEY_VARIABLE}",
    )
