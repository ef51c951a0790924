"""Reads NVIDIA machine code as nvdisasm prints it: the loop of a kernel, the way round it, instructions by unit.

The main loop is the longest one. What counts is the *common way* round it: the cheapest path from its first instruction
back to it, in instructions. That leaves out every rare branch of these kernels, because each of them only adds work:
the row's best code, the cut last block, a new best, sums flushed every 32 blocks. Where a kernel serves several modes
chosen at run time, the way is that of the cheapest mode. What a rare branch adds is counted apart: it is recognised
by an instruction that only it has (`RARE`), and its cost is what the cheapest way through all blocks with that
instruction has beyond the common way.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from dataclasses import dataclass, field

# Unit -> opcodes up to the first dot. What is in no list is "other": moves, addresses in uniform registers, control.
UNITS = {
    "fp32": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 FSWZADD HADD2 HMUL2 HFMA2",
    "imad": "IMAD",
    "integer": "LOP3 LOP SHF SHL SHR IADD3 IADD LEA ISETP SEL FSEL FSETP FMNMX FMNMX3 FCHK IMNMX VIADD VIADDMNMX "
    "VIMNMX VIMNMX3 PRMT PLOP3 P2R R2P SGXT BMSK IABS LEPC MOV CS2R F2FP VOTE",
    "special": "MUFU",
    "conversion": "F2F F2I I2F FRND I2FP F2IP",
    "double": "DADD DMUL DFMA DSETP DMNMX",
    "shared": "LDS STS LDSM STSM ATOMS",
    "shuffle": "SHFL",
    "global": "LDG STG LD ST",
    "reduction": "RED REDG ATOM ATOMG",
    "local": "LDL STL",
    "tensor": "HMMA HGMMA",
    "barrier": "BAR WARPSYNC",
}
_UNIT = {opcode: unit for unit, opcodes in UNITS.items() for opcode in opcodes.split()}
# Rare branch -> the instruction that only it has inside the loop.
RARE = {"flush": "reduction", "new_best": "special", "best_code": "global_store"}

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+\{?\s*(@!?U?P\w+\s+)?([A-Z0-9_]+)((?:\.\w+)*)\s*([^;]*)")
_LABEL = re.compile(r"^\s*(\.L\w+):")
_FUNCTION = re.compile(r"^\.text\.(\S+):")
_TARGET = re.compile(r"\.L\w+")


@dataclass
class Block:
    """Instructions between two points at which control enters or leaves."""

    units: Counter = field(default_factory=Counter)
    instructions: int = 0
    next: list[int] = field(default_factory=list)


@dataclass
class Mix:
    """Thread instructions by unit, and the bytes that go through shared and to or from global memory."""

    units: Counter = field(default_factory=Counter)

    def add(self, block: Block, times: int = 1) -> None:
        """Counts a block's instructions."""
        for unit, count in block.units.items():
            self.units[unit] += times * count

    def record(self) -> dict[str, int]:
        """Counts without zeros, for JSON."""
        return {unit: count for unit, count in sorted(self.units.items()) if count}


