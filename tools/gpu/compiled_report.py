"""The document of `make gpu-compile`: what compiled kernels use, and the times that follow."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable

from tools.benchmarking.cases import Case
from tools.gpu.roofline import GPUS, Gpu, KernelCost, Stage, blocks, bound, ideal
from tools.utils.table import format_number, markdown_table

# Spills are a failure here; on the other architectures they are listed.
CHECKED_CAPABILITY = 90
# Bytes through memory per token and channel in half precision: each map read or written is 2.
_CHANNEL_BYTES = {
    'forward': 8,  # q, k, v; out
    'backward_whole': 14,  # the same, gradient of out; of q, k and v
    'backward_queries': 10,  # q, k, v, gradient of out; of q
    'backward_keys': 12,  # those four; gradients of k and v
    'backward_bias': 8,
}
# Of the attention alone, with each map read and written once: products N x N x d, bytes.
_IDEAL = {'forward': (2, 8), 'backward': (5, 14)}
_CASES = [Case('train', side, side, window, 8, 'bf16') for side, window in
          ((512, 8), (512, 16), (1024, 16))]  # fmt: skip
_BF16 = {'*fp16': '*bf16'}
_HEAD = ('kernel', 'for', 'constants', 'warps', 'stages', 'registers', 'spills', 'shared bytes',
         'tensor cores', 'products', 'instructions per logit')  # fmt: skip


def failures(entries: Iterable[dict]) -> list[str]:
    """What makes the command fail, one line each: kernels that do not compile, spills on sm_90."""
    found = []
    for each in entries:
        where = f'{each["kernel"]} ({_short(each["uses"])}), sm_{each["capability"]}'
        where += f', triton {each["triton"]}'
        if 'error' in each:
            found.append(f'{where}: {each["error"]}')
        elif each['capability'] == CHECKED_CAPABILITY and each['spills']:
            found.append(f'{where}: {each["spills"]} loads and stores of spilled registers')
    return found


def tile_of(constants: dict) -> tuple[int, int] | None:
    """Queries and keys of a tile of a kernel of the attention; None for other kernels."""
    if 'SIDE' in constants:  # The whole window.
        return constants['SIDE'], constants['SIDE']
    return (constants['QUERIES'], constants['KEYS']) if 'QUERIES' in constants else None


def count_products(entries: list[dict]) -> None:
    """Write into the kernels of the attention how many products of matrices a tile takes.

    It is what the tensor cores do in the loop, over the operations of one product. Where the
    instructions do not say what they do (UTCHMMA of sm_100), it is taken from sm_90.
    """
    known: dict[tuple, float] = {}
    for each in sorted(entries, key=lambda entry: entry['capability']):
        constants = each['constants']
        tile = tile_of(constants)
        if 'error' in each or tile is None:
            continue
        key = each['kernel'], tuple(constants.items()), tuple(each['types'])
        flops = [loop['flops'] for loop in each['loops']]
        if None not in flops:
            one = 2 * tile[0] * tile[1] * constants['D']
            known[key] = sum(flops) * each['options']['num_warps'] / one
        each['products'] = known.get(key)


def cost(entry: dict) -> KernelCost | None:
    """What a compiled kernel of the attention does per tile; None for other kernels."""
    tile, name = tile_of(entry['constants']), entry['kernel'].rpartition('.')[2]
    if tile is None or 'error' in entry or name not in _CHANNEL_BYTES:
        return None
    instructions = sum(loop['always'] for loop in entry['loops'])
    warps = entry['options']['num_warps']
    return KernelCost(tile, instructions, warps, entry['products'], _CHANNEL_BYTES[name])


def _per_logit(entry: dict) -> str:
    """Instructions of a thread per logit, inside and at an edge of the map."""
    found = cost(entry)
    if found is None:
        return '-'
    ratio = sum(loop['instructions'] for loop in entry['loops']) / found.instructions
    inside = found.instructions_per_logit
    return f'{inside:.1f} ({inside * ratio:.1f})'


def _cells(entry: dict) -> tuple[str, ...]:
    """What depends on the version of Triton."""
    if 'error' in entry:
        return (entry['error'], *'-----')
    found = cost(entry)
    cores = ', '.join(f'{count} {name}' for name, count in entry['tensor_cores'].items())
    numbers = (str(entry[key]) for key in ('registers', 'spills', 'shared'))
    return (
        *numbers,
        cores or '-',
        format_number(found and found.products, '.3g'),
        _per_logit(entry),
    )


def rows(entries: list[dict], capability: int) -> list[tuple[str, ...]]:
    """The table of an architecture, its head first; 'a / b' where versions of Triton differ.

    Kernels in fp16 are listed where they differ from bf16.
    """
    by_kernel: dict[tuple, dict[str, dict]] = {}
    for each in entries:
        if each['capability'] == capability:
            constants = tuple(each['constants'].items())
            options = tuple(each['options'].values())
            key = each['kernel'], constants, options, tuple(each['types'])
            by_kernel.setdefault(key, {})[each['triton']] = each
    cells = {
        key: [_join(column) for column in zip(*map(_cells, found.values()), strict=True)]
        for key, found in by_kernel.items()
    }
    table = [_HEAD]
    for key, numbers in sorted(cells.items(), key=lambda item: item[0][0]):
        kernel, constants, (warps, stages), types = key
        same = kernel, constants, (warps, stages), tuple(_BF16.get(each, each) for each in types)
        # (A few instructions more or less are no difference.)
        if same != key and same in cells and cells[same][:-1] == numbers[:-1]:
            continue
        uses = next(iter(by_kernel[key].values()))['uses']
        values = ' '.join(f'{name}={int(value)}' for name, value in constants)
        table.append((kernel, _short(uses), values, str(warps), str(stages), *numbers))
    return table


def _join(values: tuple[str, ...]) -> str:
    return values[0] if len(set(values)) == 1 else ' / '.join(values)


def _short(uses: list[str]) -> str:
    """'window 7, d 32, bf16' and 'window 8, d 32, bf16' as 'window 7 8, d 32, bf16'."""
    columns = zip(*(use.split(', ') for use in uses), strict=True)
    words = []
    for column in columns:
        name = column[0].rpartition(' ')[0]
        values = dict.fromkeys(each.removeprefix(name).strip() for each in column)
        words.append(f'{name} {" ".join(values)}'.strip())
    return ', '.join(words)


def _kernels(entries: list[dict], gpu: Gpu, stage: Stage, window: int, part: str) -> list:
    """The costs of the kernels that one attention launches, forward or backward."""
    use = f'window {window}, d {stage.width}, bf16'
    found = [
        cost(each)
        for each in entries
        if each['capability'] == gpu.capability
        and use in each['uses']
        and each['kernel'].rpartition('.')[2].startswith(part)
    ]
    return [each for each in found if each is not None]


def roofline_rows(entries: list[dict]) -> list[tuple[str, ...]]:
    """Bounds of the attention of all blocks, in milliseconds, its head first."""
    table = [('', 'GPU', 'pass', 'ideal ms', 'these kernels ms', 'limited by')]
    for case in _CASES:
        for gpu in GPUS:
            for part in _IDEAL:
                numbers = _bounds(entries, gpu, case, part)
                name = f'{case.height}, window {case.window}, batch {case.batch}'
                table.append((name, gpu.name, part, *numbers))
    return table


def _bounds(entries: list[dict], gpu: Gpu, case: Case, part: str) -> tuple[str, str, str]:
    """Milliseconds in the ideal, milliseconds of the compiled kernels, and their limits."""
    least, total, limits = 0.0, 0.0, {}
    for stage in blocks(case):
        least += 1e3 * ideal(gpu, stage, *_IDEAL[part])
        costs = _kernels(entries, gpu, stage, case.window, part)
        if not costs or any(each.products is None for each in costs):
            total = None
        if total is not None:
            seconds, limit = bound(costs, gpu, stage)
            total += 1e3 * seconds
            limits[limit] = None
    names = ', '.join(limits) if total is not None else '-'
    return f'{least:.2f}', format_number(total, '.2f'), names


_NOTES = """
Made by `make gpu-compile`: every launch of the package at windows 7, 8, 12, 16 and 24 and head
widths 16, 32 and 64 is recorded, compiled by each version of Triton, and read back with its
cuobjdump. Nothing here was timed, and no GPU was there.

