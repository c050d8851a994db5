"""What the terminal world's tasks are made of: files, goals, ways to them.

A family draws an instruction, files and the commands that lead to the goal.
The goal is the files that the first of these commands leaves, and all of them
must leave the same: tests hold every family to it. A task is a function of
(split, index); its instruction decides the split.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from pivotrl_jax.envs import base
from pivotrl_jax.envs.terminal import shell

FOLDERS = (
    "archive", "conf", "data", "docs", "input", "lists", "logs", "notes",
    "parts", "queue", "reports", "site", "src", "tables", "texts", "work",
)  # fmt: skip
STEMS = (
    "alpha", "april", "atlas", "beta", "blue", "bravo", "cedar", "delta",
    "east", "echo", "first", "fox", "gamma", "gold", "green", "harbor",
    "index", "iron", "july", "june", "lima", "main", "maple", "march", "may",
    "metro", "moon", "night", "north", "nova", "oak", "ocean", "omega",
    "orion", "pine", "polar", "red", "river", "robin", "rose", "second",
    "sierra", "silver", "solar", "south", "spring", "stone", "summer",
    "tango", "third", "tiger", "topaz", "tulip", "unit", "vega", "violet",
    "west", "winter", "yankee", "zulu",
)  # fmt: skip
WORDS = (
    "apple", "bread", "cable", "chair", "cloud", "coast", "copper", "corn",
    "crane", "dust", "eagle", "error", "fern", "flour", "frost", "glass",
    "grape", "honey", "horse", "juice", "kite", "ladder", "lemon", "linen",
    "maple", "mint", "olive", "paper", "pearl", "pepper", "plum", "rice",
    "rope", "salt", "sheep", "silk", "smoke", "snow", "spoon", "steel",
    "sugar", "tea", "tower", "wagon", "water", "wheat", "wool", "yarn",
)  # fmt: skip
KEYS = ("color", "debug", "host", "level", "limit", "mode", "port", "user")


@dataclasses.dataclass(frozen=True)
class Draft:
  """A task before it has an id; paths are below `shell.HOME`.

  Attributes:
    instruction: what is to be done.
    files: text by path; folders come with them.
    looks: what to see first: stages, each commands of equal use.
    ways: commands that do it.
    checks: commands that show it.
    wrong: commands that look like it and are not.
  """

  instruction: str
  files: dict[str, str]
  looks: tuple[tuple[str, ...], ...]
  ways: tuple[str, ...]
  checks: tuple[str, ...]
  wrong: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Task:
  """A draft with its id and its goal."""

  id: str
  draft: Draft
  start: shell.Files
  goal: shell.Files


def make_task(index: int, split: str) -> Task:
  """Task `index` of a split, always the same."""
  return make_named("terminal", index, split)


def make_named(world: str, index: int, split: str) -> Task:
  """`make_task` for a world of another name, which has tasks of its own."""
  base.check_split(split)
  rng = base.generator(world, split, index)
  while True:
    draft = base.pick(rng, FAMILIES)(rng)
    if base.split_of(draft.instruction) == split:
      break
  start = files_of(draft)
  after, _ = shell.run(shell.Shell(start), draft.ways[0])
  return Task(f"{world}-{split}-{index}", draft, start, after.files)


def files_of(draft: Draft) -> shell.Files:
  """A draft's files and all folders on the way to them."""
  files: shell.Files = {shell.HOME: None}
  for path, text in draft.files.items():
    parts = path.split("/")
    for depth in range(1, len(parts)):
      files["/".join([shell.HOME, *parts[:depth]])] = None
    files[f"{shell.HOME}/{path}"] = text
  return files


def _some(rng, words, count):
  """`count` different words."""
  return [words[i] for i in rng.choice(len(words), count, replace=False)]


def _text(lines):
  return "".join(f"{line}\n" for line in lines)


def _lines(rng, count, words=WORDS):
  """Lines of two words."""
  return [" ".join(_some(rng, words, 2)) for _ in range(count)]


def _look(folder, path):
  """The two usual stages: which files there are, and what one holds."""
  return ((f"ls {folder}", f"ls {folder}/", f"ls -l {folder}"), (
      f"cat {path}", f"head {path}"))  # fmt: skip


