"""Eight fake CPU devices, strict JAX, and caches of this test session only."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
# Downloads are kept between sessions; what is built and compiled is made anew, once for all workers
# of one session.
_SHARED = os.environ.setdefault("GRAFT_TEST_CACHE", tempfile.mkdtemp(prefix="graft-tests-"))
os.environ["GRAFT_CACHE"] = _SHARED
os.environ["GRAFT_ALLOCATOR"] = "system"

import jax
import pytest

from research.parallel.mesh import make_mesh

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs run for microseconds and compile for seconds: the compiler's expensive passes triple
# the suite's time.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", os.path.join(_SHARED, "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def mesh(request):
    """The mesh of `@pytest.mark.parametrize("mesh", ["fsdp:4,tensor:2"], indirect=True)`, set."""
    made = make_mesh(request.param)
    with jax.set_mesh(made):
        yield made


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """A compiled program holds memory maps, of which a process may have 65,530: a whole suite's
    would be more."""
    yield
    jax.clear_caches()
