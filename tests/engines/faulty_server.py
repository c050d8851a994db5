"""A server of ours in a process, which meets faults as a file lists them.

  python faulty_server.py MODEL PORT FAULTS

FAULTS is a JSON list; each `/generate` takes the first of it, in whatever
process: "ok", "500", "half", "fewer", "hang", "old", "other" or "die".
"""

import asyncio
import fcntl
import json
import os
import pathlib
import sys

import jax
from starlette import responses
import uvicorn

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

from configs import swe  # noqa: E402
from pivotrl_jax.engines import policy as policy_lib  # noqa: E402
from pivotrl_jax.engines import server  # noqa: E402


def take(path):
  """The next fault; "ok" where there is none left."""
  with open(path, "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    first, *rest = json.load(file) or ["ok"]
    file.seek(0)
    file.truncate()
    json.dump(rest, file)
  return first


class Faulty:
  """An ASGI application that disturbs another."""

  def __init__(self, service, start, faults):
    self._app, self._service = server.app(service), service
    self._start, self._faults = start, faults

  async def __call__(self, scope, receive, send):
    fault = "ok"
    if scope["type"] == "http" and scope["path"] == "/generate":
      fault = take(self._faults)
    if fault == "die":
      os._exit(9)
    if fault == "500":
      send_it = responses.PlainTextResponse("broken", 500)
      return await send_it(scope, receive, send)
    if fault == "hang":
      return await asyncio.sleep(3600)
    if fault in ("old", "other"):
      await self._change(fault)
    if fault not in ("half", "fewer"):
      return await self._app(scope, receive, send)
    sent = []

    async def keep(message):
      sent.append(message)

    await self._app(scope, receive, keep)
    body = b"".join(m.get("body", b"") for m in sent)
    if fault == "half":
      body = body[: len(body) // 2]
    else:
      body = json.dumps(json.loads(body)[:-1]).encode()
    await responses.Response(body, sent[0]["status"])(scope, receive, send)

  async def _change(self, fault):
    """The starting weights, or others, under the name they started with."""
    engine = self._service.scheduler.engine
    weights = self._start
    if fault == "other":
      weights = jax.tree.map(lambda x: -x, weights)
    await self._service.scheduler.on_engine(
      lambda: engine.load(weights, "default")
    )


def main(model, port, faults):
  # Who starts again, or beside another, compiles nothing again.
  programs = pathlib.Path(faults).parent.parent / "programs"
  jax.config.update("jax_compilation_cache_dir", str(programs))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  config = swe.get_config("tiny")
  config.model.path = model
  config.data.max_prompt_tokens = 256
  config.serve.context = 2048
  config.serve.batch_rows = 8  # One shape: little to compile.
  policy = policy_lib.load(pathlib.Path(model))
  service = server.make(config, policy)
  service.scheduler.engine.version = "default"
  uvicorn.run(
      Faulty(service, service.weights, faults), port=int(port),
      log_level="warning", lifespan="on", timeout_graceful_shutdown=1,
  )  # fmt: skip


if __name__ == "__main__":
  main(*sys.argv[1:])
