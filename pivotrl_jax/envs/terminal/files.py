"""Commands on files and folders: each (session, arguments, stdin)."""

import posixpath

from pivotrl_jax.envs.terminal import patterns
from pivotrl_jax.envs.terminal import sessions


def _cd(session, args, stdin):
  del stdin
  name = args[0] if args else "/app"
  if len(args) > 1 or session.kind(name) != "folder":
    return sessions.failed("cd", f"{name}: No such directory")
  session.cwd = session.path(name)
  return sessions.Result()


def _pwd(session, args, stdin):
  del args, stdin
  return sessions.Result(session.cwd + "\n")


def _ls(session, args, stdin):
  del stdin
  options, names = sessions.options(args, "alA1rRthF")
  if isinstance(options, str):
    return sessions.failed("ls", options)
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
  return sessions.Result("".join(parts), errors)


def _listed(session, folder, names, options):
  if "r" in options:
    names = names[::-1]
  if "l" in options:
    rows = []
    for name in names:
      text = session.files.get(session.path(posixpath.join(folder, name)), "")
      rows.append(f"{'d' if text is None else '-'} {len(text or '')} {name}")
    return sessions.joined(rows)
  if "1" in options or not session.tty:
    return sessions.joined(names)
  return "  ".join(names) + "\n" if names else ""


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
      return sessions.failed("find", f"unknown predicate '{option}'")
  rows = []
  for top in tops or ["."]:
    if session.kind(top) is None:
      return sessions.failed("find", f"{top}: No such file or directory")
    at = session.path(top)
    for path in session.below(top):
      if all(test(session, path) for test in tests):
        rows.append(sessions.named_as(top, at, path))
  if delete:
    for row in sorted(rows, key=len, reverse=True):
      if row != "." and not session.children(row):
        sessions.drop(session, [session.path(row)])
    rows = []
  return sessions.Result(sessions.joined(rows))


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


def _mkdir(session, args, stdin):
  del stdin
  options, names = sessions.options(args, "pv")
  if isinstance(options, str):
    return sessions.failed("mkdir", options)
  if not names:
    return sessions.failed("mkdir", "missing operand")
  for name in names:
    path = session.path(name)
    if session.kind(name) and "p" in options and session.kind(name) != "file":
      continue
    if session.kind(name):
      return sessions.failed("mkdir", f"{name}: File exists")
    missing = [path]
    parent = posixpath.dirname(path)
    while session.kind(parent) is None:
      missing.append(parent)
      parent = posixpath.dirname(parent)
    if session.kind(parent) == "file" or (
      len(missing) > 1 and "p" not in options
    ):
      return sessions.failed("mkdir", f"{name}: No such file or directory")
    session.files = {**session.files, **dict.fromkeys(missing)}
  return sessions.Result()


def _touch(session, args, stdin):
  del stdin
  if not args:
    return sessions.failed("touch", "missing operand")
  for name in args:
    if session.kind(name) is None:
      reason = session.write(name, "")
      if reason:
        return sessions.failed("touch", f"{name}: {reason}")
  return sessions.Result()


def _copy(move):
  """cp or mv."""
  command = "mv" if move else "cp"

  def run(session, args, stdin):
    del stdin
    options, names = sessions.options(args, "fv" if move else "rRafvp")
    if isinstance(options, str):
      return sessions.failed(command, options)
    if len(names) < 2:
      return sessions.failed(command, "missing destination")
    *sources, target = names
    into = session.kind(target) == "folder"
    if len(sources) > 1 and not into:
      return sessions.failed(command, f"{target}: Not a directory")
    for source in sources:
      deep = move or bool({"r", "R", "a"} & options.keys())
      goal = posixpath.join(target, posixpath.basename(source.rstrip("/")))
      reason = _put(session, source, goal if into else target, deep, move)
      if reason:
        return sessions.failed(command, reason)
    return sessions.Result()

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
    sessions.drop(session, paths)
  session.files = {**session.files, **copied}
  return None


def _rm(session, args, stdin):
  del stdin
  options, names = sessions.options(args, "rRfvd")
  if isinstance(options, str):
    return sessions.failed("rm", options)
  if not names and "f" not in options:
    return sessions.failed("rm", "missing operand")
  for name in names:
    kind = session.kind(name)
    if kind is None:
      if "f" in options:
        continue
      return sessions.failed("rm", f"{name}: No such file or directory")
    if kind == "folder" and not {"r", "R"} & options.keys():
      return sessions.failed("rm", f"{name}: Is a directory")
    if session.cwd == session.path(name) or session.cwd.startswith(
      session.path(name).rstrip("/") + "/"
    ):
      return sessions.failed("rm", f"refusing to remove {name}")
    sessions.drop(session, session.below(name))
  return sessions.Result()


def _rmdir(session, args, stdin):
  del stdin
  for name in args:
    if session.kind(name) != "folder" or session.children(name):
      return sessions.failed("rmdir", f"{name}: not an empty directory")
    if session.cwd.startswith(session.path(name)):
      return sessions.failed("rmdir", f"refusing to remove {name}")
    sessions.drop(session, [session.path(name)])
  return sessions.Result()


COMMANDS: dict[str, sessions.Command] = {
  "cd": _cd,
  "cp": _copy(move=False),
  "find": _find,
  "ls": _ls,
  "mkdir": _mkdir,
  "mv": _copy(move=True),
  "pwd": _pwd,
  "rm": _rm,
  "rmdir": _rmdir,
  "touch": _touch,
}
