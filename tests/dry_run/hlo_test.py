"""What is read of a program's text, on one written by hand and on XLA's."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from pivotrl_jax.dry_run import hlo

_TEXT = """HloModule step

%inner (a: f32[2,3]) -> f32[2,5] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,5]{1,0} constant(0)
  ROOT %d = f32[2,5]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%body (p: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %p = (s32[], f32[2,3]{1,0}) parameter(0)
  %x = f32[2,3]{1,0} get-tuple-element(%p), index=1
  %f = f32[2,5]{1,0} fusion(%x), kind=kOutput, calls=%inner
  %r = f32[2,5]{1,0} all-reduce(%f), channel_id=1, to_apply=%sum
  ROOT %t = (s32[], f32[2,3]{1,0}) tuple(%p, %x)
}

%cond (p: (s32[], f32[2,3])) -> pred[] {
  %p = (s32[], f32[2,3]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (w: bf16[4,2]) -> (s32[], f32[2,3]) {
  %w = bf16[4,2]{1,0} parameter(0)
  %g = (bf16[4,2]{1,0}, bf16[16,2]{1,0}) all-gather-start(%w), dimensions={0}
  %s = bf16[2,2]{1,0} reduce-scatter(%w), dimensions={0}, to_apply=%sum
  %init = (s32[], f32[2,3]{1,0}) tuple(%w)
  %known = (s32[], f32[2,3]{1,0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %micro = (s32[], f32[2,3]{1,0}) while(%init), condition=%cond, body=%body, metadata={op_name="jit(step)/micro_batches/while"}
  ROOT %data = (s32[], f32[2,3]{1,0}) while(%init), condition=%cond, body=%body, metadata={op_name="jit(step)/while"}
}
"""


def test_loops_count_as_often_as_they_run():
  found = hlo.read(_TEXT, micro_batches=3)
  # 2 x 2 x 3 x 5 FLOPs, 7 + 3 times; the loop over data is left out.
  assert found.products == 60 * 10
  assert found.unknown == 1
  # 40 bytes, and once in the loop over data.
  assert found.collectives["all-reduce"] == 40 * 11
  assert found.collectives["all-gather"] == 16 * 2 * 2  # What comes of it.
  assert found.collectives["reduce-scatter"] == 4 * 2 * 2  # What goes in.
  assert found.collectives["all-to-all"] == 0


def test_a_program_of_xlas_own():
  """Rows over 8 devices times a matrix that is divided among them, 5 times."""
  mesh = jax.make_mesh(
    (8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  by_first = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())

  def run(x, w):
    w = jax.lax.with_sharding_constraint(w, whole)
    return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x)

  compiled = (
    jax.jit(run, in_shardings=(by_first, by_first), out_shardings=by_first)
    .lower(
      jax.ShapeDtypeStruct((64, 32), np.float32),
      jax.ShapeDtypeStruct((32, 32), np.float32),
    )
    .compile()
  )
  found = hlo.read(compiled.as_text(), micro_batches=1)
  assert found.collectives["all-gather"] == 32 * 32 * 4
  assert found.products == 5 * 2 * (64 // 8) * 32 * 32
  assert found.unknown == 0