def functions(disassembly: str) -> dict[str, list[str]]:
    """Lines of each kernel by its mangled name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in disassembly.splitlines():
        start = _FUNCTION.match(line)
        if start:
            lines = found.setdefault(start.group(1), [])
        lines.append(line)
    return found


def graph(lines: list[str]) -> list[Block]:
    """The control-flow graph, blocks in the order of their addresses."""
    blocks, labels, jumps = [Block()], {}, []  # a jump: (block, labels it may go to)
    open_block = True  # control may come from the block before
    for line in lines:
        label = _LABEL.match(line)
        if label:
            if blocks[-1].instructions or not open_block:
                _begin(blocks, open_block)
            labels[label.group(1)], open_block = len(blocks) - 1, True
            continue
        found = _INSTRUCTION.match(line)
        if not found or found.group(3) == "NOP":
            continue
        if not open_block:
            _begin(blocks, False)
            open_block = True
        _, guard, opcode, modifiers, operands = found.groups()
        _count(blocks[-1], opcode, modifiers)
        # The assembler also leaves loops by guarded calls that never return.
        if opcode in ("BRA", "BRX", "BRXU", "JMP") or (opcode == "CALL" and guard):
            jumps.append((len(blocks) - 1, _TARGET.findall(line)))
            # A branch may be guarded by a predicate in front, or by one among its operands.
            _begin(blocks, bool(guard or re.search(r"(^|[ ,!~])U?P\w+|URZ", operands.split("`")[0])))
        elif opcode in ("EXIT", "RET") and guard is None:
            open_block = False
    for block, targets in jumps:
        blocks[block].next += [labels[target] for target in targets if target in labels]
    return blocks


def _begin(blocks: list[Block], reached: bool) -> None:
    if reached:
        blocks[-1].next.append(len(blocks))
    blocks.append(Block())


def _count(block: Block, opcode: str, modifiers: str) -> None:
    unit = _UNIT.get(opcode, "other")
    block.instructions += 1
    block.units["all"] += 1
    block.units[unit] += 1
    width = next((int(bits) // 8 for bits in re.findall(r"\.U?(\d+)", modifiers) if bits in ("64", "128")), 4)
    if unit in ("shared", "global"):
        block.units[f"{unit}_bytes"] += width
    if opcode in ("STG", "ST"):
        block.units["global_store"] += 1


def cheapest(blocks: list[Block], start: int, goal: int, without: int | None = None) -> list[int] | None:
    """Blocks of the cheapest path with at least one edge, `start` included and `goal` not, that avoids block `without`.

    None where there is no such path.
    """
    queue = [(blocks[start].instructions, start, (start,))]
    done = {without}
    while queue:
        cost, block, path = heapq.heappop(queue)
        for following in blocks[block].next:
            if following == goal:
                return list(path)
            if following not in done:
                done.add(following)
                heapq.heappush(queue, (cost + blocks[following].instructions, following, (*path, following)))
    return None


def main_loop(blocks: list[Block]) -> tuple[int, int] | None:
    """(first, last block) of the longest loop: between the target of a backward branch and the branch.

    An endless loop of one block, which the assembler puts behind every kernel, is none.
    """
    loops = [(target, number) for number, block in enumerate(blocks) for target in block.next if target <= number]
    loops = [loop for loop in loops if sum(b.instructions for b in blocks[loop[0] : loop[1] + 1]) > 2]
    return max(loops, key=lambda loop: sum(b.instructions for b in blocks[loop[0] : loop[1] + 1]), default=None)


def loop_mix(lines: list[str], inner_trips: int = 1) -> dict[str, dict[str, int]]:
    """{"common": …, rare branch: what it adds, …} for the main loop of a kernel, {} where there is none.

    Args:
        inner_trips: how often a loop inside of the main loop runs.
    """
    blocks = graph(lines)
    loop = main_loop(blocks)
    path = cheapest(blocks, loop[0], loop[0]) if loop else None
    if path is None:
        return {}
    common = Mix()
    for number in path:
        common.add(blocks[number])
    if inner_trips > 1:
        rounds = [cheapest(blocks, number, number, without=loop[0]) for number in path[1:]]
        for body in {tuple(sorted(body)) for body in rounds if body}:
            for number in body:
                common.add(blocks[number], inner_trips - 1)
    found = {"common": common.record()}
    for name, mark in RARE.items():
        extra = _beyond(blocks, loop, path, mark)
        if extra:
            found[name] = extra
    return found


def _beyond(blocks: list[Block], loop: tuple[int, int], path: list[int], mark: str) -> dict[str, int] | None:
    """What the cheapest way through all blocks of the loop with `mark`, in order, has beyond the common way."""
    marked = [n for n in range(loop[0], loop[1] + 1) if n not in path and blocks[n].units[mark]]
    here, way = loop[0], set()
    for goal in marked:
        step = cheapest(blocks, here, goal, without=loop[0])
        if step is not None:  # else the way to it excludes one that was passed
            way.update(step)
            here = goal
    if here == loop[0]:
        return None
    way.update(cheapest(blocks, here, loop[0]) or ())
    extra = Mix()
    for number in way - set(path):
        extra.add(blocks[number])
    return extra.record()
