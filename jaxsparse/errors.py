"""The error for unusable data."""


class DataError(ValueError):
    """A dataset cannot be used as it is. The message is one line that says what to change.

    Examples:
        >>> raise DataError("glyphs: split must be 'train' or 'test', got 'dev'")
        Traceback (most recent call last):
        ...
        jaxsparse.errors.DataError: glyphs: split must be 'train' or 'test', got 'dev'
    """
