"""Token prefixes to trajectory trees. Pure numpy.

A tree is one trunk and the rows (prompts) that are prefixes of it, token for
token: strings that look alike but tokenize apart never share. The longest
prompt of a tree *is* its trunk, so a tree computes no token that no row needs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
  """One trunk and its branches' attach points.

  Attributes:
    trunk: `[T]` int32 token ids.
    rows: `[n]` which prompts attach here, in ascending order.
    attach: `[n]` length of each prompt: row i is `trunk[:attach[i]]`.
  """

  trunk: np.ndarray
  rows: np.ndarray
  attach: np.ndarray


def build(prompts: Sequence[np.ndarray]) -> list[Tree]:
  """Merges prompts into as few trunks as token-for-token prefixes allow.

  Args:
    prompts: non-empty int arrays `[T_i]`.

  Returns:
    Trees in the order of their first row. Every row is in exactly one.

  Raises:
    ValueError: a prompt is empty.
  """
  keys = [np.asarray(p, ">u4").tobytes() for p in prompts]
  if not all(keys):
    raise ValueError(f"prompt {keys.index(b'')} is empty; expected >= 1 token")
  # In lexicographic order a prefix stands before its extensions, and all
  # that stands between extends it too: comparing neighbours is enough.
  order = sorted(range(len(keys)), key=lambda i: keys[i], reverse=True)
  members: list[list[int]] = []
  previous = None
  for i in order:
    if previous is not None and previous.startswith(keys[i]):
      members[-1].append(i)
    else:
      members.append([i])
    previous = keys[i]
  trees = []
  for rows in members:
    trunk = np.asarray(prompts[rows[0]], np.int32)
    rows = np.sort(np.array(rows))
    attach = np.array([len(prompts[i]) for i in rows], np.int32)
    trees.append(Tree(trunk, rows, attach))
  return sorted(trees, key=lambda t: t.rows[0])


def split(tree: Tree, most: int, sizes: np.ndarray | None = None) -> list[Tree]:
  """Cuts a tree into trees whose rows fit, shortest prompts first.

  Args:
    tree: what to cut.
    most: of a part's sizes in sum; each row alone fits.
    sizes: of all rows, by row; 1 each where None.

  Returns:
    Parts whose trunk ends where the longest row's does.
  """
  order = np.argsort(tree.attach, kind="stable")
  need = np.ones(len(order)) if sizes is None else sizes[tree.rows[order]]
  parts, start = [], 0
  while start < len(order):
    fit = np.searchsorted(np.cumsum(need[start:]), most, side="right")
    part = np.sort(order[start : start + fit])
    attach = tree.attach[part]
    parts.append(Tree(tree.trunk[: attach.max()], tree.rows[part], attach))
    start += fit
  return parts


def branches(forest: Sequence[Tree], width: int) -> int:
  """The N to split a forest by for the least computed tokens.

  All trees of a batch have room for N branches of `width` tokens; one cut in
  parts has its trunk in each: the sum over parts of T + N * width.
  """
  counts = np.array([len(t.rows) for t in forest])
  lengths = np.array([len(t.trunk) for t in forest])

  def cost(size):
    return float((-(-counts // size) * (lengths + size * width)).sum())

  return int(min(np.unique(counts), key=cost))


def bucket(size: int, least: int = 16) -> int:
  """The smallest of least x (1, 1.5, 2, 3, 4, 6, ...) that holds `size`."""
  bound = least
  while bound < size:
    if bound * 3 // 2 >= size and bound % 2 == 0:
      return bound * 3 // 2
    bound *= 2
  return bound
