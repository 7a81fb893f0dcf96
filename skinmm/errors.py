"""The one exception family that the person at the terminal caused and can mend."""


class InputError(ValueError):
    """Something given (option, file, table, image) cannot be used; the message says what to do."""
