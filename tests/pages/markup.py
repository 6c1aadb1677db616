"""What is wrong with the markup of a page, for tests."""

import collections
from html.parser import HTMLParser

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}  # elements without an end


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: collections.Counter[str] = collections.Counter()

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"line {self.getpos()[0]}: found the end of <{tag}>, which is not the last one opened")

    def note(self, tag, attrs):
        given = [name for name, _ in attrs]
        self.problems += [f"<{tag}> has {name} twice" for name in set(given) if given.count(name) > 1]
        if "svg" not in self.open:  # plots are drawn apart from each other
            self.ids.update(value for name, value in attrs if name == "id")
        if tag == "img" and "alt" not in given:
            self.problems.append("<img> without alt")


def problems(page: str) -> list[str]:
    """Elements that are not closed in order, attributes and ids that are there twice, and images without a text."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    twice = [f"found the id {name} {number} times" for name, number in checker.ids.items() if number > 1]
    return checker.problems + [f"<{tag}> is not closed" for tag in checker.open] + twice
