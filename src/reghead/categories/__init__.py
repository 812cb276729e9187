"""Labels to ids, and mergeable statistics of groups."""

from reghead.categories._encoder import CategoryEncoder
from reghead.categories._labels import Label
from reghead.categories._statistics import GroupStatistics
from reghead.categories._vocabulary import Vocabulary

__all__ = ["CategoryEncoder", "GroupStatistics", "Label", "Vocabulary"]
