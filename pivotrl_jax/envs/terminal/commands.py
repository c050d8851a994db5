"""The usual commands, on a dict of files: each (session, arguments, stdin).

A command is what POSIX and GNU say of it, as far as it goes; an option that
it does not know is an error and not passed over.
"""

from collections.abc import Callable
import dataclasses
import posixpath

from pivotrl_jax.envs.terminal import patterns

NULL = "/dev/null"
MOST_READ = 20_000  # Characters that a command takes from files.


@dataclasses.dataclass(frozen=True)
class Result:
  """What went to standard output and standard error.

  `fails` without a word in `err`: what `&&` and `||` take for a failure.
  """

  out: str = ""
  err: str = ""
  fails: bool = False


@dataclasses.dataclass
class Session:
  """Files and place while a line runs; `files` is replaced, never shared."""

  files: dict[str, str | None]
  cwd: str
  tty: bool = True

  def path(self, name: str) -> str:
    """A name as an absolute path."""
    return "/" + posixpath.normpath(posixpath.join(self.cwd, name)).strip("/")

  def kind(self, name: str) -> str | None:
    """ "file", "folder", or None where there is nothing."""
    path = self.path(name)
    if path == "/":
      return "folder"
    if path not in self.files:
      return None
    return "folder" if self.files[path] is None else "file"

  def read(self, name: str) -> str | None:
    """A file's text; None where there is no file."""
    if self.path(name) == NULL:
      return ""
    return self.files.get(self.path(name))

  def write(self, name: str, text: str, *, append: bool = False) -> str | None:
    """Writes a file; why not, else None."""
    path = self.path(name)
    if path == NULL:
      return None
    if self.kind(name) == "folder" or name.endswith("/"):
      return "Is a directory"
    if self.kind(posixpath.dirname(path)) != "folder":
      return "No such file or directory"
    before = (self.files.get(path) or "") if append else ""
    self.files = {**self.files, path: before + text}
    return None

  def children(self, name: str) -> list[str]:
    """Sorted names in a folder."""
    folder = self.path(name).rstrip("/")
    return sorted(
      path[len(folder) + 1 :]
      for path in self.files
      if posixpath.dirname(path).rstrip("/") == folder
    )

  def below(self, name: str) -> list[str]:
    """Sorted paths of a file or folder and all that it holds."""
    top = self.path(name)
    prefix = top.rstrip("/") + "/"
    return sorted(p for p in self.files if p == top or p.startswith(prefix))


def failed(command: str, why: str) -> Result:
  """An error message."""
  return Result("", f"{command}: {why}\n")


def _options(args, flags, valued=""):
  """(options by letter, the other arguments); or the option that is none."""
  found, rest = {}, []
  args = list(args)
  while args:
    arg = args.pop(0)
    if arg == "--":
      return found, rest + args
    if not arg.startswith("-") or arg == "-":
      rest.append(arg)
    elif "n" in valued and arg[1:].isdecimal():
      found["n"] = arg[1:]
    else:
      letters = arg[1:]
      while letters:
        letter, letters = letters[0], letters[1:]
        if letter in valued:
          found[letter] = letters or (args.pop(0) if args else "")
          letters = ""
        elif letter in flags:
          found[letter] = ""
        else:
          return f"invalid option -- '{letter}'", []
  return found, rest


def _texts(session, names, stdin):
  """[(name, text)] of what a command reads, and errors of what it cannot."""
  if not names:
    return [("", stdin)], ""
  texts, errors, size = [], "", 0
  for name in names:
    text = stdin if name == "-" else session.read(name)
    size += len(text or "")
    if size > MOST_READ:
      return texts, f"{errors}{name}: too much input\n"
    if text is None:
      what = "Is a directory" if session.kind(name) else "No such file"
      errors += f"{name}: {what}\n"
    else:
      texts.append((name, text))
  return texts, errors


def _lines(text):
  return text[:-1].split("\n") if text.endswith("\n") else (
    text.split("\n") if text else []
  )  # fmt: skip


def _joined(lines):
  return "".join(f"{line}\n" for line in lines)


def _number(text):
  """A count, at most 10,000; None where it is none."""
  return min(int(text), 10_000) if text.isdecimal() and len(text) < 9 else None


def _cat(session, args, stdin):
  options, names = _options(args, "n")
  if isinstance(options, str):
    return failed("cat", options)
  texts, errors = _texts(session, names, stdin)
  text = "".join(t for _, t in texts)
  if "n" in options:
    text = _joined(f"{i} {x}" for i, x in enumerate(_lines(text), 1))
  return Result(text, errors and f"cat: {errors}")