def _count(rng):
  folder = base.pick(rng, FOLDERS)
  stem, other, out = _some(rng, STEMS, 3)
  word, *rest = _some(rng, WORDS, 12)
  path, out = f"{folder}/{stem}.log", f"{out}.txt"
  hits = int(rng.integers(1, 5))
  lines = [f"{word} {w}" for w in _some(rng, rest, hits)]
  lines += _lines(rng, int(rng.integers(1, 4)), rest)
  lines = [lines[i] for i in rng.permutation(len(lines))]
  return Draft(
    f"Count the lines with {word} in {path} and write the number to {out}.",
    {path: _text(lines), f"{folder}/{other}.log": _text(_lines(rng, 2))},
    _look(folder, path),
    (
      f"grep -c {word} {path} > {out}",
      f"grep {word} {path} | wc -l > {out}",
      f"cat {path} | grep -c {word} > {out}",
      f"echo {hits} > {out}",
    ),
    (f"cat {out}",),
    (
      f"grep {word} {path} > {out}",
      f"wc -l {path} > {out}",
      f"grep -c {word} {folder}/{other}.log > {out}",
      f"echo {hits + 1} > {out}",
    ),
  )


def _move(rng):
  folder, target = _some(rng, FOLDERS, 2)
  kind, other = _some(rng, ("csv", "log", "md", "txt"), 2)
  stems = _some(rng, STEMS, int(rng.integers(3, 6)))
  cut = int(rng.integers(1, len(stems)))
  files = {
    f"{folder}/{s}.{kind if i < cut else other}": _text(_lines(rng, 1))
    for i, s in enumerate(stems)
  }
  return Draft(
    f"Move all .{kind} files from {folder} into a new folder {target}.",
    files,
    (_look(folder, "")[0],),
    (
      f"mkdir {target} && mv {folder}/*.{kind} {target}",
      f"mkdir {target} && mv {folder}/*.{kind} {target}/",
      f"mkdir -p {target} && mv {folder}/*.{kind} {target}/",
    ),
    (f"ls {target}", f"ls {folder} {target}"),
    (
      f"mkdir {target} && cp {folder}/*.{kind} {target}",
      f"mkdir {target} && mv {folder}/* {target}",
      f"mv {folder}/*.{kind} {target}",
      f"mkdir {target} && mv {folder}/*.{other} {target}",
    ),
  )


def _clean(rng):
  folder, inner = _some(rng, FOLDERS, 2)
  stems = _some(rng, STEMS, 5)
  kind = base.pick(rng, ("tmp", "bak", "old"))
  files = {
    f"{folder}/{stems[0]}.{kind}": _text(_lines(rng, 1)),
    f"{folder}/{stems[1]}.txt": _text(_lines(rng, 1)),
    f"{folder}/{inner}/{stems[2]}.{kind}": _text(_lines(rng, 1)),
    f"{folder}/{inner}/{stems[3]}.txt": _text(_lines(rng, 1)),
  }
  return Draft(
    f"Delete every .{kind} file in {folder} and the folders below it.",
    files,
    ((f"find {folder}", f"ls -R {folder}", f"find {folder} -type f"),),
    (
      f"find {folder} -name '*.{kind}' -delete",
      f"find {folder} -type f -name '*.{kind}' -delete",
      f"find {folder} -name '*.{kind}' | xargs rm",
      f"rm {folder}/*.{kind} {folder}/{inner}/*.{kind}",
    ),
    (f"find {folder}", f"ls -R {folder}"),
    (
      f"rm {folder}/*.{kind}",
      f"rm -r {folder}/{inner}",
      f"find {folder} -name '*.txt' -delete",
      f"rm {folder}/{inner}/*",
    ),
  )


def _unique(rng):
  folder = base.pick(rng, FOLDERS)
  stem, out = _some(rng, STEMS, 2)
  path, out = f"{folder}/{stem}.txt", f"{out}.txt"
  names = _some(rng, WORDS, int(rng.integers(3, 6)))
  lines = names + _some(rng, names, 2)
  lines = [lines[i] for i in rng.permutation(len(lines))]
  lines = lines if lines != sorted(lines) else lines[::-1]
  return Draft(
    f"Sort the lines of {path} into {out}, each only once.",
    {path: _text(lines)},
    _look(folder, path),
    (
      f"sort -u {path} > {out}",
      f"sort {path} | uniq > {out}",
      f"cat {path} | sort -u > {out}",
    ),
    (f"cat {out}",),
    (
      f"sort {path} > {out}",
      f"uniq {path} > {out}",
      f"sort -r {path} > {out}",
      f"sort -u {path}",
    ),
  )


