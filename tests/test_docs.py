"""The pages in README.md and docs/: current, linked, and runnable."""

import dataclasses
import re

import pytest

from rice_jax.config import Config
from rice_jax.config.document import document
from tests.fixtures import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/**/README.md")])
NOT_SETTINGS = {"config.model.encoder"}  # a property, in an example of code
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_of_settings_is_current():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == document(), (
        "run python -m rice_jax.config.document > docs/settings.md"
    )


def test_readme_answers_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.S)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_in_a_page_exists(page):
    known = document()
    groups = "|".join(field.name for field in dataclasses.fields(Config))
    for name in set(re.findall(rf"config\.(?:{groups})\.[a-z_0-9.]*[a-z_0-9]", page.read_text(encoding="utf-8"))):
        assert f"`{name}`" in known or f"`{name}." in known or name in NOT_SETTINGS, name
