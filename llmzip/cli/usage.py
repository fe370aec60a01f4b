"""The exception for wrong usage."""


class UsageError(Exception):
    """Options contradict each other or the names that were given."""
