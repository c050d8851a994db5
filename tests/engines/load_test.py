"""`serve` under load from a second process on loopback."""

import json
import pathlib
import subprocess
import sys

import numpy as np

CLIENTS = pathlib.Path(__file__).parent / "load_clients.py"


def _ask(served, *numbers):
  done = subprocess.run(
    [sys.executable, str(CLIENTS), served.address, *map(str, numbers)],
    capture_output=True,
    check=True,
    timeout=300,
  )
  return json.loads(done.stdout)


def test_many_clients_are_served_alike_and_faster(served):
  one = _ask(served, 1, 4, 1, 128)
  many = _ask(served, 64, 2, 1, 128)
  assert one["codes"] == {"200": 4}
  assert many["codes"] == {"200": 64 * 2}
  # How much faster, an idle machine tells.
  assert many["tokens_per_second"] > one["tokens_per_second"]
  assert max(many["seconds"]) < 2 * np.median(many["seconds"])


def test_over_the_queue_a_refusal_is_clean(served):
  # 64 clients ask for 16 each, 1,024 in all; 256 may wait or run.
  found = _ask(served, 64, 1, 16, 64)
  assert set(found["codes"]) == {"200", "429"}
  assert found["codes"]["200"] >= 16
  assert all(r == ["rate_limit_error", "1"] for r in found["refused"])
  assert not served.service.scheduler.load
