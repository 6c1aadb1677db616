"""Writes `docs/settings.md` from the settings: `python -m rice_jax.config.document > docs/settings.md`."""

import dataclasses
import typing

from rice_jax.config.fields import constraint
from rice_jax.config.groups import Config

HEAD = """\
# Settings

Every setting of a run, with its default. This page is generated from the fields in `rice_jax/config/` by
`python -m rice_jax.config.document > docs/settings.md`.

On the command line a setting is `--config.GROUP.NAME=VALUE`, for example `--config.data.batch_size=64`. A config file
is a Python file, in any directory, that changes some defaults:

```python
from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "lpr4m/train"
    return config
```

`load_config("sample")` instead of `default_config()` starts from a config that comes with rice_jax.

Settings marked * may differ when a run is continued: they change where and how fast a run computes and what it
reports, not what it learns.
"""


def document() -> str:
    """The page, in Markdown, with a newline at its end."""
    return "\n".join([HEAD, *_section(Config, "config", "General", "", free=False)])


def _section(cls: type, path: str, title: str, doc: str, free: bool) -> list[str]:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    settings = [field for field in fields if not dataclasses.is_dataclass(hints[field.name])]
    groups = [field for field in fields if field not in settings]
    lines = [f"## {title}", ""]
    if doc:
        lines += [doc, ""]
    lines += ["| setting | default | |", "|---|---|---|"]
    lines += [_row(path, field, free) for field in settings] + [""]
    for field in groups:
        name = f"{path}.{field.name}"
        lines += _section(hints[field.name], name, f"`{name}`", field.metadata["doc"], field.metadata["free"])
    return lines


def _row(path: str, field: dataclasses.Field, free: bool) -> str:
    bounds, unit = constraint(field.metadata), field.metadata["unit"]
    facts = ", ".join(fact for fact in (unit, "" if field.metadata["choices"] else bounds) if fact)
    star = "\\*" if free or field.metadata["free"] else ""
    default = f"`{field.default!r}`" if field.default != "" else '`""`'
    text = field.metadata["doc"] + (f" ({facts})" if facts else "")
    return f"| `{path}.{field.name}`{star} | {default} | {text} |"


if __name__ == "__main__":
    print(document(), end="")
