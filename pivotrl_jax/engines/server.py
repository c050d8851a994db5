"""HTTP in front of any `Engine`: OpenAI's calls and SGLang's native ones.

The `serve` stage puts a workdir's policy behind it. Errors are answers, in
OpenAI's form; whatever a client sends, or however it leaves, the server goes
on.
"""

import asyncio
from collections.abc import Awaitable, Callable
import concurrent.futures
import contextlib
import dataclasses
import hmac
import importlib.metadata
import json
import os
import pathlib
import secrets
import socket
import time
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
from pivotrl_jax import seeds
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import native
from pivotrl_jax.engines.serving import openai
from pivotrl_jax.engines.serving import record
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import scoring
from pivotrl_jax.engines.serving import text as text_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import state as state_lib

KEY_VARIABLE = "PIVOTRL_SERVE_KEY"
ADMIN_KEY_VARIABLE = "PIVOTRL_SERVE_ADMIN_KEY"
_LOCAL = ("127.0.0.1", "::1", "localhost")
_GRACE = 5  # Seconds that requests have to end when the server stops.


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may ask for.

  Attributes:
    context: tokens of a prompt and its completion.
    body: bytes.
    n: completions of a prompt, and prompts of a request.
  """

  context: int
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


def run(config: Any, workdir: pathlib.Path) -> None:
  """The `serve` stage: serves the workdir's policy until it is interrupted.

  The trained policy of export/, or else the last checkpoint, or else the
  starting policy.
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
  uvicorn.Server(
    uvicorn.Config(
      app(service),
      log_level="warning",
      timeout_keep_alive=75,
      timeout_graceful_shutdown=_GRACE,
    )
  ).run(sockets=[bound])


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
  if not (workdir / "checkpoints").exists():
    return policy
  t = config.train
  tx = state_lib.optimizer(
    learning_rate=t.learning_rate,
    warmup_steps=t.warmup_steps,
    weight_decay=t.weight_decay,
    clip_norm=t.clip_norm,
  )
  state = state_lib.create(policy.params, tx)
  with checkpoints.Checkpoints(
    workdir / "checkpoints", keep=t.keep_checkpoints
  ) as saved:
    state = saved.restore_latest(state)
  return dataclasses.replace(
    policy,
    path=workdir / "checkpoints" / str(int(state.step)),
    params=jax.device_get(state.params),
    version=f"step {int(state.step)}",
  )


