"""Every draw is a function of (seed, stage, step, row)."""

import hashlib


def row_seed(*parts: int | str) -> int:
  """A 64-bit seed for one row, from what names that row.

  Built from a hash, so that neighbouring seeds, steps or rows share nothing
  and adding rows to a batch moves no other row's draw.
  """
  text = "/".join(str(part) for part in parts)
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
