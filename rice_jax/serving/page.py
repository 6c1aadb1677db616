"""The web pages of the indexes."""

import base64
import dataclasses
import hashlib

import jinja2

from rice_jax.serving.limits import SUBTITLE_BYTES, Limits
from rice_jax.serving.shops import Shop, Shops


class Page:
    """The pages, with the Content-Security-Policy that allows their own scripts and style only.

    Attributes:
        policy: the Content-Security-Policy.
    """

    def __init__(self, limits: Limits, docs: str):
        """Reads the template; `docs` is the address of the page for programs, relative to the page."""
        loader = jinja2.ChoiceLoader([jinja2.PackageLoader("rice_jax.serving"), jinja2.PackageLoader("rice_jax.pages")])
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)

        def joined(*names: str) -> str:
            return "".join(loader.get_source(environment, name)[0] for name in names)

        style = joined("style.css", "timeline.css", "serve.css")
        films, live = joined("timeline.js", "labels.js", "serve.js"), joined("timeline.js", "labels.js", "live.js")
        self._template, live_template, self._names_template = (
            environment.get_template(f"{name}.html.jinja") for name in ("serve", "live", "indexes")
        )
        self._same = {"style": style, "docs": docs}
        self._films = {"script": films, "limits": dataclasses.asdict(limits) | {"subtitle_bytes": SUBTITLE_BYTES}}
        self._live = live_template.render(**self._same, script=live)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, films, live)]
        self.policy = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
            f"img-src 'self' data: blob:; media-src blob:; style-src 'sha256-{hashes[0]}'; "
            f"script-src 'sha256-{hashes[1]}' 'sha256-{hashes[2]}'"
        )

    def render(self, shop: Shop) -> str:
        """The page for an index."""
        engine = shop.engine
        return self._template.render(
            **self._same, **self._films, galleries=engine.galleries, num_products=shop.num_products
        )

    def render_live(self) -> str:
        """The page for a stream."""
        return self._live

    def render_names(self, shops: Shops) -> str:
        """The page that leads to those of several indexes."""
        products = {name: shops[name].num_products for name in shops.names}
        return self._names_template.render(style=self._same["style"], products=products)
