"""The error of this package, and how its messages list keys."""

from collections.abc import Iterable

_LISTED_KEYS = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cause."""


def list_keys(keys: Iterable) -> str:
    """Up to ten keys for a message, and how many there are if there are more."""
    names = [str(key) for key in keys]
    more = f', ... ({len(names)} in all)' if len(names) > _LISTED_KEYS else ''
    return ', '.join(names[:_LISTED_KEYS]) + more if names else 'no keys'
