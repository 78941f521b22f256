"""Which compiled programs a run keeps for the next."""

import jax
import pytest

from research.run.opened import keep_compiled_programs


@pytest.mark.parametrize(
    ("platform", "devices", "kept"), [("cpu", 1, True), ("cpu", 8, False), ("tpu", 8, True)]
)
def test_programs_of_several_cpu_devices_are_not_kept(platform, devices, kept, monkeypatch):
    changed = {}
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    keep_compiled_programs()
    assert ("jax_compilation_cache_dir" in changed) == kept
