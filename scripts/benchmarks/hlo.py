"""Reads collectives and loop counts, which JAX's analyses do not give, from a compiled program's text."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "ragged-all-to-all", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_PIECE = re.compile(r'\b(?:chain_id|async_collective_name)="([^"]*)"')
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[([^\]]*)\] \{([^}]*)\})")


class Collective(NamedTuple):
    """Equal collectives of a program."""

    kind: str
    shape: str  # of the whole array, as every device has it before or after
    group: int  # devices among which it is; 0 = the text does not say
    bytes: int  # of one such array
    overlaps: bool  # whether the device computes meanwhile: it is started and finished, or done in pieces
    runs: int  # in one run of the program

    @property
    def sent(self) -> float:
        """Lower bound of the bytes that each device sends in all runs: those of a ring algorithm."""
        rounds = 2 if self.kind == "all-reduce" else 1
        share = 1 if self.kind == "collective-permute" or not self.group else (self.group - 1) / self.group
        return rounds * share * self.bytes * self.runs


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, the largest first.

    Args:
        text: `compiled.as_text()`, since JAX's objects have neither shapes nor devices of an instruction. Loops are
            assumed to count from 0 up to the constant in their condition, as JAX's scans do; others count as run once.
    """
    computations = _computations(text)
    runs = _runs(computations)
    # An asynchronous collective is spread over several computations, each with a part of the same name. Channels cannot
    # identify it, since all collectives of shard_maps have the same.
    found = {}
    for name, instructions in computations.items():
        shapes = {instruction: shape for instruction, shape, _, _ in instructions}
        for instruction, shape, opcode, rest in instructions:
            kind = opcode.removesuffix("-start")
            if kind in KINDS and runs[name]:
                arrays = max(_operands(rest, shapes), _result(kind, opcode, shape, rest, shapes), key=_size)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"  # as TPUs do it: of the sum each keeps its part
                piece = _PIECE.search(rest)
                key = (kind, piece[1]) if piece else (name, instruction)
                overlaps = bool(piece) or opcode.endswith("-start")
                one = Collective(kind, _describe(arrays), _group(rest), _size(arrays), overlaps, runs[name])
                found[key] = min(found.get(key, one), one, key=lambda one: one.runs)
    total = Counter()
    for one in found.values():
        total[one[:-1]] += one.runs
    return sorted((Collective(*key, count) for key, count in total.items()), key=lambda one: -one.sent)


def _computations(text: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """Instructions of each computation as (name, shape, opcode, rest of the line); the name of the entry is ""."""
    computations, current = {}, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault("" if header[1] else header[2], [])
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(found.groups())
    return computations


def _runs(computations: Mapping[str, list]) -> Counter:
    """{computation: number of its runs}."""
    runs = Counter()

    def run(name: str, times: int) -> None:
        runs[name] += times
        for _, _, opcode, rest in computations.get(name, ()):
            trips = _trips(computations[_CONDITION.search(rest)[1]]) if opcode == "while" else 1
            for called in _CALLED.findall(rest):
                run(called, times * trips)

    run("", 1)
    return runs


def _trips(condition: list[tuple[str, str, str, str]]) -> int:
    constants = {name: rest for name, shape, opcode, rest in condition if opcode == "constant" and shape[:3] == "s32"}
    _, _, opcode, rest = condition[-1]
    limits = [name for name in constants if re.search(rf"%{re.escape(name)}\)", rest)]
    if opcode != "compare" or "direction=LT" not in rest or not limits:
        return 1
    return int(re.match(r"\d+", constants[limits[0]])[0])


def _arrays(shape: str) -> list[tuple[str, str]]:
    return _ARRAY.findall(shape)


def _operands(rest: str, shapes: Mapping[str, str]) -> list[tuple[str, str]]:
    names = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
    return [array for name in names for array in _arrays(shapes.get(name, ""))]


def _result(kind: str, opcode: str, shape: str, rest: str, shapes: Mapping[str, str]) -> list[tuple[str, str]]:
    """The output arrays; the start of any collective but an all-reduce also returns its inputs and counters."""
    arrays = _arrays(shape)
    if opcode == kind or kind == "all-reduce":
        return arrays
    num = len(_operands(rest, shapes))
    return arrays[num : 2 * num]


def _size(arrays: list[tuple[str, str]]) -> int:
    return sum(_bits(kind) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in arrays) // 8


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(re.sub(r"\D", "", kind) or 0)


def _group(rest: str) -> int:
    """Number of devices in a group: `[1,8]<=[8]`, `{{0,1},{2,3}}` or `mesh['a'=2,'b'=4] {'a'}`."""
    groups = _GROUPS.search(rest)
    if not groups:
        return 0
    if groups[1]:
        return int(groups[1])
    if groups[2]:
        return len(groups[2].split(","))
    sizes = dict(axis.split("=") for axis in groups[3].split(","))
    return math.prod(int(sizes[axis]) for axis in groups[4].split(","))


def _describe(arrays: list[tuple[str, str]]) -> str:
    return " ".join(f"{kind}[{sizes}]" for kind, sizes in arrays)
