"""What is wrong with data, said in one line."""


class DataError(ValueError):
    """A data set that cannot be used as it is; the message is one line a user can act on.

    Example:
        >>> raise DataError("glyphs: split must be 'train' or 'test', got 'dev'")
        Traceback (most recent call last):
        ...
        jaxsparse.errors.DataError: glyphs: split must be 'train' or 'test', got 'dev'
    """
