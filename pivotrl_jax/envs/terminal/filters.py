"""Commands on text, from files or a pipe: each (session, arguments, stdin)."""

from pivotrl_jax.envs.terminal import patterns
from pivotrl_jax.envs.terminal import sessions


def _cat(session, args, stdin):
  options, names = sessions.options(args, "n")
  if isinstance(options, str):
    return sessions.failed("cat", options)
  texts, errors = sessions.texts(session, names, stdin)
  text = "".join(t for _, t in texts)
  if "n" in options:
    text = sessions.joined(
      f"{i} {x}" for i, x in enumerate(sessions.lines(text), 1)
    )
  return sessions.Result(text, errors and f"cat: {errors}")


def _echo(session, args, stdin):
  del session, stdin
  end = "\n"
  if args[:1] == ["-n"]:
    args, end = args[1:], ""
  elif args[:1] == ["-e"]:
    args = [_unescaped(a) for a in args[1:]]
  return sessions.Result(" ".join(args) + end)


def _printf(session, args, stdin):
  del session, stdin
  if not args:
    return sessions.failed("printf", "missing operand")
  text, values = _unescaped(args[0]), args[1:]
  count = text.count("%s")
  if not count:
    return sessions.Result(text)
  parts = []
  for i in range(0, max(len(values), 1), count):
    chunk = values[i : i + count]
    for piece in text.split("%s")[:-1]:
      parts += [piece, chunk.pop(0) if chunk else ""]
    parts.append(text.rsplit("%s", 1)[1])
  return sessions.Result("".join(parts))


def _unescaped(text):
  return text.replace("\\n", "\n").replace("\\t", "\t")


def _ends(name, cut):
  """head or tail."""

  def run(session, args, stdin):
    options, names = sessions.options(args, "q", "nc")
    if isinstance(options, str):
      return sessions.failed(name, options)
    given = options.get("n", "10")
    count = sessions.number(given.lstrip("+"))
    if count is None or "c" in options:
      return sessions.failed(name, "invalid number of lines")
    texts, errors = sessions.texts(session, names, stdin)
    parts = []
    for title, text in texts:
      head = f"==> {title} <==\n" if len(names) > 1 else ""
      found = sessions.lines(text)
      if given.startswith("+"):
        found = found[max(count - 1, 0) :]
      else:
        found = cut(found, count)
      parts.append(head + sessions.joined(found))
    return sessions.Result("".join(parts), errors and f"{name}: {errors}")

  return run


def _wc(session, args, stdin):
  options, names = sessions.options(args, "lwcm")
  if isinstance(options, str):
    return sessions.failed("wc", options)
  texts, errors = sessions.texts(session, names, stdin)
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
  return sessions.Result(
    sessions.joined(
      " ".join([str(counts[i]) for i in wanted] + [title] * bool(title))
      for counts, title in rows
    ),
    errors and f"wc: {errors}",
  )


def _grep(session, args, stdin):
  options, rest = sessions.options(args, "ivcnlrREFhHowqx", "e")
  if isinstance(options, str):
    return sessions.failed("grep", options)
  if "e" in options:
    rest = [options["e"], *rest]
  if not rest:
    return sessions.failed("grep", "usage: grep PATTERN [FILE]...")
  fold = "i" in options
  if "F" in options:
    pattern = patterns.literal(rest[0], fold=fold)
  else:
    pattern = patterns.compile_pattern(
      rest[0], extended="E" in options, fold=fold
    )
  if isinstance(pattern, str):
    return sessions.failed("grep", pattern)
  names, deep = rest[1:], bool({"r", "R"} & options.keys())
  if deep:
    names = _files_below(session, names)
  texts, errors = sessions.texts(session, names, stdin)
  titled = (deep or len(texts) > 1 or "H" in options) and "h" not in options
  parts = [_hits(t, n if titled else "", n, pattern, options) for n, t in texts]
  out = "".join(parts)
  errors = errors and f"grep: {errors}"
  return sessions.Result("" if "q" in options else out, errors, fails=not out)


def _files_below(session, names):
  """Files in folders, named as the folders are."""
  found = []
  for name in names or [""]:
    top = session.path(name)
    for path in session.below(name):
      if session.files[path] is not None:
        found.append(sessions.named_as(name, top, path))
  return found


def _hits(text, title, name, pattern, options):
  """What grep prints of one text."""
  found = []
  for i, line in enumerate(sessions.lines(text), 1):
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
  return sessions.joined(
    before + (f"{i}:" if "n" in options else "") + line for i, line in found
  )


def _is_word(line, start, end):
  around = line[max(start - 1, 0) : start] + line[end : end + 1]
  return not any(c.isalnum() or c == "_" for c in around)


def _sort(session, args, stdin):
  options, names = sessions.options(args, "rnuf", "kto")
  if isinstance(options, str):
    return sessions.failed("sort", options)
  if {"k", "t", "o"} & options.keys():
    return sessions.failed("sort", "-k, -t and -o are not supported")
  texts, errors = sessions.texts(session, names, stdin)
  found = [line for _, t in texts for line in sessions.lines(t)]
  key = _leading if "n" in options else None
  found.sort(reverse="r" in options)
  found.sort(key=key, reverse="r" in options)
  if "u" in options:
    found = list({(key or str)(line): line for line in found}.values())
  return sessions.Result(sessions.joined(found), errors and f"sort: {errors}")


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
  options, names = sessions.options(args, "cdu")
  if isinstance(options, str):
    return sessions.failed("uniq", options)
  texts, errors = sessions.texts(session, names[:1], stdin)
  rows = []
  for line in [x for _, t in texts for x in sessions.lines(t)]:
    if rows and rows[-1][1] == line:
      rows[-1][0] += 1
    else:
      rows.append([1, line])
  if "d" in options:
    rows = [r for r in rows if r[0] > 1]
  if "u" in options:
    rows = [r for r in rows if r[0] == 1]
  return sessions.Result(
    sessions.joined(f"{n} {x}" if "c" in options else x for n, x in rows),
    errors and f"uniq: {errors}",
  )