def _replace(rng):
  folder = base.pick(rng, FOLDERS)
  (stem,) = _some(rng, STEMS, 1)
  path = f"{folder}/{stem}.txt"
  old, new, *rest = _some(rng, WORDS, 10)
  lines = [f"{old} {rest[0]} {old}", *_lines(rng, 2, rest)]
  lines.insert(int(rng.integers(3)), f"{rest[1]} {old}")
  return Draft(
    f"Replace {old} by {new} everywhere in {path}.",
    {path: _text(lines)},
    _look(folder, path),
    (
      f"sed -i 's/{old}/{new}/g' {path}",
      f"sed -i s/{old}/{new}/g {path}",
      f'sed -i "s/{old}/{new}/g" {path}',
    ),
    (f"cat {path}", f"grep {new} {path}"),
    (
      f"sed -i 's/{old}/{new}/' {path}",
      f"sed 's/{old}/{new}/g' {path}",
      f"sed -i 's/{new}/{old}/g' {path}",
      f"echo {new} > {path}",
    ),
  )


def _column(rng):
  folder = base.pick(rng, FOLDERS)
  stem, out = _some(rng, STEMS, 2)
  path, out = f"{folder}/{stem}.csv", f"{out}.txt"
  count = int(rng.integers(3, 5))
  rows = [_some(rng, WORDS, 2) + [str(int(n)) for n in rng.integers(
      10, 99, 2)] for _ in range(count)]  # fmt: skip
  n = int(rng.integers(1, 5))
  other = n % 4 + 1
  which = ("first", "second", "third", "fourth")[n - 1]
  return Draft(
    f"Write the {which} column of {path} to {out}.",
    {path: _text(",".join(row) for row in rows)},
    _look(folder, path),
    (
      f"cut -d, -f{n} {path} > {out}",
      f"cut -d , -f {n} {path} > {out}",
      f"cut -f{n} -d, {path} > {out}",
      f"awk -F, '{{print ${n}}}' {path} > {out}",
    ),
    (f"cat {out}",),
    (
      f"cut -d, -f{other} {path} > {out}",
      f"cut -f{n} {path} > {out}",
      f"head -n {n} {path} > {out}",
      f"cut -d, -f{n} {path}",
    ),
  )


def _ends(rng):
  folder = base.pick(rng, FOLDERS)
  stem, out = _some(rng, STEMS, 2)
  path, out = f"{folder}/{stem}.txt", f"{out}.txt"
  command, opposite = (("head", "tail"), ("tail", "head"))[int(rng.integers(2))]
  n = int(rng.integers(2, 4))
  which = "first" if command == "head" else "last"
  return Draft(
    f"Copy the {which} {n} lines of {path} to {out}.",
    {path: _text(_lines(rng, int(rng.integers(5, 8))))},
    _look(folder, path),
    (
      f"{command} -n {n} {path} > {out}",
      f"{command} -{n} {path} > {out}",
      f"{command} -n{n} {path} > {out}",
      f"cat {path} | {command} -n {n} > {out}",
    ),
    (f"cat {out}",),
    (
      f"{opposite} -n {n} {path} > {out}",
      f"{command} -n {n + 1} {path} > {out}",
      f"{command} {path} > {out}",
      f"cp {path} {out}",
    ),
  )


def _search(rng):
  folder = base.pick(rng, FOLDERS)
  stems = _some(rng, STEMS, int(rng.integers(4, 6)))
  out = f"{stems.pop()}.txt"
  word, *rest = _some(rng, WORDS, 10)
  right = base.pick(rng, stems)
  files = {}
  for stem in stems:
    lines = _lines(rng, 2, rest)
    if stem == right:
      lines[int(rng.integers(2))] = f"{word} {rest[0]}"
    files[f"{folder}/{stem}.txt"] = _text(lines)
  others = [s for s in stems if s != right]
  return Draft(
    f"One file in {folder} has the word {word}. Copy it to {out}.",
    files,
    (
      (f"grep -r {word} {folder}", f"grep -l {word} {folder}/*",
       f"grep {word} {folder}/*"),
    ),
    (
      f"cp {folder}/{right}.txt {out}",
      f"cat {folder}/{right}.txt > {out}",
    ),
    (f"cat {out}",),
    (
      f"cp {folder}/{others[0]}.txt {out}",
      f"cp {folder}/{others[-1]}.txt {out}",
      f"mv {folder}/{right}.txt {out}",
      f"cp {folder}/* {out}",
    ),
  )  # fmt: skip


