"""The one exception family that the person at the terminal caused and can mend."""


class InputError(ValueError):
    """Something given (option, file, table, image) cannot be used; the message says what to do."""


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written down: Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
