"""Warning categories, so that users can filter ours alone."""


class RegheadWarning(UserWarning):
    """Base class of every warning that reghead gives."""


class UnseenCategoryWarning(RegheadWarning):
    """A label, or a combination of labels, was not among the training rows and is treated as unknown."""


class RedundantOptionWarning(RegheadWarning):
    """Two options do the same work; the message says which one to keep."""
