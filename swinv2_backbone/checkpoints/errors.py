"""What loading can end in."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cause."""
