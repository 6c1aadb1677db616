"""The products of an index: what the shop's CSV says about them, and which of them are searched."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from jaxtyping import Float32, Int

from rice_jax.eval.products import Products, group_products
from rice_jax.index.store import Index, fields_of
from rice_jax.types import DataError, normal_form

# {column of the shop's CSV, in any case: a value, or several of which a product has one}; all columns must agree. Texts
# that differ only in Unicode's normal form are equal.
Where = Mapping[str, str | Collection[str]]
NUM_NAMED = 10  # values of a column in a message


def known_as(gallery: str | None) -> str | None:
    """A gallery's name as an index has it; None stays None."""
    return gallery if gallery is None else normal_form(gallery)


def in_gallery(of_galleries: Mapping[str | None, Products], gallery: str | None) -> Products:
    """The products of a gallery; None = of all galleries.

    Raises:
        DataError: there is no such gallery.
    """
    if known_as(gallery) in of_galleries:
        return of_galleries[known_as(gallery)]
    names = [name for name in of_galleries if name is not None]
    if names == [""]:
        raise DataError(f"found no gallery {gallery!r}: the index is not divided into galleries; leave the gallery out")
    some = ", ".join(map(repr, names[:NUM_NAMED])) + (", …" if len(names) > NUM_NAMED else "")
    raise DataError(f"found no gallery {gallery!r} in the index, which has {len(names)}: {some}")


def by_gallery(index: Index) -> dict[str | None, Products]:
    """The products of each gallery, and of all under None."""
    return group_products(index.gallery_ids, index.product_ids)


def first_places(scores: Float32[np.ndarray, " g"], num: int) -> Int[np.ndarray, " k"]:
    """Places of the highest scores in descending order; ties keep their order."""
    place = max(len(scores) - num, 0)
    places = np.flatnonzero(scores >= np.partition(scores, place)[place])  # cheaper than sorting all
    return places[np.argsort(-scores[places], kind="stable")][:num]


def parse_where(texts: Iterable[str]) -> dict[str, list[str]]:
    """Conditions that are written as COLUMN=VALUE; those of one column are alternatives.

    Raises:
        DataError: a text has another form.
    """
    where: dict[str, list[str]] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not column.strip() or not equals:
            raise DataError(f"where: found {text!r}, expected COLUMN=VALUE, such as category=lamp")
        where.setdefault(column.strip().casefold(), []).append(value.strip())
    return where


def freeze(where: Where | None) -> tuple[tuple[str, frozenset[str]], ...]:
    """Conditions in a form that is equal, and can be a key, whenever they mean the same."""
    several: dict[str, set[str]] = {}
    for column, values in (where or {}).items():
        texts = [values] if isinstance(values, str) else values
        several.setdefault(normal_form(column.casefold()), set()).update(map(normal_form, texts))
    return tuple(sorted((column, frozenset(values)) for column, values in several.items()))


def select(
    index: Index,
    of_galleries: Mapping[str | None, Products],
    gallery: str | None,
    where: tuple[tuple[str, frozenset[str]], ...],
) -> Products:
    """The products of a gallery that meet frozen conditions.

    Raises:
        DataError: the index has no such column, or no product meets the conditions.
    """
    products, names = in_gallery(of_galleries, gallery), dict[str, str]()
    for fields in index.fields:
        for name in fields:
            names.setdefault(normal_form(name.casefold()), name)
    for column, _ in where:
        if column not in names:
            found = ", ".join(map(repr, sorted(names.values()))) or "none"
            raise DataError(
                f"where: found no column {column!r} in the index; its further columns are: {found}. They come from the "
                "CSV of `rice index`"
            )

    def meets(product: int) -> bool:
        own = fields_of(index, products.images(product).tolist())
        of_column: dict[str, set[str]] = {}
        for name, value in own.items():
            of_column.setdefault(normal_form(name.casefold()), set()).add(normal_form(value))
        return all(of_column.get(column, set()) & values for column, values in where)

    kept = np.array([meets(product) for product in range(len(products.edges) - 1)])
    if not kept.any():
        wanted = " and ".join(f"{column}={' or '.join(sorted(values))}" for column, values in where)
        known = "; ".join(f"{names[column]!r} is {_some(_values(index, products, column))}" for column, _ in where)
        raise DataError(f"where: found no product with {wanted} among {len(kept)}, whose {known}")
    return products.take(kept)


def _values(index: Index, products: Products, column: str) -> list[str]:
    """What the pictures of the products have in a column, without empty texts."""
    rows = (index.fields[row] for row in products.rows.tolist())
    found = (value for row in rows for name, value in row.items() if normal_form(name.casefold()) == column)
    return sorted(set(filter(None, found)))


def _some(values: list[str]) -> str:
    more = [f"one of {len(values) - NUM_NAMED} more"] if len(values) > NUM_NAMED else []
    return " or ".join([*map(repr, values[:NUM_NAMED]), *more]) or "empty"
