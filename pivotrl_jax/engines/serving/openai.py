"""OpenAI's chat and text completions: what is asked, and how it is answered."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data.importers import chat as chat_lib
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import scoring
from pivotrl_jax.engines.serving import text as text_lib

_SHARED = (
    "model", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop",
    "logprobs", "stream", "stream_options", "return_token_ids",
)  # fmt: skip
_CHAT = frozenset(_SHARED) | {
    "messages", "tools", "tool_choice", "max_completion_tokens", "top_logprobs",
}  # fmt: skip
_TEXT = frozenset(_SHARED) | {"prompt", "echo"}
_HARMLESS = frozenset((
    "user", "metadata", "store", "service_tier", "safety_identifier",
    "prompt_cache_key",
))  # fmt: skip
# What is not implemented, and at which values that makes no difference.
_NEUTRAL = {
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "repetition_penalty": (1,),
  "min_p": (0,),
  "logit_bias": ({},),
  "response_format": ({"type": "text"},),
  "parallel_tool_calls": (True,),
  "best_of": (1,),
  "suffix": ("",),
  "functions": ([],),
}
_MOST_STOPS = 16
_CALL = '<tool_call>\n{"name": '


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a request asks for, checked.

  Attributes:
    n: completions of a prompt.
    max_tokens: None for as many as there is room for.
    temperature, top_p, top_k, seed: how to sample; seed None for any.
    stops: texts that end a completion and are not part of it.
    logprobs: whether to tell log-probs.
    top: how many of the likeliest tokens to tell beside each.
    stream, include_usage, return_token_ids, echo: forms of the answer.
    messages, tools: of a chat.
    forced: what the answer must begin with, by `tool_choice`.
    forced_ids: how many ids at the prompt's end are that.
    prompts: texts or ids of text completions.
  """

  n: int
  max_tokens: int | None
  temperature: float
  top_p: float
  top_k: int
  seed: int | None
  stops: tuple[str, ...]
  logprobs: bool
  top: int
  stream: bool
  include_usage: bool
  return_token_ids: bool
  echo: bool = False
  messages: tuple[types.Message, ...] = ()
  tools: tuple[dict[str, Any], ...] = ()
  forced: str = ""
  forced_ids: int = 0
  prompts: tuple[Any, ...] = ()


def chat(body: Mapping[str, Any], *, model: str, most: int) -> Wanted:
  """Reads a chat request; ApiError where it is not one.

  Args:
    body: the request.
    model: the one that is served.
    most: greatest n.
  """
  fields.check_known(body, honoured=_CHAT, harmless=_HARMLESS, neutral=_NEUTRAL)
  logprobs = fields.of_kind(body, "logprobs", bool, False)
  top = fields.number(
    body, "top_logprobs", 0, least=0, most=scoring.MOST, whole=True
  )
  if top and not logprobs:
    raise fields.ApiError(
      400, "top_logprobs: needs logprobs=true", param="top_logprobs"
    )
  _check_streamed(body, "top_logprobs")
  given = fields.of_kind(body, "messages", list, None)
  if not given:
    raise fields.ApiError(
      400, "messages: none; expected at least one", param="messages"
    )
  for i, value in enumerate(given):
    _check_parts(value, f"messages[{i}]")
  try:
    messages = tuple(chat_lib.messages(given))
  except errors.InputError as error:
    raise fields.ApiError(400, str(error), param="messages") from error
  tools = _tools(body)
  forced, tools = _forced(body.get("tool_choice"), tools)
  tokens = (
    "max_tokens"
    if body.get("max_completion_tokens") is None
    else "max_completion_tokens"
  )
  return Wanted(
    **_shared(body, model, most),
    max_tokens=fields.number(body, tokens, None, least=1, whole=True),
    logprobs=logprobs,
    top=top,
    messages=messages,
    tools=tools,
    forced=forced,
  )


def completion(
  body: Mapping[str, Any], *, model: str, most: int, vocab_size: int
) -> Wanted:
  """Reads a text completion request; see `chat`."""
  fields.check_known(body, honoured=_TEXT, harmless=_HARMLESS, neutral=_NEUTRAL)
  top = fields.number(
    body, "logprobs", None, least=0, most=scoring.MOST, whole=True
  )
  _check_streamed(body, "logprobs", "echo")
  given = body.get("prompt")
  if isinstance(given, str) or (
    isinstance(given, list) and given and isinstance(given[0], int)
  ):
    given = [given]
  if not isinstance(given, list) or not 0 < len(given) <= most:
    raise fields.ApiError(
      400, f"prompt: expected text, ids, or 1 to {most} of them", param="prompt"
    )
  for prompt in given:
    if not isinstance(prompt, str):
      fields.token_ids(prompt, "prompt", vocab_size)
  return Wanted(
    **_shared(body, model, most),
    max_tokens=fields.number(body, "max_tokens", 16, least=0, whole=True),
    logprobs=top is not None,
    top=top or 0,
    echo=fields.of_kind(body, "echo", bool, False),
    prompts=tuple(given),
  )


