"""The exception tree. Every failure that a user can cause or meet is one of these.

    LlmzipError                 anything llmzip refuses, always one clear line
    ├── CorruptArchive          the bytes are not what was written
    │   └── TruncatedArchive    the bytes end too early
    ├── TooLong                 the archive holds more than the caller allows
    ├── UnsupportedArchive      written by a newer version, or with an unknown profile
    ├── WrongModel              the archive needs a model that was not given or not found
    │   └── UnsupportedModel    the model has no exact form, or its files are unsafe
    ├── WrongEnvironment        the archive decodes in the environment alone that it was made in
    └── InexactDevice           this machine's arithmetic deviates from IEEE-754

PaddingWarning, a UserWarning, tells of zero bytes after the end of an archive.

Knows nothing of anything else.
"""


class LlmzipError(Exception):
    """Base of all errors that llmzip raises on purpose."""


class CorruptArchive(LlmzipError):
    """The archive's bytes are damaged, or it is not an archive."""


class TruncatedArchive(CorruptArchive):
    """The archive ends before its last frame does."""


class TooLong(LlmzipError):
    """The archive's content is longer than the caller's max_length."""


class UnsupportedArchive(LlmzipError):
    """The archive uses a format version, a profile or a flag this version does not know."""


class WrongModel(LlmzipError):
    """The archive was made with another model than the one at hand."""


class UnsupportedModel(WrongModel):
    """The model's files are unsafe, incomplete, or of an architecture without exact form."""


class WrongEnvironment(LlmzipError):
    """A same-environment archive was made with other hardware, libraries or settings."""


class InexactDevice(LlmzipError):
    """The device's arithmetic differs from the reference; nothing may be coded with it."""


class PaddingWarning(UserWarning):
    """Zero bytes follow an archive's end, as tapes and block devices leave them."""
