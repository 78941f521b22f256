"""Eight fake CPU devices, strict JAX, and caches of this test session only."""

import functools
import gc
import os
import tempfile
from collections.abc import Generator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# A device that waits for others ends the process after 40 seconds, which two busy cores may need
# for eight of them.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=300 "
    # Two workers fill two cores: cutting each small program in parts for several threads costs
    # a twentieth of the suite's processor time and gains nothing.
    "--xla_cpu_parallel_codegen_split_count=1"
).strip()
# Downloads are kept between sessions; what is built and compiled is made anew, once for all workers
# of one session.
_SHARED = os.environ.setdefault("GRAFT_TEST_CACHE", tempfile.mkdtemp(prefix="graft-tests-"))
os.environ["GRAFT_CACHE"] = _SHARED
os.environ["GRAFT_ALLOCATOR"] = "system"
# A tenth of the suite's time goes into writing each operation's Python lines into its program.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache, compiler

from research.data import stdlib
from research.parallel.mesh import make_mesh
from tests.compiler import OLDER_FUSIONS, known

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs run for microseconds and compile for seconds: the compiler's expensive passes triple
# the suite's time.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", os.path.join(_SHARED, "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Tracing makes objects by the million and few circles: Python looks for those very often.
gc.set_threshold(200_000, 20, 100)

# Asked before the compiler's function is replaced below.
_OPTIONS = [OLDER_FUSIONS] if known(*OLDER_FUSIONS) else []
_compile = compiler.compile_or_get_cached


def _compile_for_tests(backend, program, devices, options, *rest):
    """JAX's function that compiles, by XLA's older code for fused operations. It leaves programs of
    several devices out of the cache: read from it, their collectives run in an order of each
    device's own, and wait for ever (see `research.run.opened.keep_compiled_programs`)."""
    if backend.platform == "cpu":
        options.env_option_overrides = [*options.env_option_overrides, *_OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        if devices.size > 1:
            patch.setattr(compilation_cache, "is_cache_used", lambda backend: False)
        return _compile(backend, program, devices, options, *rest)


compiler.compile_or_get_cached = _compile_for_tests


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """Skips a test that converts float16 on a processor without instructions for it (F16C), also
    where `XLA_FLAGS=--xla_cpu_max_isa=SSE4_2` asks for code of one: XLA's compiler then wants a
    function that jaxlib does not have (`__extendhfsf2`), whatever the program."""
    try:
        return (yield)
    except jax.errors.JaxRuntimeError as error:
        if "Failed to materialize symbols" in str(error) and not _converts_float16():
            pytest.skip("jaxlib converts no float16 for this instruction set")
        raise


@functools.cache
def _converts_float16() -> bool:
    try:
        jnp.ones(3, jnp.float16).astype(jnp.float32).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.fixture
def mesh(request):
    """The mesh of `@pytest.mark.parametrize("mesh", ["fsdp:4,tensor:2"], indirect=True)`, set."""
    made = make_mesh(request.param)
    with jax.set_mesh(made):
        yield made


@pytest.fixture
def quick_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test starts compile as this process does."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="module")
def small_library() -> Generator[None, Any, Any]:
    """The source "stdlib" with an eighth of its files, for tests of what a run does with data: its
    last evaluation reads all held-out windows, 250 batches of the whole library."""
    sources = stdlib._sources
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "_sources", lambda root: sorted(sources(root))[::8])
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Generator[None, Any, Any]:
    """Forgets a module's compiled programs after it: a compiled program holds memory maps, of which
    a process may have 65,530: a whole suite's would be more."""
    yield
    jax.clear_caches()