def _cd(session, args, stdin):
  del stdin
  name = args[0] if args else "/app"
  if len(args) > 1 or session.kind(name) != "folder":
    return failed("cd", f"{name}: No such directory")
  session.cwd = session.path(name)
  return Result()


def _pwd(session, args, stdin):
  del args, stdin
  return Result(session.cwd + "\n")


def _ls(session, args, stdin):
  del stdin
  options, names = _options(args, "alA1rRthF")
  if isinstance(options, str):
    return failed("ls", options)
  parts, errors = [], ""
  for name in names or ["."]:
    kind = session.kind(name)
    if kind is None:
      errors += f"ls: {name}: No such file or directory\n"
      continue
    folders = [name]
    if "R" in options:
      folders += [p for p in session.below(name)[1:] if session.kind(p) ==
                  "folder"]  # fmt: skip
    for folder in folders:
      found = [name] if kind == "file" else session.children(folder)
      if not {"a", "A"} & options.keys():
        found = [f for f in found if not f.startswith(".")]
      head = f"{folder}:\n" if len(names) + len(folders) > 2 else ""
      parts.append(head + _listed(session, folder, found, options))
  return Result("".join(parts), errors)


def _listed(session, folder, names, options):
  if "r" in options:
    names = names[::-1]
  if "l" in options:
    rows = []
    for name in names:
      text = session.files.get(session.path(posixpath.join(folder, name)), "")
      rows.append(f"{'d' if text is None else '-'} {len(text or '')} {name}")
    return _joined(rows)
  if "1" in options or not session.tty:
    return _joined(names)
  return "  ".join(names) + "\n" if names else ""


def _echo(session, args, stdin):
  del session, stdin
  end = "\n"
  if args[:1] == ["-n"]:
    args, end = args[1:], ""
  elif args[:1] == ["-e"]:
    args = [_unescaped(a) for a in args[1:]]
  return Result(" ".join(args) + end)


def _printf(session, args, stdin):
  del session, stdin
  if not args:
    return failed("printf", "missing operand")
  text, values = _unescaped(args[0]), args[1:]
  count = text.count("%s")
  if not count:
    return Result(text)
  parts = []
  for i in range(0, max(len(values), 1), count):
    chunk = values[i : i + count]
    for piece in text.split("%s")[:-1]:
      parts += [piece, chunk.pop(0) if chunk else ""]
    parts.append(text.rsplit("%s", 1)[1])
  return Result("".join(parts))


def _unescaped(text):
  return text.replace("\\n", "\n").replace("\\t", "\t")


def _ends(name, cut):
  """head or tail."""

  def run(session, args, stdin):
    options, names = _options(args, "q", "nc")
    if isinstance(options, str):
      return failed(name, options)
    given = options.get("n", "10")
    count = _number(given.lstrip("+"))
    if count is None or "c" in options:
      return failed(name, "invalid number of lines")
    texts, errors = _texts(session, names, stdin)
    parts = []
    for title, text in texts:
      head = f"==> {title} <==\n" if len(names) > 1 else ""
      found = _lines(text)
      if given.startswith("+"):
        found = found[max(count - 1, 0) :]
      else:
        found = cut(found, count)
      parts.append(head + _joined(found))
    return Result("".join(parts), errors and f"{name}: {errors}")

  return run


def _wc(session, args, stdin):
  options, names = _options(args, "lwcm")
  if isinstance(options, str):
    return failed("wc", options)
  texts, errors = _texts(session, names, stdin)
  rows, totals = [], [0, 0, 0]
  for title, text in texts:
    counts = [text.count("\n"), len(text.split()), len(text)]
    totals = [a + b for a, b in zip(totals, counts, strict=True)]
    rows.append((counts, title))
  if len(rows) > 1:
    rows.append((totals, "total"))
  wanted = [i for i, c in enumerate("lwc") if c in options] or [0, 1, 2]
  if "m" in options and wanted == [0, 1, 2]:
    wanted = [2]
  return Result(
    _joined(
      " ".join([str(counts[i]) for i in wanted] + [title] * bool(title))
      for counts, title in rows
    ),
    errors and f"wc: {errors}",
  )


