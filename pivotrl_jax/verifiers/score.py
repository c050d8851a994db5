"""Scores actions against demonstrations, without any training.

  python -m pivotrl_jax.verifiers.score --input=cases.jsonl --output=scored.jsonl

A line in, a line out, in order; a case that cannot be read gets reward 0 and
the reason why, one whose judge gave no verdict gets reward null. Memory does
not grow with the input.
"""

import collections
from collections.abc import Iterable, Iterator
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
import tqdm

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.verifiers import cases
from pivotrl_jax.verifiers import judge as judge_lib

_INPUT = flags.DEFINE_string("input", None, "Cases, JSON lines; .gz too.")
_OUTPUT = flags.DEFINE_string("output", None, "Verdicts, JSON lines.")
_WORKERS = flags.DEFINE_integer(
  "workers", 0, "Processes; 0 = one a core.", lower_bound=0
)
_JUDGE_URL = flags.DEFINE_string(
  "judge_url", "", "OpenAI-compatible endpoint, for cases that need a judge."
)
_JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "The judge's name there.")
_JUDGE_CACHE = flags.DEFINE_string(
  "judge_cache", "", "Folder of its answers; '' = OUTPUT.judge."
)

_CHUNK = 64  # Lines a worker takes at once.
_AHEAD = 4  # Chunks in work or done, for each worker.
_ASKING = 8  # Threads of a worker that wait for a judge.


_judge: judge_lib.Judge | None = None  # Of this process.


def score_line(line: bytes, judge: judge_lib.Judge | None = None) -> str:
  """One case's line -> its verdict's line."""
  carried = {}
  try:
    case = json.loads(line)
    if not isinstance(case, dict):
      raise errors.InputError(f"{type(case).__name__}; expected an object")
    carried = {k: v for k, v in case.items() if k not in cases.FIELDS}
    verdict = cases.read(case, judge=judge).score()
  except (ValueError, RecursionError) as error:
    # InputError is a ValueError, and so is whatever is not JSON.
    verdict = types.Verdict(0.0, f"unreadable_case: {error}"[:300])
  return (
    records.encode({"id": None, **carried, **dataclasses.asdict(verdict)})
    + "\n"
  )


def score_lines(
  lines: Iterable[bytes], *, workers: int, judge: dict[str, Any] | None = None
) -> Iterator[str]:
  """Verdict lines of case lines, in order.

  Args:
    lines: taken a bounded number ahead.
    workers: processes.
    judge: keyword arguments of `judge.Endpoint`; None has no judge.
  """
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    # Nothing has started a thread or a backend yet, and the imports are done.
    mp_context=multiprocessing.get_context("fork"),
    initializer=_start,
    initargs=(judge,),
  ) as pool:
    lines = iter(lines)
    waiting: collections.deque = collections.deque()
    while chunk := list(itertools.islice(lines, _CHUNK)):
      waiting.append(pool.submit(_score_chunk, chunk))
      if len(waiting) == _AHEAD * workers:
        yield from waiting.popleft().result()
    while waiting:
      yield from waiting.popleft().result()


def _start(judge):
  global _judge
  _judge = judge_lib.Endpoint(**judge) if judge else None


def _score_chunk(lines):
  """A chunk's verdicts; those that wait for a judge wait together."""
  if _judge is None:
    return [score_line(line) for line in lines]
  with concurrent.futures.ThreadPoolExecutor(_ASKING) as pool:
    return list(pool.map(lambda line: score_line(line, _judge), lines))


def main(_):
  source = pathlib.Path(_INPUT.value).expanduser()
  output = pathlib.Path(_OUTPUT.value).expanduser()
  judge = None
  if _JUDGE_URL.value:
    judge = {
      "url": _JUDGE_URL.value,
      "model": _JUDGE_MODEL.value,
      "key": os.environ.get(judge_lib.KEY_VARIABLE, ""),
      "cache": pathlib.Path(
        _JUDGE_CACHE.value or f"{output}.judge"
      ).expanduser(),
    }
  missing = 0

  def counted(rows):
    nonlocal missing
    for row in rows:
      missing += json.loads(row)["reward"] is None
      yield row

  try:
    lines = (line for _, line in records.read_lines(source))
    scored = score_lines(
      tqdm.tqdm(lines, unit=" cases", disable=not sys.stderr.isatty()),
      workers=_WORKERS.value or os.cpu_count() or 1,
      judge=judge,
    )
    count = records.write_text(output, counted(scored))
  except errors.InputError as error:
    sys.exit(f"score: {error}")
  logging.info("%d verdicts in %s", count - missing, output)
  if missing:
    logging.warning(
      "%d cases without a verdict: the judge could not be asked or gave none;"
      " the same command asks again for these alone",
      missing,
    )


if __name__ == "__main__":
  flags.mark_flags_as_required(["input", "output"])
  app.run(main)
