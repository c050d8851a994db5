"""Cards, and the names of meshes made of them."""

import dataclasses
import re

from pivotrl_jax import errors


@dataclasses.dataclass(frozen=True)
class Card:
  """One device, as its maker describes it; bytes and seconds.

  Attributes:
    backend: gpu | tpu.
    memory: bytes.
    flops: bfloat16 products a second, dense.
    bandwidth: of the memory.
    near, far: what a device takes in of a collective, a second, among `host`
      devices and among more.
    host: devices of a fast domain.
    cores: that a slice's name counts for each chip; 0: no such names.
    torus: axes of a slice.
  """

  backend: str
  memory: float
  flops: float
  bandwidth: float
  near: float
  far: float
  host: int
  cores: int = 0
  torus: int = 0


# Sources. GPUs: NVIDIA's data sheets (A100 80GB SXM, H100 SXM5, H200; products
# without sparsity), memory as nvidia-smi has it, NVLink one way (300, 450
# GB/s); across hosts the eight adapters of a DGX (A100 200, H100 and H200 400
# Gb/s each), which a collective of whole hosts shares. TPUs: Google Cloud's
# system architecture pages; links one way, a collective over all axes of the
# torus: v5p 6 x 90, v5e 4 x 45, v6e 4 x 90 GB/s ("How to scale your model",
# table of TPU specs).
CARDS = {
  "a100": Card("gpu", 81920 * 2**20, 312e12, 2.039e12, 300e9, 200e9, 8),
  "h100": Card("gpu", 81559 * 2**20, 989e12, 3.35e12, 450e9, 400e9, 8),
  "h200": Card("gpu", 143771 * 2**20, 989e12, 4.8e12, 450e9, 400e9, 8),
  "v5e": Card("tpu", 16 * 2**30, 197e12, 0.819e12, 180e9, 180e9, 256, 1, 2),
  "v5p": Card("tpu", 95 * 2**30, 459e12, 2.765e12, 540e9, 540e9, 8960, 2, 3),
  "v6e": Card("tpu", 32 * 2**30, 918e12, 1.64e12, 360e9, 360e9, 256, 1, 2),
}


@dataclasses.dataclass(frozen=True)
class Named:
  """A mesh by its name: so many of a card."""

  name: str
  kind: str
  count: int

  @property
  def card(self) -> Card:
    return CARDS[self.kind]

  @property
  def link(self) -> float:
    """Bytes a second of a collective over all of them."""
    return self.card.near if self.count <= self.card.host else self.card.far

  @property
  def topology(self) -> str | None:
    """A TPU slice's sizes as Google names them, such as 2x4x4; None where its
    devices are no power of two, or less than a host's four.
    """
    axes, power = self.card.torus, self.count.bit_length() - 1
    if not axes or self.count != 1 << power or self.count < 4:
      return None
    # As even as may be; an axis of one device stands last.
    sizes = sorted(1 << (power + i) // axes for i in range(axes))
    return "x".join(map(str, sorted(sizes, key=lambda size: size == 1)))


def named(name: str) -> Named:
  """`64xh100` (devices x card), or a TPU slice as Google names it: `v5p-64`
  has 64 cores, which are 32 devices.

  Raises:
    InputError: no such card, or no such count of it.
  """
  text = name.strip().lower()
  many = re.fullmatch(r"([1-9]\d*)x(\w+)", text)
  piece = re.fullmatch(r"(v\w+)-([1-9]\d*)", text)
  kind = many[2] if many else piece[1] if piece else ""
  card = CARDS.get(kind)
  count = 0
  if card and many:
    count = int(many[1])
  elif card and card.cores and not int(piece[2]) % card.cores:
    count = int(piece[2]) // card.cores
  if not count:
    raise errors.InputError(
      f"--config.dry_run.meshes: {name!r}; expected COUNTxCARD or a TPU slice,"
      f" such as 64xh100 or v5p-64, of {', '.join(CARDS)}"
    )
  return Named(text, kind, count)


def meshes(names: str) -> list[Named]:
  """Those of a list with commas."""
  return [named(name) for name in names.split(",")]
