# Sourced by the other scripts: goes to the repository's root and makes .venv with what is needed, if it is not there yet.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# Installed anew only when what is asked for has changed, so that a second run starts at once and needs no network.
stamp=.venv/installed-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
    touch "$stamp"
fi
source .venv/bin/activate
