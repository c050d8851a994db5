"""SGLang's native routes, and `/prepare`, which is ours."""

import asyncio
import functools
import pathlib

from starlette import requests
from starlette import responses

from pivotrl_jax import errors
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import follow
from pivotrl_jax.engines.serving import native
from pivotrl_jax.engines.serving import service as service_lib


async def model_info(
  service: service_lib.Service, _: requests.Request
) -> responses.Response:
  """`/model_info`: what is served, and the version of its weights."""
  return responses.JSONResponse(
    {
      "model_path": service.path,
      "served_model_name": service.model,
      "weight_version": service.version,
      "is_generation": True,
    }
  )


async def server_info(
  service: service_lib.Service, _: requests.Request
) -> responses.Response:
  """`/server_info`: by which the client knows a server of ours."""
  return responses.JSONResponse(
    {
      endpoint.OURS: True,
      "model_path": service.path,
      "context_length": service.limits.context,
      "enable_deterministic_inference": True,
      endpoint.TELLS_ROUTES: service.experts is not None,
    }
  )


async def generate(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/generate`: a list of rows is one engine call, a single row goes in slices."""
  body = await service_lib.body(service, request)
  asked = await service.in_text_thread(_asked, service, body)
  service.scheduler.submit(asked.rows, whole=asked.many)
  if asked.stream:
    return follow.sse(_generate_events(service, asked))

  async def work():
    await asyncio.gather(
      *(
        follow.until_done(service, row, stops)
        for row, stops in zip(asked.rows, asked.stops, strict=True)
      )
    )

  await follow.with_client(request, asked.rows, work())
  found = [_native(service, asked, i) for i in range(len(asked.rows))]
  return responses.JSONResponse(found if asked.many else found[0])


def _asked(service, body):
  return native.generate(
      body, encode=functools.partial(service_lib.encode, service),
      vocab_size=service.vocab_size,
      context=service.limits.context, most=service.limits.n,
      stop_ids=service.tokenizer.stop_ids,
      tells_routes=service.experts is not None,
  )  # fmt: skip


def _native(service, asked, i):
  return native.answer(
      service.tokenizer, asked.rows[i], asked.rids[i], asked.stops[i],
      logprobs=asked.logprobs, experts=service.experts,
      routes_from=asked.routes_from,
  )  # fmt: skip


async def _generate_events(service, asked):
  """As SGLang streams: each event repeats what there is so far."""
  try:
    async for i, _ in follow.merged(service, asked.rows, asked.stops):
      yield follow.event(_native(service, asked, i) | {"index": i})
  except fields.ApiError as error:
    yield follow.event(error.body)
  yield "data: [DONE]\n\n"


async def update(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/update_weights_from_disk`: between two calls of the engine."""
  body = await service_lib.body(service, request)
  path = fields.of_kind(body, "model_path", str, "")
  version = fields.of_kind(body, "weight_version", str, service.version)

  def take_up():
    service.weights = service.load(pathlib.Path(path))
    service.scheduler.engine.load(service.weights, version)

  if fields.of_kind(body, "abort_all_requests", bool, False):
    service.scheduler.abort_all()
  try:
    await service.scheduler.on_engine(take_up)
  except errors.InputError as error:
    return responses.JSONResponse(
      {"success": False, "message": str(error)}, 400
    )
  service.scheduler.asleep = False
  service.path = path
  return responses.JSONResponse(
    {
      "success": True,
      "message": f"Weight version updated to {version}.",
      "num_paused_requests": 0,
    }
  )


async def prepare(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/prepare`: `Engine.prepare`, so that a client's calls compile nothing."""
  body = await service_lib.body(service, request)
  sampling = fields.of_kind(body, "sampling", dict, {})
  given = fields.of_kind(body, "lengths", list, [])
  if given:
    fields.token_ids(given, "lengths", service.limits.context + 1)
  call = base.SamplingParams(
    max_tokens=fields.number(sampling, "max_tokens", 1, least=1, whole=True),
    stop_ids=tuple(fields.of_kind(sampling, "stop_ids", list, [])),
    temperature=fields.number(sampling, "temperature", 1.0, least=0),
    top_p=fields.number(sampling, "top_p", 1.0, least=1e-6, most=1),
    top_k=fields.number(sampling, "top_k", 0, least=0, whole=True),
  )
  prompts, rows = (
    fields.number(body, name, 1, least=1, whole=True)
    for name in ("prompts", "rows")
  )
  longest = fields.number(
    body, "longest", 0, least=0, most=service.limits.context, whole=True
  )
  await service.scheduler.on_engine(
    lambda: service.scheduler.engine.prepare(
      given, call, prompts=prompts, rows=rows, longest=longest
    )
  )
  return responses.JSONResponse({})


async def release(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/release_memory_occupation`: the weights are let go."""
  await service_lib.body(service, request)
  service.scheduler.asleep = True

  def let_go():
    service.weights = None
    service.scheduler.engine.load(None, service.version)

  await service.scheduler.on_engine(let_go)
  return responses.JSONResponse(None)


async def resume(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/resume_memory_occupation`: the weights come with the next hand-over."""
  await service_lib.body(service, request)
  return responses.JSONResponse(None)
