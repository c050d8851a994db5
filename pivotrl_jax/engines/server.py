"""HTTP in front of any `Engine`: OpenAI's calls and SGLang's native ones.

The `serve` stage puts a workdir's policy behind it. Errors are answers, in
OpenAI's form; whatever a client sends, or however it leaves, the server goes
on.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import socket
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from starlette import applications
from starlette import exceptions
from starlette import requests
from starlette import responses
from starlette import routing
import uvicorn

from pivotrl_jax import errors
from pivotrl_jax import interrupt
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import native_routes
from pivotrl_jax.engines.serving import openai_routes
from pivotrl_jax.engines.serving import record
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import scoring
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import loop

_LOCAL = ("127.0.0.1", "::1", "localhost")
_GRACE = 5  # Seconds that requests have to end when the server stops.


def run(config: Any, workdir: pathlib.Path) -> bool:
  """The `serve` stage: serves the workdir's policy until it is interrupted.

  The trained policy of export/, or else the last checkpoint, or else the
  starting policy.

  Returns:
    False: it is never done.
  """
  given = config.serve
  bound = _listen(given.host, given.port)
  policy = _policy(config, workdir)
  service = make(config, policy)
  address, port = bound.getsockname()[:2]
  at = f"[{address}]" if ":" in address else address
  logging.info(
      "serve: http://%s:%d/v1, model %r, weights %s of %s", at, port,
      given.model, service.version, service.path,
  )  # fmt: skip
  serving = uvicorn.Server(
    uvicorn.Config(
      app(service),
      log_level="warning",
      timeout_keep_alive=75,
      proxy_headers=False,
      timeout_graceful_shutdown=_GRACE,
    )
  )
  with interrupt.held():  # uvicorn lets requests end first.
    serving.run(sockets=[bound])
  return False


def _listen(host, port):
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=1024)
  except OSError as error:
    raise errors.InputError(
      f"--config.serve.host={host} --config.serve.port={port}:"
      f" {error.strerror}; expected a free address"
    ) from error


def _policy(config, workdir):
  """What is served, and how its directory is called."""
  if (workdir / "export").exists():
    return policy_lib.load(workdir / "export", config)
  policy = policy_lib.starting(config, workdir)
  if not checkpoints.steps_of(workdir / checkpoints.FOLDER):
    return policy
  state, policy, beside = loop.start(config, policy, loop.optimizer(config))
  step, state = checkpoints.restore(checkpoints.find(str(workdir)), state)
  return dataclasses.replace(
    policy,
    path=workdir / checkpoints.FOLDER / str(step),
    params=jax.device_get(lora.merge(beside, state.params)),
    version=f"step {step}",
  )


def make(config: Any, policy: policy_lib.Policy) -> service_lib.Service:
  """The engine, loaded and ready, and what is in front of it."""
  given = config.serve
  engine = policy_lib.engine(policy, config)
  engine.prepare(
    range(1, min(given.context, config.data.max_prompt_tokens) + 1),
    base.SamplingParams(
      max_tokens=given.slice_tokens,
      stop_ids=policy.tokenizer.stop_ids,
      goes_on=True,
    ),
    prompts=given.batch_rows,
    rows=1,
  )
  score = None
  if config.engine.name == "jax":
    score = scoring.scorer(
      policy.config,
      dtype=jnp.dtype(config.model.dtype),
      attention=config.model.attention,
    )
  context = min(
    given.context,
    policy.hf_config.get("max_position_embeddings", given.context),
  )
  key = os.environ.get(service_lib.KEY_VARIABLE, "")
  admin_key = os.environ.get(service_lib.ADMIN_KEY_VARIABLE, "")
  closed = bool(key or admin_key)
  if given.host not in _LOCAL and not closed:
    logging.warning(
        "serve: %s without a key: whoever reaches it can use it; expected"
        " $%s", given.host, service_lib.KEY_VARIABLE,
    )  # fmt: skip
  return service_lib.Service(
    scheduler=scheduler.Scheduler(
      engine,
      slice_tokens=given.slice_tokens,
      batch_rows=given.batch_rows,
      queue_rows=given.queue_rows,
    ),
    tokenizer=policy.tokenizer,
    vocab_size=policy.config.vocab_size,
    model=given.model,
    limits=service_lib.Limits(
      context=context,
      characters=context * max(map(len, policy.tokenizer.hf.get_vocab())),
      body=given.max_body,
      n=given.max_n,
    ),
    weights=jax.device_put(policy.params) if score else None,
    load=lambda path: _weights(path, policy.config),
    path=str(policy.path),
    score=score,
    experts=policy_lib.experts(policy, config),
    recorded=record.Record(pathlib.Path(given.record))
    if given.record
    else None,
    key=key,
    admin_key=admin_key,
    changes=closed or given.host in _LOCAL,
  )


def _weights(path, config):
  """The weights of a directory, which must be of this shape."""
  found = hf.read_config(path)
  if qwen3.config_from_hf(found) != config:
    raise errors.InputError(
      f"{path}: another shape of model; expected {config}"
    )
  return hf.load_params(
    path, found, put=lambda _, x: jax.device_put(np.asarray(x, np.float32))
  )


def app(service: service_lib.Service) -> applications.Starlette:
  """The ASGI application."""

  @contextlib.asynccontextmanager
  async def lifespan(_):
    running = asyncio.create_task(service.scheduler.run())
    running.add_done_callback(_ended)
    yield
    running.cancel()
    if service.recorded:
      service.recorded.close()

  def route(path, handler, *methods, admin=False, open_to_all=False):
    async def answer(request):
      if not open_to_all:
        service_lib.check_key(service, request, admin=admin)
      return await handler(service, request)

    return routing.Route(path, answer, methods=methods)

  return applications.Starlette(
      routes=[
          route("/health", _ready, "GET", open_to_all=True),
          route("/ready", _ready, "GET", open_to_all=True),
          route("/v1/models", openai_routes.models, "GET"),
          route("/v1/chat/completions", openai_routes.chat, "POST"),
          route("/v1/completions", openai_routes.complete, "POST"),
          route("/generate", native_routes.generate, "POST"),
          route("/model_info", native_routes.model_info, "GET"),
          route("/server_info", native_routes.server_info, "GET"),
          route("/update_weights_from_disk", native_routes.update, "POST", admin=True),
          route("/prepare", native_routes.prepare, "POST", admin=True),
          route("/release_memory_occupation", native_routes.release, "POST", admin=True),
          route("/resume_memory_occupation", native_routes.resume, "POST", admin=True),
      ],
      exception_handlers={
          fields.ApiError: _say,
          exceptions.HTTPException: _say_status,
          scheduler.Full: _say_full,
          scheduler.Asleep: _say_asleep,
          requests.ClientDisconnect: _say_gone,
          500: _say_failure,
      },
      lifespan=lifespan,
  )  # fmt: skip


def _ended(task):
  """The scheduler must not end unnoticed."""
  if not task.cancelled() and task.exception():
    logging.fatal("serve: the scheduler ended", exc_info=task.exception())


async def _say(_, error):
  return responses.JSONResponse(error.body, error.status)


async def _say_status(_, error):
  return await _say(None, fields.ApiError(error.status_code, str(error.detail)))


async def _say_full(_, error):
  body = fields.ApiError(429, f"the queue is full: {error}").body
  return responses.JSONResponse(body, 429, headers={"Retry-After": "1"})


async def _say_asleep(_, error):
  return await _say(None, fields.ApiError(503, str(error)))


async def _say_gone(*_):
  return responses.Response(status_code=499)


async def _say_failure(_, error):
  return await _say(
    None, fields.ApiError(500, f"{type(error).__name__}: {error}")
  )


async def _ready(service, _):
  return responses.Response(status_code=200)
