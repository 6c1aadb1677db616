# Sourced by the other scripts: changes to the repository's root and creates .venv on first use.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# Installs only when the requirements have changed, so that later runs start at once and need no network.
stamp=.venv/installed-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
    touch "$stamp"
fi
source .venv/bin/activate
