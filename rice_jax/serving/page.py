"""The web pages of the indexes."""

import base64
import dataclasses
import hashlib

import jinja2

from rice_jax.serving.limits import Limits
from rice_jax.serving.shops import Shop, Shops


class Page:
    """The page, with the Content-Security-Policy that allows its own script and style only.

    Attributes:
        policy: the Content-Security-Policy.
    """

    def __init__(self, limits: Limits, docs: str):
        """Reads the template; `docs` is the address of the page for programs, relative to the page."""
        loader = jinja2.ChoiceLoader([jinja2.PackageLoader("rice_jax.serving"), jinja2.PackageLoader("rice_jax.pages")])
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        style, script = (
            "".join(loader.get_source(environment, name)[0] for name in names)
            for names in (("style.css", "timeline.css", "serve.css"), ("timeline.js", "labels.js", "serve.js"))
        )
        self._template = environment.get_template("serve.html.jinja")
        self._names_template = environment.get_template("indexes.html.jinja")
        self._same = {"style": style, "script": script, "limits": dataclasses.asdict(limits), "docs": docs}
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
        self.policy = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
            f"img-src 'self' data: blob:; media-src blob:; style-src 'sha256-{hashes[0]}'; "
            f"script-src 'sha256-{hashes[1]}'"
        )

    def render(self, shop: Shop) -> str:
        """The page for an index."""
        return self._template.render(**self._same, galleries=shop.engine.galleries, num_products=shop.num_products)

    def render_names(self, shops: Shops) -> str:
        """The page that leads to those of several indexes."""
        products = {name: shops[name].num_products for name in shops.names}
        return self._names_template.render(style=self._same["style"], products=products)
