"""TPU's compiler scatters a gradient over a whole slice, and makes no all-reduce of it."""

import json

import pytest

from tests.fit.processes import in_a_process, need_compiler

WHOLE = ("v4:2x2x4", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5e:2x4", "v5e:4x4")


def kinds(target: str) -> list[str]:
    """The collectives of a weight's gather and of its gradient's scatter over all chips."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from research.fit.collectives import collectives
    from research.fit.hlo.text import parse
    from research.fit.targets import parse_target
    from research.ops.einsum import einsum
    from research.parallel.mesh import make_mesh

    chosen = parse_target(target)
    mesh, chips = make_mesh("fsdp:-1", chosen.devices()), len(chosen.devices())
    place = NamedSharding(mesh, PartitionSpec("fsdp"))

    def shaped(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

    def loss(w_DF, x_BTD):
        return jnp.sum(jnp.sin(einsum("BTD,DF->BTF", x_BTD, w_DF).astype(jnp.float32)))

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).lower(shaped(2048, 4096), shaped(chips, 256, 2048))
    text = lowered.compile(chosen.compiler_options).as_text()
    return sorted({collective.kind for collective in collectives(parse(text))})


@pytest.mark.slow
def test_no_all_reduce_over_a_whole_slice():
    need_compiler(WHOLE[0])
    done = in_a_process(__file__)
    assert done.returncode == 0, done.stderr[-3000:]
    for target, found in json.loads(done.stdout).items():
        assert "reduce-scatter" in found and "all-reduce" not in found, target


if __name__ == "__main__":
    print(json.dumps({target: kinds(target) for target in WHOLE}))