- spills: instructions that load or store a register's value on the stack; none may be on sm_90.
- shared bytes: of shared memory per program.
- tensor cores: instructions in the whole kernel (HMMA: of a warp; HGMMA: of four; UTCHMMA: of a
  program).
- products: of matrices, queries x keys x d, that a tile of logits takes on the tensor cores, read
  from the loop's instructions (on sm_100 taken from sm_90). Where they are more than the kernel
  has, the tile is too small for its warps, and they repeat each other's work.
- instructions per logit: of a thread, in the innermost loop with products, over the logits of a
  tile; in brackets with those that only windows at an edge of the map execute.
- 'a / b': TRITONS. Kernels in fp16 are listed where they differ from bf16.
"""
_ROOFLINE_NOTES = """
Forward and backward of the attention of all 12 blocks of SwinV2-T, bf16, without linear layers and
norms. A kernel takes at least as long as its products on the tensor cores, its bytes through
memory, or the issue of the instructions of its loop (inside of the map), whichever is the slowest;
a bound is the sum over kernels. 'Ideal' has the 2 (5) products of a forward (backward), no padding
of tiles, and each map once through memory. The sums of partial gradients, and the time of a launch,
are left out.
"""


def document(entries: list[dict], versions: list[str], torch_version: str) -> str:
    """The whole document in Markdown."""
    count_products(entries)
    newest = [each for each in entries if each['triton'] == versions[-1]]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    tritons = ' / '.join(f'triton {version}' for version in versions)
    lines = [
        '# Kernels compiled for GPUs that are not there',
        '',
        f'{date}, Python {platform.python_version()}, torch {torch_version}, {tritons}.',
        _NOTES.replace('TRITONS', tritons),
    ]
    for capability in sorted({each['capability'] for each in entries}):
        lines += [f'## sm_{capability}', '', markdown_table(rows(entries, capability)), '']
    lines += ['## Times that follow', _ROOFLINE_NOTES]
    lines += [f'- {gpu.name} (sm_{gpu.capability}): {gpu.flops / 1e12:.0f} TFLOP/s, '
              f'{gpu.bandwidth / 1e12:.2f} TB/s, {gpu.issue / 1e9:.0f} G warp instructions/s '
              f'({gpu.source})' for gpu in GPUS]  # fmt: skip
    return '\n'.join([*lines, '', markdown_table(roofline_rows(newest)), ''])
