import pytest

from pivotrl_jax import errors
from pivotrl_jax.dry_run import cards


@pytest.mark.parametrize(
  ("name", "kind", "count"),
  # A v5p slice's name counts cores, two a chip; v5e's and v6e's count chips.
  [("64xh100", "h100", 64), ("v5p-64", "v5p", 32), ("V5E-16", "v5e", 16),
   (" 32xv5p", "v5p", 32)],
)  # fmt: skip
def test_names(name, kind, count):
  mesh = cards.named(name)
  assert (mesh.kind, mesh.count, mesh.card) == (kind, count, cards.CARDS[kind])


@pytest.mark.parametrize(
  ("name", "sizes"),
  [("v5p-8", "2x2x1"), ("v5p-64", "2x4x4"), ("v5p-128", "4x4x4"),
   ("v5e-8", "2x4"), ("256xv6e", "16x16"), ("12xv5p", None), ("2xv6e", None),
   ("4xh100", None)],
)  # fmt: skip
def test_slices(name, sizes):
  assert cards.named(name).topology == sizes


@pytest.mark.parametrize(
  "name", ["64xh1000", "0xh100", "h100", "h100-8", "v5p-63", "v9-4", "", "x"]
)
def test_a_bad_name_is_one_line(name):
  with pytest.raises(errors.InputError) as raised:
    cards.meshes(f"64xh100,{name}")
  line = str(raised.value)
  assert repr(name) in line and "64xh100 or v5p-64" in line
  assert "\n" not in line


def test_a_collective_within_a_host_is_faster():
  assert cards.named("8xh100").link == 450e9
  assert cards.named("16xh100").link == 400e9