def _grep(session, args, stdin):
  options, rest = _options(args, "ivcnlrREFhHowqx", "e")
  if isinstance(options, str):
    return failed("grep", options)
  if "e" in options:
    rest = [options["e"], *rest]
  if not rest:
    return failed("grep", "usage: grep PATTERN [FILE]...")
  fold = "i" in options
  if "F" in options:
    pattern = patterns.literal(rest[0], fold=fold)
  else:
    pattern = patterns.compile_pattern(
      rest[0], extended="E" in options, fold=fold
    )
  if isinstance(pattern, str):
    return failed("grep", pattern)
  names, deep = rest[1:], bool({"r", "R"} & options.keys())
  if deep:
    names = _files_below(session, names)
  texts, errors = _texts(session, names, stdin)
  titled = (deep or len(texts) > 1 or "H" in options) and "h" not in options
  parts = [_hits(t, n if titled else "", n, pattern, options) for n, t in texts]
  out = "".join(parts)
  errors = errors and f"grep: {errors}"
  return Result("" if "q" in options else out, errors, fails=not out)


def _files_below(session, names):
  """Files in folders, named as the folders are."""
  found = []
  for name in names or [""]:
    top = session.path(name)
    for path in session.below(name):
      if session.files[path] is not None:
        found.append(_named_as(name, top, path))
  return found


def _named_as(name, top, path):
  """How a path below `top` is shown where `top` was called `name`."""
  if path == top:
    return name
  return posixpath.join(name, path[len(top.rstrip("/")) + 1 :])


def _hits(text, title, name, pattern, options):
  """What grep prints of one text."""
  found = []
  for i, line in enumerate(_lines(text), 1):
    span = pattern.span(line)
    if span is not None and "x" in options and span != (0, len(line)):
      span = None
    if span is not None and "w" in options and not _is_word(line, *span):
      span = None
    if (span is None) == ("v" in options):
      shown = line[slice(*span)] if "o" in options and span else line
      found.append((i, shown))
  if "l" in options:
    return f"{name}\n" if found else ""
  before = f"{title}:" if title else ""
  if "c" in options:
    return f"{before}{len(found)}\n"
  return _joined(
    before + (f"{i}:" if "n" in options else "") + line for i, line in found
  )


def _is_word(line, start, end):
  around = line[max(start - 1, 0) : start] + line[end : end + 1]
  return not any(c.isalnum() or c == "_" for c in around)


def _find(session, args, stdin):
  del stdin
  tops = []
  while args and not args[0].startswith("-"):
    tops.append(args[0])
    args = args[1:]
  tests, delete = [], False
  while args:
    option, args = args[0], args[1:]
    if option == "-delete":
      delete = True
    elif option == "-print":
      continue
    elif option == "-empty":
      tests.append(lambda s, p: not (s.children(p) if s.files[p] is None
                                     else s.files[p]))  # fmt: skip
    elif option in ("-name", "-type", "-iname") and args:
      value, args = args[0], args[1:]
      tests.append(_find_test(option, value))
    else:
      return failed("find", f"unknown predicate '{option}'")
  rows = []
  for top in tops or ["."]:
    if session.kind(top) is None:
      return failed("find", f"{top}: No such file or directory")
    at = session.path(top)
    for path in session.below(top):
      if all(test(session, path) for test in tests):
        rows.append(_named_as(top, at, path))
  if delete:
    for row in sorted(rows, key=len, reverse=True):
      if row != "." and not session.children(row):
        _drop(session, [session.path(row)])
    rows = []
  return Result(_joined(rows))


def _find_test(option, value):
  if option == "-type":
    return lambda s, p: (s.files[p] is None) == (value == "d")
  fold = option == "-iname"
  value = value.lower() if fold else value

  def named(session, path):
    del session
    name = posixpath.basename(path)
    return patterns.glob(value, name.lower() if fold else name)

  return named


def _drop(session, paths):
  gone = set(paths)
  session.files = {p: t for p, t in session.files.items() if p not in gone}


def _mkdir(session, args, stdin):
  del stdin
  options, names = _options(args, "pv")
  if isinstance(options, str):
    return failed("mkdir", options)
  if not names:
    return failed("mkdir", "missing operand")
  for name in names:
    path = session.path(name)
    if session.kind(name) and "p" in options and session.kind(name) != "file":
      continue
    if session.kind(name):
      return failed("mkdir", f"{name}: File exists")
    missing = [path]
    parent = posixpath.dirname(path)
    while session.kind(parent) is None:
      missing.append(parent)
      parent = posixpath.dirname(parent)
    if session.kind(parent) == "file" or (
      len(missing) > 1 and "p" not in options
    ):
      return failed("mkdir", f"{name}: No such file or directory")
    session.files = {**session.files, **dict.fromkeys(missing)}
  return Result()


