"""A shell of its own: lines to files and output, in pure Python.

Files are a dict, path -> text, or None for a directory; nothing else is ever
touched. There are words, quotes, globs, pipes, redirections, `;`, `&&` and
`||`; no variables, substitutions or loops. All sizes are bounded.
"""

import dataclasses
import posixpath

from pivotrl_jax.envs.terminal import commands
from pivotrl_jax.envs.terminal import patterns
from pivotrl_jax.envs.terminal import sessions

HOME = "/app"
MOST_FILES = 100
MOST_TEXT = 6000  # Characters of all files.
MOST_OUTPUT = 4000  # Of a command.
MOST_LINE = 1000  # Characters of a line typed.
MOST_WORDS = 200
Files = dict[str, str | None]
_OPERATORS = ("&&", "||", ">>", "2>&1", "2>", "|", ";", ">", "<")


@dataclasses.dataclass(frozen=True)
class Shell:
  """Between two lines: the files, and where one stands."""

  files: Files
  cwd: str = HOME


@dataclasses.dataclass(frozen=True)
class _Word:
  """A word, and its text with quoted characters masked: globs are bare."""

  text: str
  bare: str


def run(shell: Shell, line: str) -> tuple[Shell, str]:
  """Carries out a line; whatever it is, there is an answer.

  Args:
    shell: before it.
    line: as typed; may hold several commands.

  Returns:
    The shell after it, and what it printed.
  """
  if len(line) > MOST_LINE:
    return shell, "sh: line too long\n"
  words = _words(line)
  if isinstance(words, str):
    return shell, f"sh: {words}\n"
  session = sessions.Session(dict(shell.files), shell.cwd)
  output, last, ok = [], ";", True
  for operator, pipeline in _pipelines(words):
    if last == ";" or (last == "&&") == ok:
      text, ok = _pipeline(session, pipeline)
      output.append(text)
    last = operator
  return Shell(session.files, session.cwd), "".join(output)


def _words(line):
  """Words and operators of a line; or why it cannot be read."""
  found, at = [], 0
  while at < len(line):
    operator = next((o for o in _OPERATORS if line.startswith(o, at)), None)
    if line[at] in " \t":
      at += 1
    elif line[at] == "#":
      break
    elif operator:
      found.append(operator)
      at += len(operator)
    elif line[at] in "&()":
      return f"{line[at]} is not supported"
    else:
      word = _word(line, at)
      if isinstance(word, str):
        return word
      found.append(word[0])
      at = word[1]
  if len(found) > MOST_WORDS:
    return "too many words"
  return found


def _word(line, at):
  """The word at `at`, and where it ends; or why it cannot be read."""
  text, bare = [], []
  while at < len(line) and line[at] not in " \t|;<>&()":
    char = line[at]
    if char in "'\"":
      end = _closing(line, at)
      if end < 0:
        return f"unclosed {char}"
      inside = line[at + 1 : end]
      if char == '"':
        if "$" in inside or "`" in inside:
          return "$ is not supported in double quotes"
        inside = inside.replace('\\"', '"').replace("\\\\", "\\")
      text.append(inside)
      bare.append("\0" * len(inside))
      at = end + 1
    elif char in "$`":
      return f"{char} is not supported"
    elif char == "\\" and at + 1 < len(line):
      text.append(line[at + 1])
      bare.append("\0")
      at += 2
    else:
      text.append(char)
      bare.append(char)
      at += 1
  return _Word("".join(text), "".join(bare)), at


def _closing(line, at):
  """Where the quote at `at` is closed; -1 where it is not."""
  quote, i = line[at], at + 1
  while i < len(line):
    if line[i] == "\\" and quote == '"':
      i += 2
      continue
    if line[i] == quote:
      return i
    i += 1
  return -1


def _pipelines(words):
  """(operator after it, its words) of each pipeline."""
  current = []
  for word in words:
    if word in ("&&", "||", ";"):
      yield word, current
      current = []
    else:
      current.append(word)
  yield ";", current


def _pipeline(session, words):
  """Carries out commands that feed each other: (what is printed, ok)."""
  stages = [[]]
  for word in words:
    if word == "|":
      stages.append([])
    else:
      stages[-1].append(word)
  if stages == [[]]:
    return "", True
  stdin, printed, ok = "", [], True
  for index, stage in enumerate(stages):
    last = index + 1 == len(stages)
    result = _command(session, stage, stdin, last)
    stdin, ok = result.out, not (result.err or result.fails)
    printed.append(result.err)
  return "".join(printed) + stdin, ok


def _command(session, words, stdin, last):
  """Carries out one command with its redirections."""
  plain, sources, target, append, quiet = [], [], None, False, False
  words = list(words)
  while words:
    word = words.pop(0)
    if word == "2>&1":
      continue
    if not isinstance(word, str):
      plain.append(word)
      continue
    if not words or isinstance(words[0], str):
      return sessions.failed("sh", "syntax error")
    name = words.pop(0).text
    if word == "2>":
      quiet = True
    elif word == "<":
      sources.append(name)
    else:
      target, append = name, word == ">>"
  for name in sources:
    text = session.read(name)
    if text is None:
      return sessions.failed("sh", f"{name}: No such file")
    stdin = text
  if not plain:
    return sessions.failed("sh", "syntax error")
  result = _guarded(session, _expanded(session, plain), stdin, target, last)
  if target is not None:
    before = session.files
    reason = session.write(target, result.out, append=append)
    if reason is None and _too_large(session.files):
      session.files, reason = before, "disk full"
    error = sessions.failed("sh", f"{target}: {reason}").err if reason else ""
    result = sessions.Result("", result.err + error, result.fails)
  fails = result.fails or bool(result.err)
  return sessions.Result(result.out, "" if quiet else result.err, fails)


def _guarded(session, args, stdin, target, last):
  """A command's result; what would fill the disk is undone."""
  run_one = commands.COMMANDS.get(args[0])
  if run_one is None:
    return sessions.failed("sh", f"{args[0]}: command not found")
  before = session.files
  session.files = dict(before)
  session.tty = last and target is None
  result = run_one(session, args[1:], stdin)
  if _too_large(session.files):
    session.files = before
    return sessions.failed(args[0], "disk full")
  return sessions.Result(
    result.out[:MOST_OUTPUT], result.err[:MOST_OUTPUT], result.fails
  )


def _too_large(files):
  return (
    len(files) > MOST_FILES or sum(len(t or "") for t in files.values()) > (
      MOST_TEXT
    ) or any(len(path) > 200 for path in files)
  )  # fmt: skip


def _expanded(session, words):
  """The words' texts, globs as the names that fit, if any does."""
  found = []
  for word in words:
    text = word.text
    if word.bare[:1] == "~" and word.bare[1:2] in ("", "/"):
      text = HOME + text[1:]
    if any(c in word.bare for c in "*?["):
      found += _globbed(session, text) or [text]
    else:
      found.append(text)
  return found[:MOST_WORDS]


def _globbed(session, text):
  """Sorted paths that fit, spelled as the pattern is."""
  folder, name = posixpath.split(text)
  parents = [folder]
  if any(c in folder for c in "*?["):
    parents = _globbed(session, folder)
  found = []
  for parent in parents:
    for child in session.children(parent or "."):
      hidden = child.startswith(".") and not name.startswith(".")
      if not hidden and patterns.glob(name, child):
        found.append(posixpath.join(parent, child))
  return sorted(found)[:MOST_WORDS]
