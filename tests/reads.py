"""`main` that also notes which config keys each stage reads.

  python tests/reads.py FILE --config=... --workdir=...

writes `{stage: [section.key, ...]}` to FILE.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import importlib
import json
import pathlib
import sys
from typing import Any

from pivotrl_jax import main
from pivotrl_jax import stages

_SEEN: dict[str, set[str]] = {}


class _Noting:
  """A config that notes which of its keys are read."""

  def __init__(self, config, seen, before=""):
    self._config, self._seen, self._before = config, seen, before

  def __getitem__(self, name):
    value = self._config[name]
    if hasattr(value, "to_dict"):
      return _Noting(value, self._seen, f"{self._before}{name}.")
    self._seen.add(self._before + name)
    return value

  __getattr__ = __getitem__

  def get(self, name, default=None):
    return self[name] if name in self._config else default

  def to_dict(self):
    values = self._config.to_dict()
    self._seen.update(stages.flat(values, self._before))
    return values


def __getattr__(name: str) -> Callable[[Any, pathlib.Path], Any]:
  """`run_STAGE`: that stage's function, on a config that notes."""
  if not name.startswith("run_"):
    raise AttributeError(name)
  stage = name.removeprefix("run_")
  module, function = _STAGES[stage].function.split(":")

  def run(config, workdir):
    seen = _SEEN.setdefault(stage, set())
    return getattr(importlib.import_module(module), function)(
      _Noting(config, seen), workdir
    )

  return run


@contextlib.contextmanager
def noted():
  """Within it, stages note what they read in the dict that it gives."""
  _SEEN.clear()
  stages.STAGES.update(
    {
      name: dataclasses.replace(stage, function=f"{__name__}:run_{name}")
      for name, stage in _STAGES.items()
    }
  )
  try:
    yield _SEEN
  finally:
    stages.STAGES.update(_STAGES)


def assert_keys_hold(config: Any, seen: dict[str, Any]) -> None:
  """A stage's key has every key that it read, or it is harmless; no other."""
  for name, read in seen.items():
    decides = stages.given(config, name) | stages.grown(config, name)
    lacking = {
      key
      for key in set(read) - decides.keys()
      if not stages.is_harmless(config, name, key)
    }
    assert not lacking, f"{name} reads {lacking}, which its key lacks"
    unread = decides.keys() - set(read) - _UNREAD.get(name, set())
    assert not unread, f"{name}'s key has {unread}, which it does not read"


_STAGES = dict(stages.STAGES)
# The report finds its own in config.json; there is one optimizer so far.
_UNREAD = {
  "report": {"domain", "pivots.threshold", "pivots.min_std"},
  "train": {"optimizer"},
}


if __name__ == "__main__":
  out = pathlib.Path(sys.argv.pop(1))
  # The module by its own name, by which stages find their functions.
  reads = importlib.import_module("reads")
  with reads.noted() as found:
    try:
      main.entry()
    finally:
      out.write_text(json.dumps({k: sorted(v) for k, v in found.items()}))
