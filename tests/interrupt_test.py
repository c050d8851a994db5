"""Signals, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

_HEAD = """
import sys, time
from pivotrl_jax import interrupt
interrupt.install()
def say(line): print(line, flush=True)
"""
# Long work in C, during which no Python handler of the main thread runs.
_BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"


def _start(body):
  run = subprocess.Popen(
      [sys.executable, "-c", _HEAD + body], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  assert run.stdout.readline() == "ready\n"
  return run


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_at_once_with_one_line(number, status):
  run = _start(f"say('ready')\n{_BUSY}")
  run.send_signal(number)
  _, stderr = run.communicate(timeout=20)
  assert run.returncode == status
  assert stderr.count("\n") == 1
  assert stderr.startswith(f"error: {number.name}: ")


def test_held_work_ends_at_its_next_check():
  run = _start("""
try:
  with interrupt.held():
    say('ready')
    while not interrupt.asked():
      time.sleep(0.01)
    say('the step is finished')
    interrupt.check()
    say('not reached')
except interrupt.Stopped as stopped:
  say(f'{stopped} {stopped.status}')
""")
  run.send_signal(signal.SIGTERM)
  stdout, stderr = run.communicate(timeout=20)
  assert stdout == "the step is finished\nSIGTERM 143\n"
  assert stderr == "SIGTERM: ending after this step; again to end at once\n"
  assert run.returncode == 0


def test_a_signal_after_the_last_check_is_not_lost():
  run = _start("""
try:
  with interrupt.held():
    say('ready')
    while not interrupt.asked():
      time.sleep(0.01)
except interrupt.Stopped as stopped:
  sys.exit(stopped.status)
""")
  run.send_signal(signal.SIGINT)
  run.communicate(timeout=20)
  assert run.returncode == 130


def test_the_second_signal_ends_held_work_at_once():
  run = _start(f"with interrupt.held():\n  say('ready')\n  {_BUSY}")
  run.send_signal(signal.SIGTERM)
  assert "again to end at once" in run.stderr.readline()
  time.sleep(0.2)
  assert run.poll() is None
  run.send_signal(signal.SIGINT)
  _, stderr = run.communicate(timeout=20)
  assert run.returncode == 130
  assert stderr == "error: SIGINT: again; what is complete stays\n"


def test_children_end_by_a_signal_as_ever():
  run = _start("""
import subprocess
child = subprocess.Popen(['sleep', '60'])
say('ready')
child.terminate()
say(child.wait())
""")
  # Not by communicate: what came along with "ready" is in the file's buffer.
  assert run.stdout.read() == "-15\n"
  run.communicate(timeout=20)
