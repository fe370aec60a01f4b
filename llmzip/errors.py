"""The exceptions that llmzip raises for what a user can cause. Their messages have one line.

LlmzipError
├── CorruptArchive
│   └── TruncatedArchive
├── TooLong
├── UnsupportedArchive
├── WrongModel
│   └── UnsupportedModel
├── WrongPrime
├── WrongEnvironment
└── InexactDevice
"""


class LlmzipError(Exception):
    """Base of all errors that llmzip raises on purpose."""

    def __str__(self) -> str:
        """One line, whatever a damaged file or another library's message put into it; the bytes of
        a file name that is no text are left to whoever prints it."""
        return "".join(
            c
            if c.isprintable() or "\ud800" <= c <= "\udfff"
            else c.encode("unicode_escape").decode()
            for c in super().__str__()
        )


class CorruptArchive(LlmzipError):
    """The bytes are damaged, or not an archive."""


class TruncatedArchive(CorruptArchive):
    """The archive ends too early."""


class TooLong(LlmzipError):
    """The content is longer than the caller's max_length."""


class UnsupportedArchive(LlmzipError):
    """The archive uses a format version, a profile or a flag that this llmzip cannot read."""


class WrongModel(LlmzipError):
    """The archive needs a model that was not given or not found."""


class UnsupportedModel(WrongModel):
    """The model has no exact form, or its files are unsafe or incomplete."""


class WrongPrime(LlmzipError):
    """The archive needs a prime that was not given, or another one."""


class WrongEnvironment(LlmzipError):
    """A same-environment archive was written with other hardware, libraries or settings."""


class InexactDevice(LlmzipError):
    """The device's arithmetic deviates from IEEE 754; it must not be used."""


class PaddingWarning(UserWarning):
    """Zero bytes follow the end of an archive, as tapes and block devices leave them."""