def _setting(rng):
  folder = base.pick(rng, FOLDERS)
  (stem,) = _some(rng, STEMS, 1)
  path = f"{folder}/{stem}.ini"
  keys = _some(rng, KEYS, int(rng.integers(3, 5)))
  values = _some(rng, WORDS, len(keys) + 1)
  key, new, old = keys[0], values[-1], values[0]
  lines = [f"{k}={v}" for k, v in zip(keys, values)]
  lines = [lines[i] for i in rng.permutation(len(lines))]
  return Draft(
    f"Set {key} to {new} in {path}.",
    {path: _text(lines)},
    ((f"cat {path}", f"cat {folder}/{stem}.ini | head", f"grep {key} {path}"),),
    (
      f"sed -i 's/{key}={old}/{key}={new}/' {path}",
      f"sed -i 's/^{key}=.*/{key}={new}/' {path}",
      f"sed -i s/{key}={old}/{key}={new}/ {path}",
      f"sed -i 's/{old}/{new}/' {path}",
    ),
    (f"cat {path}", f"grep {key} {path}"),
    (
      f"echo {key}={new} >> {path}",
      f"echo {key}={new} > {path}",
      f"sed -i 's/{values[1]}/{new}/' {path}",
      f"sed 's/{key}={old}/{key}={new}/' {path}",
    ),
  )


def _join(rng):
  folder = base.pick(rng, FOLDERS)
  a, b, out, other = _some(rng, STEMS, 4)
  a, b, out = f"{folder}/{a}.txt", f"{folder}/{b}.txt", f"{out}.txt"
  return Draft(
    f"Join {a} and {b}, in this order, into {out}.",
    {a: _text(_lines(rng, 2)), b: _text(_lines(rng, 2)),
     f"{folder}/{other}.txt": _text(_lines(rng, 1))},
    (_look(folder, "")[0],),
    (
      f"cat {a} {b} > {out}",
      f"cat {a} > {out} && cat {b} >> {out}",
      f"cp {a} {out} && cat {b} >> {out}",
    ),
    (f"cat {out}",),
    (
      f"cat {b} {a} > {out}",
      f"cat {folder}/*.txt > {out}",
      f"cat {a} {b}",
      f"cp {a} {out}",
    ),
  )  # fmt: skip


def _largest(rng):
  folder = base.pick(rng, FOLDERS)
  stem, out = _some(rng, STEMS, 2)
  path, out = f"{folder}/{stem}.txt", f"{out}.txt"
  small = [str(int(n)) for n in rng.choice(np.arange(10, 100), 3, False)]
  large = [str(int(n)) for n in rng.choice(np.arange(100, 999), 2, False)]
  numbers = [str(int(rng.integers(2, 10))), *small, *large]
  numbers = [numbers[i] for i in rng.permutation(len(numbers))]
  ends = (min(numbers, key=int), max(numbers, key=int))
  while numbers[0] in ends or numbers[-1] in ends:
    numbers = numbers[1:] + numbers[:1]
  word, end = (("largest", "tail"), ("smallest", "head"))[int(rng.integers(2))]
  pick = max if word == "largest" else min
  answer = pick(numbers, key=int)
  back = "head" if end == "tail" else "tail"
  return Draft(
    f"Write the {word} number of {path} to {out}.",
    {path: _text(numbers)},
    _look(folder, path),
    (
      f"sort -n {path} | {end} -n 1 > {out}",
      f"sort -n {path} | {end} -1 > {out}",
      f"sort -nr {path} | {back} -n 1 > {out}",
      f"echo {answer} > {out}",
    ),
    (f"cat {out}",),
    (
      f"sort -n {path} | {back} -n 1 > {out}",
      f"{end} -n 1 {path} > {out}",
      f"sort -n {path} > {out}",
      f"echo {base.pick(rng, [n for n in numbers if n != answer])} > {out}",
    ),
  )