def _check_streamed(body, *names):
  """Fields that a stream cannot honour."""
  for name in names:
    if body.get("stream") and body.get(name):
      raise fields.ApiError(
        400,
        f"{name}: not supported with stream=true",
        param=name,
        code="unsupported_value",
      )


def _check_parts(value, place):
  """What is no text would be dropped."""
  content = value.get("content") if isinstance(value, dict) else None
  for part in content if isinstance(content, list) else ():
    if isinstance(part, dict) and part.get("type", "text") != "text":
      raise fields.ApiError(
        400,
        f"{place}.content: a part of type {part['type']!r:.80}; expected text",
        param="messages",
        code="unsupported_value",
      )


def _shared(body, model, most):
  named = fields.of_kind(body, "model", str, model)
  if named != model:
    raise fields.ApiError(
      404,
      f"The model {named!r:.80} does not exist; expected {model!r}",
      param="model",
      code="model_not_found",
    )
  stops = body.get("stop") or []
  stops = [stops] if isinstance(stops, str) else stops
  if (
    not isinstance(stops, list)
    or len(stops) > _MOST_STOPS
    or not all(isinstance(s, str) and s for s in stops)
  ):
    raise fields.ApiError(
      400,
      f"stop: {body['stop']!r:.80}; expected text, or up to {_MOST_STOPS}",
      param="stop",
    )
  options = fields.of_kind(body, "stream_options", dict, {})
  top_p = fields.number(body, "top_p", 1.0, least=0, most=1)
  return {
    "n": fields.number(body, "n", 1, least=1, most=most, whole=True),
    "temperature": fields.number(body, "temperature", 1.0, least=0, most=100),
    "top_p": top_p or 1e-6,  # 0 keeps the likeliest token.
    "top_k": fields.top_k(body),
    "seed": fields.number(
      body, "seed", None, least=-(1 << 63), most=(1 << 64) - 1, whole=True
    ),
    "stops": tuple(stops),
    "stream": fields.of_kind(body, "stream", bool, False),
    "include_usage": bool(options.get("include_usage")),
    "return_token_ids": fields.of_kind(body, "return_token_ids", bool, False),
  }


def _tools(body):
  tools = fields.of_kind(body, "tools", list, [])
  for tool in tools:
    inner = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
      raise fields.ApiError(
        400,
        f"tools: {tool!r:.80}; expected"
        ' {"type": "function", "function": {"name": ..}}',
        param="tools",
      )
  return tuple(tools)


def _forced(choice, tools):
  """How the answer must begin, and the tools that are shown."""
  names = [tool["function"]["name"] for tool in tools]
  if choice in (None, "auto"):
    return "", tools
  if choice == "none":
    return "", ()
  if isinstance(choice, dict):
    inner = choice.get("function")
    name = inner.get("name") if isinstance(inner, dict) else None
    if name in names:
      return f'{_CALL}"{name}", "arguments": ', tools
  elif choice == "required" and names:
    return f'{_CALL}"', tools
  raise fields.ApiError(
    400,
    f"tool_choice: {choice!r:.80}; expected none, auto, required, or one of"
    " the tools",
    param="tool_choice",
  )


@dataclasses.dataclass(frozen=True)
class Choice:
  """One finished completion.

  Attributes:
    prompt: its ids.
    ids, log_probs: sampled, the last one through the stop.
    text: without what stopped it.
    finish: "stop" or "length".
    cut: whether a stop string has cut the text.
    version: of the weights, the last.
    scores: of prompt and completion, where asked for.
  """

  prompt: Sequence[int]
  ids: Sequence[int]
  log_probs: Sequence[float]
  text: str
  finish: str
  cut: bool
  version: str
  scores: scoring.Scores | None = None


def settle(
  tokenizer: tokenizer_lib.Tokenizer,
  row: scheduler.Row,
  stops: Sequence[str],
) -> Choice:
  """A row that is done, or that said a stop string."""
  stopped = row.finish == "stop" and row.ids[-1] in row.sampling.stop_ids
  spoken = row.ids[:-1] if stopped else row.ids
  cut = text_lib.cut_at_stop(tokenizer, spoken, stops)
  if cut:
    count, text, finish = *cut, "stop"
  else:
    count, finish = len(row.ids), row.finish
    text = tokenizer.decode(spoken)
  return Choice(
    prompt=row.prompt.tolist(),
    ids=row.ids[:count],
    log_probs=row.log_probs[:count],
    text=text,
    finish=finish,
    cut=cut is not None,
    version=row.versions[-1][0] if row.versions else "",
  )