def _fields(spec, count):
  """Indices of `2`, `1,3`, `2-` or `-2` among `count`; None where it is none."""
  wanted = set()
  for part in spec.split(","):
    low, dash, high = part.partition("-")
    first = sessions.number(low) if low else 1
    last = sessions.number(high) if high else (count if dash else first)
    if not part or first is None or last is None or first < 1:
      return None
    wanted |= set(range(first - 1, min(last, count)))
  return sorted(wanted)


def _cut(session, args, stdin):
  options, names = sessions.options(args, "s", "dfc")
  if isinstance(options, str):
    return sessions.failed("cut", options)
  spec = options.get("f") or options.get("c")
  mark = options.get("d", "\t")
  if not spec or len(mark) != 1:
    return sessions.failed("cut", "you must specify -f with -d, or -c")
  texts, errors = sessions.texts(session, names, stdin)
  rows = []
  for line in [x for _, t in texts for x in sessions.lines(t)]:
    parts = line.split(mark) if "f" in options else list(line)
    wanted = _fields(spec, len(parts))
    if wanted is None:
      return sessions.failed("cut", f"invalid field value '{spec}'")
    if "f" in options and len(parts) == 1:
      rows.append(line)
    else:
      glue = mark if "f" in options else ""
      rows.append(glue.join(parts[i] for i in wanted))
  return sessions.Result(sessions.joined(rows), errors and f"cut: {errors}")


def _tr(session, args, stdin):
  del session
  options, sets = sessions.options(args, "ds")
  if isinstance(options, str):
    return sessions.failed("tr", options)
  sets = [_characters(s) for s in sets]
  if "d" in options and len(sets) == 1:
    return sessions.Result("".join(c for c in stdin if c not in sets[0]))
  if len(sets) != 2 or not all(sets) or options:
    return sessions.failed("tr", "two sets, or -d and one, are expected")
  source, target = sets
  target = target + target[-1] * max(0, len(source) - len(target))
  return sessions.Result(stdin.translate(dict(zip(map(ord, source), target))))


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
  options, rest = sessions.options(args, "niErs", "e")
  if isinstance(options, str):
    return sessions.failed("sed", options)
  if "e" in options:
    rest = [options["e"], *rest]
  if not rest:
    return sessions.failed("sed", "no script")
  extended = bool({"E", "r"} & options.keys())
  edit = _script(rest[0], extended, "n" in options)
  if isinstance(edit, str):
    return sessions.failed("sed", edit)
  texts, errors = sessions.texts(session, rest[1:], stdin)
  if "i" not in options:
    return sessions.Result(
      "".join(edit(t) for _, t in texts), errors and f"sed: {errors}"
    )
  for name, text in texts:
    if not name:
      return sessions.failed("sed", "no input files")
    session.write(name, edit(text))
  return sessions.Result("", errors and f"sed: {errors}")


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
    ends = [sessions.number(e) if e != "$" else -1 for e in (low, high or low)]
    if None in ends:
      return f"unknown command: '{script}'"
    chosen = lambda i, n, x: all(  # noqa: E731
      (
        (n if ends[0] < 0 else ends[0]) <= i,
        i <= (n if ends[1] < 0 else ends[1]),
      )
    )

  def edit(text):
    rows, lines = [], sessions.lines(text)
    for i, line in enumerate(lines, 1):
      hit = chosen(i, len(lines), line)
      if action == "d":
        rows += [] if hit or quiet else [line]
      else:
        rows += [line] * (hit + (not quiet))
    return sessions.joined(rows)

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
    return sessions.joined(
      _substituted(line, pattern, new, "g" in parts[2])
      for line in sessions.lines(text)
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
  options, rest = sessions.options(args, "", "F")
  if isinstance(options, str):
    return sessions.failed("awk", options)
  program = rest[0].replace(" ", "") if rest else ""
  inside = program.removeprefix("{print$").removesuffix("}")
  field = sessions.number("0" if inside == "NF" else inside)
  if program != "{print$" + inside + "}" or field is None:
    return sessions.failed("awk", "only '{print $N}' is supported")
  texts, errors = sessions.texts(session, rest[1:], stdin)
  rows = []
  for line in [x for _, t in texts for x in sessions.lines(t)]:
    parts = line.split(options.get("F") or None)
    if inside == "0":
      rows.append(line)
    elif inside == "NF":
      rows.append(parts[-1] if parts else "")
    else:
      rows.append(parts[field - 1] if field <= len(parts) else "")
  return sessions.Result(sessions.joined(rows), errors and f"awk: {errors}")


def _tee(session, args, stdin):
  options, names = sessions.options(args, "a")
  if isinstance(options, str):
    return sessions.failed("tee", options)
  for name in names:
    reason = session.write(name, stdin, append="a" in options)
    if reason:
      return sessions.failed("tee", f"{name}: {reason}")
  return sessions.Result(stdin)


COMMANDS: dict[str, sessions.Command] = {
  "awk": _awk,
  "cat": _cat,
  "cut": _cut,
  "echo": _echo,
  "grep": _grep,
  "head": _ends("head", lambda lines, n: lines[:n]),
  "printf": _printf,
  "sed": _sed,
  "sort": _sort,
  "tail": _ends("tail", lambda lines, n: lines[-n:] if n else []),
  "tee": _tee,
  "tr": _tr,
  "uniq": _uniq,
  "wc": _wc,
}