def _rename(rng):
  folder = base.pick(rng, FOLDERS)
  old, new, other = _some(rng, STEMS, 3)
  kind = base.pick(rng, ("csv", "log", "md", "txt"))
  old, new = f"{folder}/{old}.{kind}", f"{folder}/{new}.{kind}"
  return Draft(
    f"Rename {old} to {new}.",
    {old: _text(_lines(rng, 1)),
     f"{folder}/{other}.{kind}": _text(_lines(rng, 1))},
    (_look(folder, "")[0],),
    (
      f"mv {old} {new}",
      f"cp {old} {new} && rm {old}",
      f"cd {folder} && mv {old.split('/')[1]} {new.split('/')[1]} && cd ..",
    ),
    (f"ls {folder}", f"ls -l {folder}"),
    (
      f"cp {old} {new}",
      f"mv {new} {old}",
      f"mv {old} {new.split('/')[1]}",
      f"mv {folder}/{other}.{kind} {new}",
    ),
  )  # fmt: skip


def _write(rng):
  folder, beside = _some(rng, FOLDERS, 2)
  stem, other = _some(rng, STEMS, 2)
  words = " ".join(_some(rng, WORDS, int(rng.integers(2, 5))))
  path = f"{folder}/{stem}.txt"
  return Draft(
    f"Write the line '{words}' to {path}.",
    {f"{beside}/{other}.txt": _text(_lines(rng, 1))},
    (("ls", "ls -l", "find ."),),
    (
      f"mkdir {folder} && echo '{words}' > {path}",
      f"mkdir -p {folder} && echo '{words}' > {path}",
      f"mkdir {folder} && echo {words} > {path}",
    ),
    (f"cat {path}",),
    (
      f"echo '{words}' > {path}",
      f"mkdir {folder} && echo '{words}' > {stem}.txt",
      f"mkdir {folder} && echo {words.split()[0]} > {path}",
      f"mkdir {folder} && touch {path}",
    ),
  )


def _empty(rng):
  folder = base.pick(rng, FOLDERS)
  stems = _some(rng, STEMS, int(rng.integers(3, 6)))
  count = int(rng.integers(1, 3))
  files = {
    f"{folder}/{s}.txt": "" if i < count else _text(_lines(rng, 1))
    for i, s in enumerate(stems)
  }
  gone = sorted(p for p, text in files.items() if not text)
  kept = sorted(p for p, text in files.items() if text)
  return Draft(
    f"Delete the empty files in {folder}, {count} in all.",
    files,
    ((f"ls -l {folder}", f"wc -c {folder}/*", f"find {folder} -empty"),),
    (
      f"rm {' '.join(gone)}",
      f"find {folder} -type f -empty -delete",
      f"find {folder} -empty -delete",
    ),
    (f"ls -l {folder}", f"ls {folder}"),
    (
      f"rm {kept[0]}",
      f"rm {folder}/*",
      f"rm {gone[0]} {kept[-1]}",
      f"rm -r {folder}",
    ),
  )


def _without(rng):
  folder = base.pick(rng, FOLDERS)
  (stem,) = _some(rng, STEMS, 1)
  path = f"{folder}/{stem}.log"
  word, *rest = _some(rng, WORDS, 10)
  lines = [f"{word} {rest[0]}", f"{rest[1]} {word}", *_lines(rng, 3, rest)]
  lines = [lines[i] for i in rng.permutation(len(lines))]
  return Draft(
    f"Remove the lines with {word} from {path}.",
    {path: _text(lines)},
    _look(folder, path),
    (
      f"sed -i '/{word}/d' {path}",
      f"sed -i /{word}/d {path}",
      f"grep -v {word} {path} > t && mv t {path}",
    ),
    (f"cat {path}",),
    (
      f"sed -i 's/{word}//g' {path}",
      f"grep -v {word} {path}",
      f"grep {word} {path} > t && mv t {path}",
      f"sed '/{word}/d' {path}",
    ),
  )


FAMILIES: tuple[Callable[[np.random.Generator], Draft], ...] = (
    _count, _move, _clean, _unique, _replace, _column, _ends, _search,
    _setting, _join, _largest, _rename, _write, _empty, _without,
)  # fmt: skip
