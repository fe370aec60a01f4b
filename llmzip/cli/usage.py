"""What is wrong with how the program was called."""


class UsageError(Exception):
    """Options that do not fit together, or names that they do not fit to."""
