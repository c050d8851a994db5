"""Rows of a request as they grow: waited for, streamed, given up.

A client that hangs up ends its rows; so does an error of one of them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
import json
from typing import Any

from starlette import requests
from starlette import responses

from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.engines.serving import text as text_lib


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


async def until_done(
  service: service_lib.Service, row: scheduler.Row, stops: Sequence[str]
) -> None:
  """Waits for a row; ApiError where the engine failed on it or it was ended."""
  async for _ in _progress(service, row, stops):
    pass


async def _hung_up(request):
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def with_client(
  request: requests.Request,
  rows: Sequence[scheduler.Row],
  work: Awaitable[Any],
) -> Any:
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


async def merged(
  service: service_lib.Service,
  rows: Sequence[scheduler.Row],
  stops: Sequence[Sequence[str]],
) -> AsyncIterator[tuple[int, bool]]:
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


def event(value: Any) -> str:
  """A server-sent event."""
  return f"data: {json.dumps(value)}\n\n"


def sse(events: AsyncIterator[str]) -> responses.StreamingResponse:
  """An answer that streams."""
  return responses.StreamingResponse(
    events,
    media_type="text/event-stream",
    headers={"Cache-Control": "no-cache"},
  )
