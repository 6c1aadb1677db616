import jax
import pytest

from rice_jax.parallel.compilation import keep_compiled


@pytest.fixture(autouse=True)
def no_directory(monkeypatch):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update(names[0], None)
    jax.config.update(names[2], True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new/rice_jax")
    assert (tmp_path / "new/rice_jax").is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_directory_that_is_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == least
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_where_no_directory_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(("processes", "backend", "kept"), [(1, "cpu", True), (2, "cpu", False), (2, "gpu", True)])
def test_several_processes_on_cpus_keep_nothing(processes, backend, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    keep_compiled()
    assert jax.config.jax_enable_compilation_cache == kept
