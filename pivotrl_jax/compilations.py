"""Counts compiled programs: after the first step of a stage there are none."""

import contextlib

from absl import logging
import jax

_expected = 0  # How many parts of the program are warming up.


@contextlib.contextmanager
def expected():
  """What is compiled within, by any thread, is a warm-up, and not counted."""
  global _expected
  _expected += 1
  try:
    yield
  finally:
    _expected -= 1


class Compilations:
  """Programs that were compiled, or read from the cache, since the last look.

  Attributes:
    count: how many.
    seconds: what they took.
  """

  def __init__(self):
    self.count, self.seconds = 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event, duration, **_):
    if event.endswith("backend_compile_duration") and not _expected:
      self.count += 1
      self.seconds += duration

  def log(self, stage: str, place: str, *, warm: bool) -> None:
    """Says what was compiled since the last call; a warning if `warm`."""
    if self.count:
      logging.log(
          logging.WARNING if warm else logging.INFO,
          "%s: %d programs compiled in %s, %.1f s",
          stage, self.count, place, self.seconds,
      )  # fmt: skip
    self.count, self.seconds = 0, 0.0
