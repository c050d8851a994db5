"""The routes of OpenAI: models, chat completions, completions."""

import asyncio
import dataclasses
import secrets
import time
from typing import Any

import numpy as np
from starlette import requests
from starlette import responses

from pivotrl_jax import errors
from pivotrl_jax import seeds
from pivotrl_jax.chat import render
from pivotrl_jax.engines import base
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import follow
from pivotrl_jax.engines.serving import openai
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.engines.serving import text as text_lib


async def models(
  service: service_lib.Service, _: requests.Request
) -> responses.Response:
  """`/v1/models`: the one model, and the version of its weights."""
  return responses.JSONResponse({
      "object": "list",
      "data": [{
          "id": service.model, "object": "model", "created": 0,
          "owned_by": "pivotrl_jax", "root": service.path,
          "max_model_len": service.limits.context,
          "weight_version": service.version,
      }],
  })  # fmt: skip


async def chat(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/v1/chat/completions`."""
  body = await service_lib.body(service, request)
  wanted = openai.chat(body, model=service.model, most=service.limits.n)
  prompt, wanted = await service.in_text_thread(_chat_prompt, service, wanted)
  name = f"chatcmpl-{secrets.token_hex(12)}"
  rows = _rows(service, wanted, [prompt])
  service.scheduler.submit(rows)
  if wanted.stream:
    return follow.sse(_chat_events(service, name, wanted, body, rows))
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
  service_lib.check_length(service, *(m.content for m in wanted.messages))
  try:
    ids = render.prompt_ids(service.tokenizer, wanted.messages, wanted.tools)
  except errors.InputError as error:
    raise fields.ApiError(400, str(error), param="messages") from error
  forced = service_lib.encode(service, wanted.forced)
  return np.concatenate([ids, np.array(forced, np.int32)]), dataclasses.replace(
    wanted, forced_ids=len(forced)
  )


async def complete(
  service: service_lib.Service, request: requests.Request
) -> responses.Response:
  """`/v1/completions`."""
  body = await service_lib.body(service, request)
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
    return follow.sse(_text_events(service, name, wanted, rows))
  choices = await _finished(service, request, wanted, rows)
  for choice in choices:
    _record_text(service, name, choice)
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
    prompt = service_lib.encode(service, prompt)
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


async def _finished(service, request, wanted, rows):
  """The rows' choices once all are done, scored where that was asked."""

  async def work():
    await asyncio.gather(
      *(follow.until_done(service, row, wanted.stops) for row in rows)
    )
    choices = [
      openai.settle(service.tokenizer, row, wanted.stops) for row in rows
    ]
    if wanted.top or (wanted.echo and wanted.logprobs):
      choices = await _scored(service, wanted, choices)
    return choices

  return await follow.with_client(request, rows, work())


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


def _record_text(service, name, choice):
  asked = service.tokenizer.decode(choice.prompt)
  said = {"role": "assistant", "content": choice.text}
  chat = {"messages": [{"role": "user", "content": asked}]}
  _record(service, name, chat, said, choice)


def _envelope(service, name, kind):
  return {
    "id": name,
    "object": kind,
    "created": int(time.time()),
    "model": service.model,
    "system_fingerprint": service.version,
  }


async def _chat_events(service, name, wanted, body, rows):
  """Server-sent events of a chat answer."""
  head = _envelope(service, name, "chat.completion.chunk")

  def chunk(i, delta, finish=None, logprobs=None):
    choice = {
        "index": i, "delta": delta, "finish_reason": finish,
        "logprobs": logprobs,
    }  # fmt: skip
    return follow.event(head | {"choices": [choice]})

  told = [0] * len(rows)  # Ids that have been told of.
  said = [""] * len(rows)
  opened = render.opens_thinking(service.tokenizer, rows[0].prompt)
  for i in range(len(rows)):
    yield chunk(i, {"role": "assistant", "content": ""})
  try:
    async for i, done in follow.merged(
      service, rows, [wanted.stops] * len(rows)
    ):
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
    yield follow.event(error.body)
    return
  if wanted.include_usage:
    yield follow.event(head | {"choices": [], "usage": _usage(rows, told)})
  yield "data: [DONE]\n\n"


async def _text_events(service, name, wanted, rows):
  """Server-sent events of a text completion."""
  head = _envelope(service, name, "text_completion")
  said, told = [""] * len(rows), [0] * len(rows)
  try:
    async for i, done in follow.merged(
      service, rows, [wanted.stops] * len(rows)
    ):
      choice = openai.settle(service.tokenizer, rows[i], wanted.stops)
      text, told[i] = choice.text, len(choice.ids)
      if not done:
        text = text_lib.safe(text, wanted.stops)
      new, said[i] = text[len(said[i]) :], max(text, said[i], key=len)
      yield follow.event(
        head
        | {
          "choices": [{
              "index": i, "text": new, "logprobs": None,
              "finish_reason": choice.finish if done else None,
          }]
        }
      )  # fmt: skip
      if done:
        _record_text(service, name, choice)
  except fields.ApiError as error:
    yield follow.event(error.body)
    return
  if wanted.include_usage:
    yield follow.event(head | {"choices": [], "usage": _usage(rows, told)})
  yield "data: [DONE]\n\n"


def _usage(rows, told):
  prompts = {id(row.prompt): len(row.prompt) for row in rows}
  return openai.usage(sum(prompts.values()), sum(told))
