"""A cache of compiled programs for the next start."""

import os
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, or in the user's cache directory if it can be written to.

    JAX's key of a program covers the versions of JAX and its compiler, the flags, and the kind of device. Small
    programs are kept too: a start compiles many of them. JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.

    Several processes on CPUs keep and read nothing. They call this after `processes.join`.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1 and jax.default_backend() == "cpu":
        # XLA (jaxlib 0.10) does not order the collectives inside of a loop and those outside of it once a program has
        # been read from the cache. Processes that begin with different ones wait for each other forever.
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds settings at import
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rice_jax"
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:  # such as a home that is read-only
            return
        if not os.access(cache, os.W_OK):  # JAX would warn of every program
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