def _touch(session, args, stdin):
  del stdin
  if not args:
    return failed("touch", "missing operand")
  for name in args:
    if session.kind(name) is None:
      reason = session.write(name, "")
      if reason:
        return failed("touch", f"{name}: {reason}")
  return Result()


def _copy(move):
  """cp or mv."""
  command = "mv" if move else "cp"

  def run(session, args, stdin):
    del stdin
    options, names = _options(args, "fv" if move else "rRafvp")
    if isinstance(options, str):
      return failed(command, options)
    if len(names) < 2:
      return failed(command, "missing destination")
    *sources, target = names
    into = session.kind(target) == "folder"
    if len(sources) > 1 and not into:
      return failed(command, f"{target}: Not a directory")
    for source in sources:
      deep = move or bool({"r", "R", "a"} & options.keys())
      goal = posixpath.join(target, posixpath.basename(source.rstrip("/")))
      reason = _put(session, source, goal if into else target, deep, move)
      if reason:
        return failed(command, reason)
    return Result()

  return run


def _put(session, source, target, deep, move):
  """Copies or moves one thing; why not, else None."""
  start, end = session.path(source), session.path(target)
  kind = session.kind(source)
  if kind is None:
    return f"{source}: No such file or directory"
  if kind == "folder" and not deep:
    return f"{source} is a directory (not copied)"
  if start == end or end.startswith(start.rstrip("/") + "/"):
    return f"{source} and {target} are the same"
  if session.kind(posixpath.dirname(end)) != "folder":
    return f"{target}: No such file or directory"
  if session.kind(target) not in (None, kind):
    return f"{target}: exists and is another kind"
  paths = session.below(source)
  copied = {end + p[len(start) :]: session.files[p] for p in paths}
  if move:
    _drop(session, paths)
  session.files = {**session.files, **copied}
  return None


def _rm(session, args, stdin):
  del stdin
  options, names = _options(args, "rRfvd")
  if isinstance(options, str):
    return failed("rm", options)
  if not names and "f" not in options:
    return failed("rm", "missing operand")
  for name in names:
    kind = session.kind(name)
    if kind is None:
      if "f" in options:
        continue
      return failed("rm", f"{name}: No such file or directory")
    if kind == "folder" and not {"r", "R"} & options.keys():
      return failed("rm", f"{name}: Is a directory")
    if session.cwd == session.path(name) or session.cwd.startswith(
      session.path(name).rstrip("/") + "/"
    ):
      return failed("rm", f"refusing to remove {name}")
    _drop(session, session.below(name))
  return Result()


def _rmdir(session, args, stdin):
  del stdin
  for name in args:
    if session.kind(name) != "folder" or session.children(name):
      return failed("rmdir", f"{name}: not an empty directory")
    if session.cwd.startswith(session.path(name)):
      return failed("rmdir", f"refusing to remove {name}")
    _drop(session, [session.path(name)])
  return Result()


def _sort(session, args, stdin):
  options, names = _options(args, "rnuf", "kto")
  if isinstance(options, str):
    return failed("sort", options)
  if {"k", "t", "o"} & options.keys():
    return failed("sort", "-k, -t and -o are not supported")
  texts, errors = _texts(session, names, stdin)
  found = [line for _, t in texts for line in _lines(t)]
  key = _leading if "n" in options else None
  found.sort(reverse="r" in options)
  found.sort(key=key, reverse="r" in options)
  if "u" in options:
    found = list({(key or str)(line): line for line in found}.values())
  return Result(_joined(found), errors and f"sort: {errors}")


def _leading(line):
  """The number that a line begins with; 0 without one."""
  digits = line.strip()
  sign = -1 if digits.startswith("-") else 1
  digits = digits.lstrip("-")
  end = 0
  while end < min(len(digits), 18) and digits[end] in "0123456789":
    end += 1
  return sign * int(digits[:end] or 0)


