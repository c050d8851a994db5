"""A line at work: files, place, and what all commands do with arguments."""

from collections.abc import Callable
import dataclasses
import posixpath

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


Command = Callable[[Session, list[str], str], Result]


def failed(command: str, why: str) -> Result:
  """An error message."""
  return Result("", f"{command}: {why}\n")


def options(
  args: list[str], flags: str, valued: str = ""
) -> tuple[dict[str, str] | str, list[str]]:
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


def texts(
  session: Session, names: list[str], stdin: str
) -> tuple[list[tuple[str, str]], str]:
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


def lines(text: str) -> list[str]:
  """A text's lines, without their breaks."""
  return text.removesuffix("\n").split("\n") if text else []


def joined(rows) -> str:
  """Lines as a text."""
  return "".join(f"{line}\n" for line in rows)


def number(text: str) -> int | None:
  """A count, at most 10,000; None where it is none."""
  return min(int(text), 10_000) if text.isdecimal() and len(text) < 9 else None


def drop(session: Session, paths: list[str]) -> None:
  """Takes paths away."""
  gone = set(paths)
  session.files = {p: t for p, t in session.files.items() if p not in gone}


def named_as(name: str, top: str, path: str) -> str:
  """How a path below `top` is shown where `top` was called `name`."""
  if path == top:
    return name
  return posixpath.join(name, path[len(top.rstrip("/")) + 1 :])
