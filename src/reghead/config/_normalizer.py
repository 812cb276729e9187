"""On what scale the head learns the target."""

import dataclasses
from typing import Literal, TypeAlias

from reghead._checks import check_choice, check_columns
from reghead.config._base import Config, OptionError
from reghead.config._head import check_bounds

Method: TypeAlias = Literal["moments", "mixed_effects"]
Shrinkage: TypeAlias = Literal["none", "empirical_bayes"]
Fallback: TypeAlias = Literal["global", "additive"]
Transform: TypeAlias = Literal["identity", "log", "log1p", "logit", "softplus", "clamp"]

METHODS = ("moments", "mixed_effects")
SHRINKAGES = ("none", "empirical_bayes")
FALLBACKS = ("global", "additive")
TRANSFORMS = ("identity", "log", "log1p", "logit", "softplus", "clamp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizerConfig(Config):
    """How the target is standardised: a transform, then a mean and a standard deviation per category.

    Args:
        method: ``"moments"`` are those of the rows of a category. ``"mixed_effects"`` is a linear mixed model of the
            features and of all categorical columns, of which the head learns the residual.
        by: Categorical columns whose combinations have statistics of their own; none is one global mean and
            standard deviation. In a mixed model they have an effect beside those of the columns.
        shrinkage: ``"empirical_bayes"`` pulls the statistics of small categories toward the others'.
        fallback: What a combination without training rows takes: the ``"global"`` statistics, or the sum of its
            columns' main effects (``"additive"``).
        transform: Applied to the target before it is standardised, and undone in the prediction.
        bounds: What the targets of ``"logit"`` lie strictly between; (0, 1) if left out.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is not one of its choices, or two options do not go together.

    Example:
        >>> NormalizerConfig(by=["location", "season"], fallback="additive").by
        ('location', 'season')
    """

    method: Method = "moments"
    by: tuple[str, ...] = ()
    shrinkage: Shrinkage = "none"
    fallback: Fallback = "global"
    transform: Transform = "identity"
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._set("by", check_columns("by", self.by))
        check_choice("method", self.method, METHODS)
        check_choice("shrinkage", self.shrinkage, SHRINKAGES)
        check_choice("fallback", self.fallback, FALLBACKS)
        check_choice("transform", self.transform, TRANSFORMS)
        for name, choice, default in (("shrinkage", self.shrinkage, "none"), ("fallback", self.fallback, "global")):
            if choice != default and self.method != "moments":
                raise OptionError(
                    f"{{{name}}} {choice} is for {{method}} moments; a mixed model shrinks and adds up by itself: "
                    f"leave {{{name}}} out"
                )
            if choice != default and not self.by:
                raise OptionError(
                    f"{{{name}}} {choice} acts on statistics per category and needs {{by}}; "
                    f"name its columns, or leave {{{name}}} out"
                )
        if self.bounds is not None:
            self._set("bounds", check_bounds("bounds", self.bounds))
            if self.transform != "logit":
                raise OptionError(
                    f"{{bounds}} are for {{transform}} logit, got {{transform}} {self.transform}; "
                    "choose logit, or leave {bounds} out"
                )
        elif self.transform == "logit":
            self._set("bounds", (0.0, 1.0))