def make(config: Any, policy: policy_lib.Policy) -> Service:
  """The engine, loaded and ready, and what is in front of it."""
  given = config.serve
  engine = policy_lib.engine(policy, config)
  engine.prepare(
    range(1, min(given.context, config.data.max_prompt_tokens) + 1),
    base.SamplingParams(
      max_tokens=given.slice_tokens,
      stop_ids=policy.tokenizer.stop_ids,
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
  key = os.environ.get(KEY_VARIABLE, "")
  admin_key = os.environ.get(ADMIN_KEY_VARIABLE, "")
  closed = bool(key or admin_key)
  if given.host not in _LOCAL and not closed:
    logging.warning(
        "serve: %s without a key: whoever reaches it can use it; expected"
        " $%s", given.host, KEY_VARIABLE,
    )  # fmt: skip
  return Service(
    scheduler=scheduler.Scheduler(
      engine,
      slice_tokens=given.slice_tokens,
      batch_rows=given.batch_rows,
      queue_rows=given.queue_rows,
    ),
    tokenizer=policy.tokenizer,
    vocab_size=policy.config.vocab_size,
    model=given.model,
    limits=Limits(
      context=min(
        given.context,
        policy.hf_config.get("max_position_embeddings", given.context),
      ),
      body=given.max_body,
      n=given.max_n,
    ),
    weights=jax.device_put(policy.params) if score else None,
    load=lambda path: _weights(path, policy.config),
    path=str(policy.path),
    score=score,
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
  params = hf.load_params(path, found)
  return jax.device_put(
    jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  )


def app(service: Service) -> applications.Starlette:
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
        check_key(service, request, admin)
      return await handler(service, request)

    return routing.Route(path, answer, methods=methods)

  return applications.Starlette(
      routes=[
          route("/health", _ready, "GET", open_to_all=True),
          route("/ready", _ready, "GET", open_to_all=True),
          route("/v1/models", _models, "GET"),
          route("/v1/chat/completions", _chat, "POST"),
          route("/v1/completions", _complete, "POST"),
          route("/generate", _generate, "POST"),
          route("/model_info", _model_info, "GET"),
          route("/server_info", _server_info, "GET"),
          route("/update_weights_from_disk", _update, "POST", admin=True),
          route("/prepare", _prepare, "POST", admin=True),
          route("/release_memory_occupation", _release, "POST", admin=True),
          route("/resume_memory_occupation", _resume, "POST", admin=True),
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
  return responses.JSONResponse(
    fields.ApiError(404, str(error.detail)).body, error.status_code
  )


async def _say_full(_, error):
  body = fields.ApiError(429, f"the queue is full: {error}").body
  return responses.JSONResponse(body, 429, headers={"Retry-After": "1"})


async def _say_asleep(_, error):
  return responses.JSONResponse(fields.ApiError(503, str(error)).body, 503)


async def _say_gone(*_):
  return responses.Response(status_code=499)


async def _say_failure(_, error):
  body = fields.ApiError(500, f"{type(error).__name__}: {error}").body
  return responses.JSONResponse(body, 500)


def check_key(service: Service, request: Any, admin: bool) -> None:
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


async def _body(service, request) -> dict[str, Any]:
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


async def _ready(service, _):
  return responses.Response(status_code=200)


async def _models(service, _):
  return responses.JSONResponse({
      "object": "list",
      "data": [{
          "id": service.model, "object": "model", "created": 0,
          "owned_by": "pivotrl_jax", "root": service.path,
          "max_model_len": service.limits.context,
          "weight_version": service.version,
      }],
  })  # fmt: skip


async def _model_info(service, _):
  return responses.JSONResponse(
    {
      "model_path": service.path,
      "served_model_name": service.model,
      "weight_version": service.version,
      "is_generation": True,
    }
  )


async def _server_info(service, _):
  return responses.JSONResponse(
    {
      endpoint.OURS: importlib.metadata.version("pivotrl_jax")
      if _installed()
      else "source",
      "model_path": service.path,
      "context_length": service.limits.context,
      "enable_deterministic_inference": True,
    }
  )


def _installed():
  return any(importlib.metadata.distributions(name="pivotrl_jax"))


async def _chat(service, request):
  body = await _body(service, request)
  wanted = openai.chat(body, model=service.model, most=service.limits.n)
  prompt, wanted = await service.in_text_thread(_chat_prompt, service, wanted)
  name = f"chatcmpl-{secrets.token_hex(12)}"
  rows = _rows(service, wanted, [prompt])
  service.scheduler.submit(rows)
  if wanted.stream:
    return _sse(_chat_events(service, name, wanted, body, rows))
  choices = await _finished(service, request, wanted, rows)
  out = [
    openai.chat_choice(service.tokenizer, wanted, i, choice, f"{name}_{i}")
    for i, choice in enumerate(choices)
  ]
  for choice, told in zip(choices, out, strict=True):
    _record(service, name, body, told["message"], choice)
  answer = _envelope(service, name, "chat.completion") | {
    "choices": out,
    "usage": openai.usage(len(prompt), sum(len(c.ids) for c in choices)),
  }
  if wanted.return_token_ids:
    answer["prompt_token_ids"] = prompt.tolist()
  return responses.JSONResponse(answer)


def _chat_prompt(service, wanted):
  """The prompt's ids, and the request that knows of them."""
  try:
    ids = render.prompt_ids(service.tokenizer, wanted.messages, wanted.tools)
  except errors.InputError as error:
    raise fields.ApiError(400, str(error), param="messages") from error
  forced = service.tokenizer.hf.encode(wanted.forced, add_special_tokens=False)
  return np.concatenate([ids, np.array(forced, np.int32)]), dataclasses.replace(
    wanted, forced_ids=len(forced)
  )


async def _complete(service, request):
  body = await _body(service, request)
  wanted = openai.completion(
      body, model=service.model, most=service.limits.n,
      vocab_size=service.vocab_size,
  )  # fmt: skip
  prompts = [
    await service.in_text_thread(_text_prompt, service, p)
    for p in wanted.prompts
  ]
  name = f"cmpl-{secrets.token_hex(12)}"
  rows = _rows(service, wanted, prompts)
  service.scheduler.submit([row for row in rows if row.finish is None])
  if wanted.stream:
    return _sse(_text_events(service, name, wanted, rows))
  choices = await _finished(service, request, wanted, rows)
  for choice in choices:
    asked = service.tokenizer.decode(choice.prompt)
    said = {"role": "assistant", "content": choice.text}
    chat = {"messages": [{"role": "user", "content": asked}]}
    _record(service, name, chat, said, choice)
  prompt_tokens = sum(len(p) for p in prompts)
  sampled = sum(len(c.ids) for c in choices)
  return responses.JSONResponse(
    _envelope(service, name, "text_completion")
    | {
      "choices": [
        openai.text_choice(service.tokenizer, wanted, i, choice)
        for i, choice in enumerate(choices)
      ],
      "usage": openai.usage(prompt_tokens, sampled),
    }
  )


def _text_prompt(service, prompt):
  if isinstance(prompt, str):
    prompt = service.tokenizer.hf.encode(prompt, add_special_tokens=False)
  if not prompt:
    raise fields.ApiError(400, "prompt: empty; expected text", param="prompt")
  return np.array(prompt, np.int32)


def _rows(service, wanted, prompts):
  """n rows a prompt, each with a seed of its own."""
  context = service.limits.context
  rows = []
  for prompt in prompts:
    room = context - len(prompt)
    tokens = room if wanted.max_tokens is None else wanted.max_tokens
    if tokens > room or (wanted.max_tokens is None and room < 1):
      raise fields.ApiError(
        400,
        f"This model's maximum context length is {context} tokens; the prompt"
        f" has {len(prompt)} and {max(tokens, 1)} are to be sampled",
        param="max_tokens",
        code="context_length_exceeded",
      )
    sampling = base.SamplingParams(
      max_tokens=tokens,
      stop_ids=service.tokenizer.stop_ids,
      temperature=wanted.temperature,
      top_p=wanted.top_p,
      top_k=wanted.top_k,
    )
    for i in range(wanted.n):
      seed = wanted.seed
      seed = secrets.randbits(64) if seed is None else seed
      rows.append(
        scheduler.Row(prompt, sampling, seeds.row_seed(seed, "choice", i))
      )
      if not tokens:
        rows[-1].end("length")
  return rows


async def _progress(service, row, stops):
  """Waits until the row has more, or is done; ends it at a stop string.

  Yields whether it is done.
  """
  while True:
    if row.finish is None:
      await row.changed.wait()
      row.changed.clear()
    if row.error is not None:
      raise fields.ApiError(500, f"the engine failed: {row.error}")
    if row.finish == "abort":
      raise fields.ApiError(503, "ended by an update of the weights")
    if stops and row.finish is None:
      said = text_lib.cut_at_stop(service.tokenizer, row.ids, stops)
      if said:
        row.end("stop")
    yield row.finish is not None
    if row.finish is not None:
      return


async def _until_done(service, row, stops):
  async for _ in _progress(service, row, stops):
    pass


async def _with_client(request, rows, work: Awaitable[Any]) -> Any:
  """Awaits `work`; ends the rows if the client hangs up before."""
  task = asyncio.ensure_future(work)
  gone = asyncio.create_task(_hung_up(request))
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise requests.ClientDisconnect
    return await task
  finally:
    for row in rows:
      row.end("abort")
    gone.cancel()
    task.cancel()


async def _hung_up(request):
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def _finished(service, request, wanted, rows):
  """The rows' choices once all are done, scored where that was asked."""

  async def work():
    await asyncio.gather(
      *(_until_done(service, row, wanted.stops) for row in rows)
    )
    choices = [
      openai.settle(service.tokenizer, row, wanted.stops) for row in rows
    ]
    if wanted.top or (wanted.echo and wanted.logprobs):
      choices = await _scored(service, wanted, choices)
    return choices

  return await _with_client(request, rows, work())


async def _scored(service, wanted, choices):
  """With the policy's scores of prompts and completions."""
  if service.score is None:
    raise fields.ApiError(
      400, "this engine does not score text: no echo and no likeliest tokens"
    )
  texts = [np.array([*c.prompt, *c.ids], np.int32) for c in choices]
  found = await service.scheduler.on_engine(
    lambda: service.score(service.weights, texts, wanted.temperature)
  )
  return [
    dataclasses.replace(choice, scores=scores)
    for choice, scores in zip(choices, found, strict=True)
  ]


def _record(service, name, body, message, choice):
  if service.recorded is None:
    return
  service.recorded.add(
      f"{name}_{secrets.token_hex(2)}", body["messages"],
      body.get("tools") or [], message, prompt=choice.prompt, ids=choice.ids,
      log_probs=choice.log_probs, finish=choice.finish, version=choice.version,
  )  # fmt: skip


def _envelope(service, name, kind):
  return {
    "id": name,
    "object": kind,
    "created": int(time.time()),
    "model": service.model,
    "system_fingerprint": service.version,
  }


def _sse(events):
  return responses.StreamingResponse(
    events,
    media_type="text/event-stream",
    headers={"Cache-Control": "no-cache"},
  )


def _event(value):
  return f"data: {json.dumps(value)}\n\n"


async def _merged(service, rows, stops):
  """(index, done) of rows as each has more; ends all if it is left early."""
  queue: asyncio.Queue = asyncio.Queue()

  async def follow(i):
    async for done in _progress(service, rows[i], stops[i]):
      queue.put_nowait((i, done))

  tasks = [asyncio.create_task(follow(i)) for i in range(len(rows))]
  for task in tasks:
    task.add_done_callback(queue.put_nowait)
  try:
    left = len(tasks)
    while left:
      found = await queue.get()
      if isinstance(found, asyncio.Task):
        left -= 1
        found.result()  # Raises what the row met.
      else:
        yield found
  finally:
    for row, task in zip(rows, tasks, strict=True):
      row.end("abort")
      task.cancel()


async def _chat_events(service, name, wanted, body, rows):
  """Server-sent events of a chat answer."""
  head = _envelope(service, name, "chat.completion.chunk")

  def chunk(i, delta, finish=None, logprobs=None):
    choice = {
        "index": i, "delta": delta, "finish_reason": finish,
        "logprobs": logprobs,
    }  # fmt: skip
    return _event(head | {"choices": [choice]})

  told = [0] * len(rows)  # Ids that have been told of.
  said = [""] * len(rows)
  opened = render.opens_thinking(service.tokenizer, rows[0].prompt)
  for i in range(len(rows)):
    yield chunk(i, {"role": "assistant", "content": ""})
  try:
    async for i, done in _merged(service, rows, [wanted.stops] * len(rows)):
      choice = openai.settle(service.tokenizer, rows[i], wanted.stops)
      whole = openai.chat_choice(
          service.tokenizer, wanted, i, choice, f"{name}_{i}"
      )  # fmt: skip
      message = whole["message"]
      text = message["content"] or ""
      if not done:
        text = "" if opened else wanted.forced + choice.text
        text = text_lib.visible(text_lib.safe(text, wanted.stops))
      delta: dict[str, Any] = {}
      if text.startswith(said[i]) and len(text) > len(said[i]):
        delta["content"], said[i] = text[len(said[i]) :], text
      if done:
        for part in ("reasoning_content", "tool_calls"):
          if part in message:
            delta[part] = message[part]
        for n, call in enumerate(delta.get("tool_calls", ())):
          call["index"] = n
      logprobs = None
      if wanted.logprobs and len(choice.ids) > told[i]:
        logprobs = openai.chat_logprobs(
          service.tokenizer,
          choice.ids[told[i] :],
          choice.log_probs[told[i] :],
        )
      told[i] = len(choice.ids)
      if delta or logprobs:
        yield chunk(i, delta, logprobs=logprobs)
      if done:
        yield chunk(i, {}, whole["finish_reason"])
        _record(service, name, body, message, choice)
  except fields.ApiError as error:
    yield _event(error.body)
    return
  if wanted.include_usage:
    yield _event(head | {"choices": [], "usage": _usage(rows, told)})
  yield "data: [DONE]\n\n"


async def _text_events(service, name, wanted, rows):
  """Server-sent events of a text completion."""
  head = _envelope(service, name, "text_completion")
  said, told = [""] * len(rows), [0] * len(rows)
  try:
    async for i, done in _merged(service, rows, [wanted.stops] * len(rows)):
      choice = openai.settle(service.tokenizer, rows[i], wanted.stops)
      text, told[i] = choice.text, len(choice.ids)
      if not done:
        text = text_lib.safe(text, wanted.stops)
      new, said[i] = text[len(said[i]) :], max(text, said[i], key=len)
      yield _event(
        head
        | {
          "choices": [{
              "index": i, "text": new, "logprobs": None,
              "finish_reason": choice.finish if done else None,
          }]
        }
      )  # fmt: skip
  except fields.ApiError as error:
    yield _event(error.body)
    return
  if wanted.include_usage:
    yield _event(head | {"choices": [], "usage": _usage(rows, told)})
  yield "data: [DONE]\n\n"


def _usage(rows, told):
  prompts = {id(row.prompt): len(row.prompt) for row in rows}
  return openai.usage(sum(prompts.values()), sum(told))


async def _generate(service, request):
  body = await _body(service, request)
  asked = await service.in_text_thread(_asked, service, body)
  service.scheduler.submit(asked.rows, whole=asked.many)
  if asked.stream:
    return _sse(_generate_events(service, asked))

  async def work():
    await asyncio.gather(
      *(
        _until_done(service, row, stops)
        for row, stops in zip(asked.rows, asked.stops, strict=True)
      )
    )

  await _with_client(request, asked.rows, work())
  found = [_native(service, asked, i) for i in range(len(asked.rows))]
  return responses.JSONResponse(found if asked.many else found[0])


def _asked(service, body):
  return native.generate(
      body, tokenizer=service.tokenizer, vocab_size=service.vocab_size,
      context=service.limits.context, most=service.limits.n,
      stop_ids=service.tokenizer.stop_ids,
  )  # fmt: skip


def _native(service, asked, i):
  return native.answer(
      service.tokenizer, asked.rows[i], asked.rids[i], asked.stops[i],
      logprobs=asked.logprobs,
  )  # fmt: skip


async def _generate_events(service, asked):
  """As SGLang streams: each event repeats what there is so far."""
  try:
    async for i, _ in _merged(service, asked.rows, asked.stops):
      yield _event(_native(service, asked, i) | {"index": i})
  except fields.ApiError as error:
    yield _event(error.body)
  yield "data: [DONE]\n\n"


async def _update(service, request):
  body = await _body(service, request)
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


async def _prepare(service, request):
  body = await _body(service, request)
  sampling = fields.of_kind(body, "sampling", dict, {})
  lengths = fields.token_ids(body.get("lengths"), "lengths", 1 << 31)
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
  await service.scheduler.on_engine(
    lambda: service.scheduler.engine.prepare(
      lengths, call, prompts=prompts, rows=rows
    )
  )
  return responses.JSONResponse({})


async def _release(service, request):
  await _body(service, request)
  service.scheduler.asleep = True

  def let_go():
    service.weights = None
    service.scheduler.engine.load(None, service.version)

  await service.scheduler.on_engine(let_go)
  return responses.JSONResponse(None)


async def _resume(service, request):
  """The weights come with the next hand-over."""
  await _body(service, request)
  return responses.JSONResponse(None)