def _uniq(session, args, stdin):
  options, names = _options(args, "cdu")
  if isinstance(options, str):
    return failed("uniq", options)
  texts, errors = _texts(session, names[:1], stdin)
  rows = []
  for line in [x for _, t in texts for x in _lines(t)]:
    if rows and rows[-1][1] == line:
      rows[-1][0] += 1
    else:
      rows.append([1, line])
  if "d" in options:
    rows = [r for r in rows if r[0] > 1]
  if "u" in options:
    rows = [r for r in rows if r[0] == 1]
  return Result(
    _joined(f"{n} {x}" if "c" in options else x for n, x in rows),
    errors and f"uniq: {errors}",
  )


def _fields(spec, count):
  """Indices of `2`, `1,3`, `2-` or `-2` among `count`; None where it is none."""
  wanted = set()
  for part in spec.split(","):
    low, dash, high = part.partition("-")
    first = _number(low) if low else 1
    last = _number(high) if high else (count if dash else first)
    if not part or first is None or last is None or first < 1:
      return None
    wanted |= set(range(first - 1, min(last, count)))
  return sorted(wanted)


def _cut(session, args, stdin):
  options, names = _options(args, "s", "dfc")
  if isinstance(options, str):
    return failed("cut", options)
  spec = options.get("f") or options.get("c")
  mark = options.get("d", "\t")
  if not spec or len(mark) != 1:
    return failed("cut", "you must specify -f with -d, or -c")
  texts, errors = _texts(session, names, stdin)
  rows = []
  for line in [x for _, t in texts for x in _lines(t)]:
    parts = line.split(mark) if "f" in options else list(line)
    wanted = _fields(spec, len(parts))
    if wanted is None:
      return failed("cut", f"invalid field value '{spec}'")
    if "f" in options and len(parts) == 1:
      rows.append(line)
    else:
      glue = mark if "f" in options else ""
      rows.append(glue.join(parts[i] for i in wanted))
  return Result(_joined(rows), errors and f"cut: {errors}")


def _tr(session, args, stdin):
  del session
  options, sets = _options(args, "ds")
  if isinstance(options, str):
    return failed("tr", options)
  sets = [_characters(s) for s in sets]
  if "d" in options and len(sets) == 1:
    return Result("".join(c for c in stdin if c not in sets[0]))
  if len(sets) != 2 or not all(sets) or options:
    return failed("tr", "two sets, or -d and one, are expected")
  source, target = sets
  target = target + target[-1] * max(0, len(source) - len(target))
  return Result(stdin.translate(dict(zip(map(ord, source), target))))


def _characters(text):
  """`a-z` and `[:upper:]` written out."""
  text = _unescaped(text)
  for name, span in (("upper", "A-Z"), ("lower", "a-z"), ("digit", "0-9")):
    text = text.replace(f"[:{name}:]", span)
  found, i = "", 0
  while i < len(text):
    if text[i + 1 : i + 2] == "-" and i + 2 < len(text):
      last = min(ord(text[i + 2]), ord(text[i]) + 96)
      found += "".join(map(chr, range(ord(text[i]), last + 1)))
      i += 3
    else:
      found += text[i]
      i += 1
  return found


def _sed(session, args, stdin):
  options, rest = _options(args, "niErs", "e")
  if isinstance(options, str):
    return failed("sed", options)
  if "e" in options:
    rest = [options["e"], *rest]
  if not rest:
    return failed("sed", "no script")
  extended = bool({"E", "r"} & options.keys())
  edit = _script(rest[0], extended, "n" in options)
  if isinstance(edit, str):
    return failed("sed", edit)
  texts, errors = _texts(session, rest[1:], stdin)
  if "i" not in options:
    return Result(
      "".join(edit(t) for _, t in texts), errors and f"sed: {errors}"
    )
  for name, text in texts:
    if not name:
      return failed("sed", "no input files")
    session.write(name, edit(text))
  return Result("", errors and f"sed: {errors}")


def _script(script, extended, quiet):
  """One edit, text -> text; or why there is none."""
  if script[:1] == "s" and len(script) > 1:
    return _substitution(script, extended)
  action, where = script[-1:], script[:-1]
  if action not in ("d", "p") or not where:
    return f"unknown command: '{script}'"
  if where[0] == "/" and where[-1] == "/" and len(where) > 2:
    pattern = patterns.compile_pattern(where[1:-1], extended=extended)
    if isinstance(pattern, str):
      return pattern
    chosen = lambda i, n, x: pattern.span(x) is not None  # noqa: E731
  else:
    low, _, high = where.partition(",")
    ends = [_number(e) if e != "$" else -1 for e in (low, high or low)]
    if None in ends:
      return f"unknown command: '{script}'"
    chosen = lambda i, n, x: all(  # noqa: E731
      (
        (n if ends[0] < 0 else ends[0]) <= i,
        i <= (n if ends[1] < 0 else ends[1]),
      )
    )

  def edit(text):
    rows, lines = [], _lines(text)
    for i, line in enumerate(lines, 1):
      hit = chosen(i, len(lines), line)
      if action == "d":
        rows += [] if hit or quiet else [line]
      else:
        rows += [line] * (hit + (not quiet))
    return _joined(rows)

  return edit


