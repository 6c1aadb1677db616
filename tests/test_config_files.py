"""Config files: what is wrong with one is a single line, with the line of the file."""

import pytest

from rice_jax.config import ConfigError
from rice_jax.config.command_line import with_config_path

START = "from rice_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no get_config, expected a function"),
        ("def get_config():\n    return {}\n", "get_config returns a dict, expected the result of default_config"),
        (f"{START}    config.modle.width = 3\n", r"line 5: 'modle': Did you mean \"model\" instead of \"modle\""),
        (f"{START}    config.seed = 'a'\n", "line 5: Could not override field 'seed'"),
        (f"{START}    raise ValueError('no such \"stage\"')\n", 'mine.py: no such "stage"$'),
    ],
)
def test_what_a_config_file_does_wrong_is_one_line(tmp_path, monkeypatch, text, message):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "mine.py", "mine.py"):
        with pytest.raises(ConfigError, match=message) as caught:
            with_config_path([f"--config={path}"])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
