"""A kernel's machine code, as NVIDIA's cuobjdump prints it: what it uses, what it executes."""

import re
from collections import Counter
from dataclasses import dataclass

_USAGE = re.compile(r'REG:(\d+) STACK:(\d+) SHARED:(\d+)')
# '/*0a50*/   @!P0 BRA 0x15a0 ;'; the second group is the guard: whether it runs.
_INSTRUCTION = re.compile(r'/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);')
# Of the tensor cores: of a warp, of a warp group, of a thread block.
_TENSOR_CORES = re.compile(r'(HMMA|IMMA|HGMMA|UTCHMMA|UTCQMMA)\b')
# m, n and k of a product are in the name: HMMA.16816 (m 16, n 8, k 16), HGMMA.64x32x16.
_SHAPES = {'HMMA.16816': (16, 8, 16), 'HMMA.1688': (16, 8, 8)}
_WARPS_OF_A_GROUP = 4


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address in bytes, its guard (or ''), its name and its operands."""

    address: int
    guard: str
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r'0x([0-9a-f]+)', self.operands)
        return int(found[1], 16) if self.name.startswith('BRA') and found else None

    @property
    def conditional(self) -> bool:
        """Whether it may be skipped: it has a guard, or a predicate among its operands."""
        return bool(self.guard) or bool(re.search(r'\bU?P\d', self.operands))

    @property
    def ends_block(self) -> bool:
        """Whether the next instruction is not always what follows."""
        return self.name.partition('.')[0] in ('BRA', 'EXIT', 'RET')

    @property
    def tensor_core(self) -> str | None:
        """'HMMA', 'HGMMA' or the like, or None."""
        found = _TENSOR_CORES.match(self.name)
        return found and found[1]

    @property
    def flops(self) -> int | None:
        """Floating-point operations per warp of a product, or None if the name has no shape."""
        if self.tensor_core == 'HGMMA':
            m, n, k = map(int, self.name.split('.')[1].split('x'))
            return 2 * m * n * k // _WARPS_OF_A_GROUP
        shape = next((s for name, s in _SHAPES.items() if self.name.startswith(name)), None)
        return shape and 2 * shape[0] * shape[1] * shape[2]


def parse_usage(text: str) -> tuple[int, int]:
    """Registers per thread, and bytes per thread on its stack, of `cuobjdump -res-usage`.

    Raises:
        ValueError: If the text has no such line.
    """
    found = _USAGE.search(text)
    if found is None:
        raise ValueError(f'cuobjdump printed no resource usage: {text[:200]!r}')
    return int(found[1]), int(found[2])


def parse_instructions(text: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`, in order."""
    return [Instruction(int(a, 16), *rest) for a, *rest in _INSTRUCTION.findall(text)]


def spilled(code: list[Instruction]) -> int:
    """Loads and stores of the stack: registers that did not suffice."""
    return sum(each.name.partition('.')[0] in ('LDL', 'STL') for each in code)


def tensor_core_instructions(code: list[Instruction]) -> dict[str, int]:
    """How many there are of each kind."""
    return dict(Counter(each.tensor_core for each in code if each.tensor_core))


@dataclass(frozen=True)
class Loop:
    """The body of a loop: what a warp executes in an iteration.

    Attributes:
        instructions: All of them.
        always: Those that every iteration executes: without the mask, which windows at an edge
            need, and without repeated waiting.
        flops: Floating-point operations per warp on the tensor cores, None if not known.
    """

    instructions: int
    always: int
    flops: int | None

    @classmethod
    def of(cls, blocks: list[list[Instruction]], always: list[list[Instruction]]) -> 'Loop':
        flops = [each.flops for block in blocks for each in block if each.tensor_core]
        counts = (sum(map(len, part)) for part in (blocks, always))
        return cls(*counts, None if None in flops else sum(flops))


def main_loops(code: list[Instruction]) -> list[Loop]:
    """The innermost loops that compute on tensor cores, in order; the whole kernel if none does."""
    blocks = _basic_blocks(code)
    successors = _successors(blocks)
    dominators = _dominators(successors)
    loops: dict[int, set[int]] = {}
    latches: dict[int, set[int]] = {}
    for block, nexts in enumerate(successors):
        for head in nexts & dominators[block]:  # A natural loop: an edge back to a dominator.
            loops.setdefault(head, {head}).update(_reaching(block, head, successors))
            latches.setdefault(head, set()).add(block)
    computing = [
        head for head, body in loops.items() if any(i.tensor_core for b in body for i in blocks[b])
    ]
    found = []
    for head in sorted(computing):
        body = loops[head]
        if not any(other in body for other in computing if other != head):
            always = body.intersection(*(dominators[latch] for latch in latches[head]))
            found.append(Loop.of([blocks[b] for b in body], [blocks[b] for b in always]))
    return found or [Loop.of([code], [code])]


def _basic_blocks(code: list[Instruction]) -> list[list[Instruction]]:
    """The code, cut after each jump and before each target of one."""
    targets = {each.target for each in code}
    blocks: list[list[Instruction]] = [[]]
    for each in code:
        if blocks[-1] and (each.address in targets or blocks[-1][-1].ends_block):
            blocks.append([])
        blocks[-1].append(each)
    return blocks


def _successors(blocks: list[list[Instruction]]) -> list[set[int]]:
    """For each block, those that may come next."""
    at = {block[0].address: index for index, block in enumerate(blocks)}
    found = []
    for index, block in enumerate(blocks):
        last = block[-1]
        nexts = {at[last.target]} if last.target in at else set()
        if not last.ends_block or last.conditional:
            nexts |= {index + 1} & set(range(len(blocks)))
        found.append(nexts)
    return found


def _dominators(successors: list[set[int]]) -> list[set[int]]:
    """For each block, those through which every way to it leads, and itself.

    A block that no way leads to, as the padding at the end, has none.
    """
    before: list[set[int]] = [set() for _ in successors]
    for block, nexts in enumerate(successors):
        for each in nexts:
            before[each].add(block)
    found: list[set[int] | None] = [{0}] + [None] * (len(successors) - 1)
    changed = True
    while changed:
        changed = False
        for block in range(1, len(successors)):
            ways = [found[each] for each in before[block] if found[each] is not None]
            new = set.intersection(*ways) | {block} if ways else None
            changed |= new != found[block]
            found[block] = new
    return [each or set() for each in found]


def _reaching(latch: int, head: int, successors: list[set[int]]) -> set[int]:
    """The blocks from which `latch` is reached without passing `head`, and itself."""
    found, added = {latch}, {latch} - {head}
    while added:
        added = {b for b, nexts in enumerate(successors) if nexts & added} - found - {head}
        found |= added
    return found