def _substitution(script, extended):
  mark = script[1]
  parts = script[2:].replace("\\" + mark, "\0").split(mark)
  if len(parts) != 3 or not parts[0] or set(parts[2]) - set("gI"):
    return f"unknown command: '{script}'"
  old, new = (p.replace("\0", mark) for p in parts[:2])
  pattern = patterns.compile_pattern(
    old, extended=extended, fold="I" in parts[2]
  )
  if isinstance(pattern, str):
    return pattern

  def edit(text):
    return _joined(
      _substituted(line, pattern, new, "g" in parts[2]) for line in _lines(text)
    )

  return edit


def _substituted(line, pattern, new, everywhere):
  parts, at, last = [], 0, -1
  while at <= len(line):
    span = pattern.span(line, at)
    if span is None:
      break
    start, end = span
    parts.append(line[at:start])
    if start < end or start != last:  # None right behind the one before.
      hit = line[start:end]
      parts.append(new.replace("\\n", "\n").replace("&", hit))
    if end == start:  # An empty match: one character goes by.
      parts.append(line[end : end + 1])
      at = end + 1
    else:
      at = last = end
    if not everywhere:
      break
  return "".join(parts) + line[at:]


def _awk(session, args, stdin):
  options, rest = _options(args, "", "F")
  if isinstance(options, str):
    return failed("awk", options)
  program = rest[0].replace(" ", "") if rest else ""
  inside = program.removeprefix("{print$").removesuffix("}")
  field = _number("0" if inside == "NF" else inside)
  if program != "{print$" + inside + "}" or field is None:
    return failed("awk", "only '{print $N}' is supported")
  texts, errors = _texts(session, rest[1:], stdin)
  rows = []
  for line in [x for _, t in texts for x in _lines(t)]:
    parts = line.split(options.get("F") or None)
    if inside == "0":
      rows.append(line)
    elif inside == "NF":
      rows.append(parts[-1] if parts else "")
    else:
      rows.append(parts[field - 1] if field <= len(parts) else "")
  return Result(_joined(rows), errors and f"awk: {errors}")


def _xargs(session, args, stdin):
  if not args or args[0] not in COMMANDS or args[0] == "xargs":
    return failed("xargs", "a command is expected")
  return COMMANDS[args[0]](session, args[1:] + stdin.split()[:100], "")


def _tee(session, args, stdin):
  options, names = _options(args, "a")
  if isinstance(options, str):
    return failed("tee", options)
  for name in names:
    reason = session.write(name, stdin, append="a" in options)
    if reason:
      return failed("tee", f"{name}: {reason}")
  return Result(stdin)


def _nothing(session, args, stdin):
  del session, args, stdin
  return Result()


def _name_of(part):
  """basename or dirname."""

  def run(session, args, stdin):
    del session, stdin
    return Result(_joined(part(a.rstrip("/")) or "." for a in args))

  return run


COMMANDS: dict[str, Callable[[Session, list[str], str], Result]] = {
  "awk": _awk,
  "basename": _name_of(posixpath.basename),
  "cat": _cat,
  "cd": _cd,
  "clear": _nothing,
  "cp": _copy(move=False),
  "cut": _cut,
  "dirname": _name_of(posixpath.dirname),
  "echo": _echo,
  "find": _find,
  "grep": _grep,
  "head": _ends("head", lambda lines, n: lines[:n]),
  "ls": _ls,
  "mkdir": _mkdir,
  "mv": _copy(move=True),
  "printf": _printf,
  "pwd": _pwd,
  "rm": _rm,
  "rmdir": _rmdir,
  "sed": _sed,
  "sort": _sort,
  "tail": _ends("tail", lambda lines, n: lines[-n:] if n else []),
  "tee": _tee,
  "touch": _touch,
  "tr": _tr,
  "true": _nothing,
  "uniq": _uniq,
  "wc": _wc,
  "xargs": _xargs,
}
