"""Runs model-edited Python for a final check, and only what is safe to run.

Two walls. First a small grammar: code that uses anything outside of it is
refused unexecuted. Then a process of its own (`python -I -S`, no inherited
environment or files) with limits on time, memory and file size, for what a
grammar cannot see: endless loops and runaway allocations. A small server
forks that process, which costs a millisecond instead of a start of Python.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading

SECONDS = 2
MEMORY = 512 * 1024 * 1024  # Bytes of address space; the interpreter's own in.
MAX_SOURCE = 4000  # Characters of a file.

BUILTINS = (
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len",
    "list", "max", "min", "range", "reversed", "round", "set", "sorted", "str",
    "sum", "tuple", "zip",
)  # fmt: skip
METHODS = frozenset(
    (
        "append", "count", "endswith", "extend", "find", "get", "index",
        "items", "join", "keys", "lower", "lstrip", "pop", "replace",
        "rstrip", "split", "startswith", "strip", "title", "upper", "values",
    )
)  # fmt: skip
_NODES = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return,
    ast.Assign, ast.AugAssign, ast.For, ast.While, ast.If, ast.IfExp,
    ast.Expr, ast.Pass, ast.Break, ast.Continue, ast.BoolOp, ast.And, ast.Or,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.Compare, ast.Eq, ast.NotEq,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
    ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice,
    ast.Constant, ast.Name, ast.Load, ast.Store, ast.List, ast.Tuple,
    ast.Dict, ast.Set, ast.ListComp, ast.GeneratorExp, ast.DictComp,
    ast.SetComp, ast.comprehension,
)  # fmt: skip

# The server forks a child a job, which sets its own limits first; the code
# under test sees no builtins but ours, so it cannot reach `os` or `resource`.
_SERVER = """
import json, os, resource, select, signal, sys, time
own = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)
def check(names, source, call, want):
  scope = {"__builtins__": names}
  try:
    exec(compile(source, "file", "exec"), scope)
    got = eval(compile(call, "call", "eval"), scope)
    want = eval(want, {"__builtins__": {}})
    return [bool(got == want and type(got) is type(want)), repr(got)[:80]]
  except BaseException as e:
    return [False, type(e).__name__]
def child(job, out):
  for what, size in job["limits"]:
    resource.setrlimit(getattr(resource, what), (size, size))
  sys.setrecursionlimit(200)
  names = {n: own[n] for n in job["builtins"]}
  found = [check(names, *c) for c in job["checks"]]
  os.write(out, json.dumps(found).encode())
for line in sys.stdin:
  job = json.loads(line)
  source, out = os.pipe()
  pid = os.fork()
  if not pid:
    try:
      os.close(0), os.close(1), os.close(source)
      child(job, out)
    finally:
      os._exit(0)
  os.close(out)
  end, text = time.monotonic() + job["seconds"], b""
  while True:
    left = end - time.monotonic()
    if left <= 0 or not select.select([source], [], [], left)[0]:
      os.kill(pid, signal.SIGKILL)
      text = b""
      break
    part = os.read(source, 65536)
    if not part:
      break
    text += part
  os.close(source)
  os.waitpid(pid, 0)
  print(text.decode() or "null", flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Check:
  """One hidden test: `call`, evaluated in `path`, must give `want` (a repr)."""

  path: str
  call: str
  want: str


@dataclasses.dataclass(frozen=True)
class Result:
  """Whether a check passed, and what it gave (a repr, an error's name)."""

  passed: bool
  got: str


def refusal(source: str) -> str | None:
  """Why `source` lies outside the grammar; None where it lies inside."""
  if len(source) > MAX_SOURCE:
    return f"longer than {MAX_SOURCE} characters"
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    return type(error).__name__
  for node in ast.walk(tree):
    if not isinstance(node, _NODES):
      return f"{type(node).__name__} is not allowed"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
      return "decorators are not allowed"
    if isinstance(node, ast.Attribute) and node.attr not in METHODS:
      return f"attribute {node.attr} is not allowed"
    if isinstance(node, ast.Constant) and not _plain(node.value):
      return "constant is not allowed"
    for name in (getattr(node, "id", None), getattr(node, "name", None)):
      if name and name.startswith("_"):
        return f"name {name} is not allowed"
  return None


def run_checks(
  files: Mapping[str, str], checks: Sequence[Check]
) -> tuple[Result, ...]:
  """Runs `checks` on `files`, each in a fresh namespace.

  A file outside the grammar fails its checks unexecuted; a process that dies
  or runs out of time fails them all.

  Args:
    files: source by path.
    checks: what to call, in trusted text.

  Returns:
    One result a check, in order.
  """
  return _run(tuple(sorted(files.items())), tuple(checks))


@functools.lru_cache(maxsize=4096)
def _run(files, checks):
  sources = dict(files)
  refused = {path: refusal(sources[path]) for path in sources}
  results: dict[int, Result] = {}
  jobs = []
  for i, check in enumerate(checks):
    reason = refused.get(check.path, "no such file")
    if reason:
      results[i] = Result(False, reason)
    else:
      jobs.append((i, [sources[check.path], check.call, check.want]))
  if jobs:
    outcomes = _child([job for _, job in jobs])
    for (i, _), outcome in zip(jobs, outcomes, strict=True):
      results[i] = outcome
  return tuple(results[i] for i in range(len(checks)))


def _child(jobs):
  job = {
    "limits": [
      ("RLIMIT_CPU", SECONDS),
      ("RLIMIT_AS", MEMORY),
      ("RLIMIT_FSIZE", 0),
      ("RLIMIT_CORE", 0),
    ],
    "seconds": 2 * SECONDS,
    "builtins": [*BUILTINS, "True", "False", "None"],
    "checks": jobs,
  }
  server = _server(os.getpid())
  with _LOCK:
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    found = json.loads(server.stdout.readline())
  if found is None:
    return [Result(False, "killed")] * len(jobs)
  return [Result(passed, got) for passed, got in found]


_LOCK = threading.Lock()


@functools.cache
def _server(owner):
  """The server of this process; it ends with its standard input."""
  del owner
  return subprocess.Popen(
    [sys.executable, "-I", "-S", "-c", _SERVER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env={},
    cwd="/",
  )


def _plain(value):
  """Small numbers, strings, booleans and None."""
  if isinstance(value, int):
    return abs(value) <= 10**9
  return value is None or isinstance(value, (float, str))