def chat_choice(
  tokenizer: tokenizer_lib.Tokenizer,
  wanted: Wanted,
  index: int,
  choice: Choice,
  call_id: str,
) -> dict[str, Any]:
  """A choice of a chat answer."""
  # What the answer had to begin with stands at the prompt's end.
  start = len(choice.prompt) - wanted.forced_ids
  forced = choice.prompt[start:]
  said = text_lib.message(
    tokenizer,
    [*forced, *choice.ids],
    stopped=wanted.forced + choice.text if choice.cut else None,
    finish=choice.finish,
    opened=render.opens_thinking(tokenizer, np.array(choice.prompt[:start])),
  )
  ids = [f"{call_id}_{i}" for i in range(len(said.tool_calls))]
  out = {
    "index": index,
    "message": text_lib.chat_json(said, ids),
    "finish_reason": "tool_calls" if said.tool_calls else choice.finish,
    "logprobs": None,
  }
  if wanted.logprobs:
    out["logprobs"] = chat_logprobs(
      tokenizer, choice.ids, choice.log_probs, wanted.top, choice
    )
  if wanted.return_token_ids:
    out["token_ids"] = list(choice.ids)
  return out


def chat_logprobs(
  tokenizer: tokenizer_lib.Tokenizer,
  ids: Sequence[int],
  log_probs: Sequence[float],
  top: int = 0,
  choice: Choice | None = None,
) -> dict[str, Any]:
  """Log-probs of the sampled tokens as a chat tells them."""
  content = []
  for i, (piece, value) in enumerate(
    zip(text_lib.pieces(tokenizer, ids), log_probs, strict=True)
  ):
    content.append(_told(piece, value) | {"top_logprobs": []})
    if top:
      scores, at = choice.scores, len(choice.prompt) + i
      content[-1]["top_logprobs"] = [
        _told(likely, likely_value)
        for likely, likely_value in zip(
          text_lib.pieces(tokenizer, scores.top_ids[at, :top].tolist()),
          scores.top_log_probs[at, :top].tolist(),
          strict=True,
        )
      ]
  return {"content": content}


def _told(piece, value):
  return {"token": piece[0], "logprob": value, "bytes": piece[1]}


def text_choice(
  tokenizer: tokenizer_lib.Tokenizer,
  wanted: Wanted,
  index: int,
  choice: Choice,
) -> dict[str, Any]:
  """A choice of a text completion."""
  text = choice.text
  if wanted.echo:
    text = tokenizer.decode(choice.prompt) + text
  out = {
    "index": index,
    "text": text,
    "finish_reason": choice.finish,
    "logprobs": _text_logprobs(tokenizer, wanted, choice)
    if wanted.logprobs
    else None,
  }
  if wanted.return_token_ids:
    out["token_ids"] = list(choice.ids)
    out["prompt_token_ids"] = list(choice.prompt)
  return out


def _text_logprobs(tokenizer, wanted, choice):
  """Log-probs of the tokens, from the prompt's first where it is echoed."""
  start = 0 if wanted.echo else len(choice.prompt)
  ids = [*choice.prompt, *choice.ids][start:]
  texts = [piece for piece, _ in text_lib.pieces(tokenizer, ids)]
  values = list(choice.log_probs)
  if wanted.echo:
    before = choice.scores.log_probs[: len(choice.prompt)].tolist()
    values = [None if math.isnan(x) else x for x in before] + values
  top = None
  if wanted.top:
    top = [
      _likeliest(tokenizer, choice.scores, at, wanted.top)
      for at in range(start, start + len(ids))
    ]
  return {
    "tokens": texts,
    "token_logprobs": values,
    "top_logprobs": top,
    "text_offset": text_lib.offsets(texts, 0),
  }


def _likeliest(tokenizer, scores, at, top):
  """Text -> log-prob of the likeliest tokens; None at the first place."""
  if at == 0:
    return None
  pieces = text_lib.pieces(tokenizer, scores.top_ids[at, :top].tolist())
  values = scores.top_log_probs[at, :top].tolist()
  found: dict[str, float] = {}
  for (piece, _), value in zip(pieces, values, strict=True):
    found.setdefault(piece, value)  # The likelier of two that look alike.
  return found


def usage(prompts: int, sampled: int) -> dict[str, int]:
  """Tokens of an exchange."""
  return {
    "prompt_tokens": prompts,
    "completion_tokens": sampled,
    "total_tokens": prompts + sampled,
  }
