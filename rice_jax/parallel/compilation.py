"""A cache of compiled programs for the next start."""

import os
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, or in the user's cache directory."""
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds settings at import
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "rice_jax"))
