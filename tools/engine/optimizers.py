"""AdamW in other implementations: less time, or less memory."""

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from tools.utils.errors import UserError

KINDS = ('fused', '8bit')


def use_adamw(cfg: Config, kind: str) -> None:
    """Make a training use another implementation of AdamW.

    Args:
        kind: 'fused': torch's, which updates all weights in one kernel; the same numbers up to
            rounding. '8bit': that of bitsandbytes, whose two moments take a byte each per weight
            instead of four; mmengine registers it where the library is installed.

    Raises:
        UserError: If the config has another optimizer, or the library is missing.
    """
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    if optimizer.get('type') != 'AdamW':
        raise UserError(
            f'--optimizer {kind}: optim_wrapper.optimizer.type is {optimizer.get("type")!r}, '
            "allowed: 'AdamW'"
        )
    if kind == 'fused':
        optimizer.fused = True
        return
    if OPTIMIZERS.get('AdamW8bit') is None:
        raise UserError('--optimizer 8bit: needs bitsandbytes: pip install bitsandbytes')
    optimizer.type = 'AdamW8bit'
    for key in ('fused', 'foreach', 'capturable', 'differentiable'):  # torch's alone
        optimizer.pop(key, None)
