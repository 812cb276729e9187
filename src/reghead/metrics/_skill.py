"""How much better a score is than that of a baseline."""

from torch import Tensor

from reghead._checks import check_shape


def skill(score: Tensor, baseline: Tensor) -> Tensor:
    r"""Skill score: the part of a baseline's score that predictions do away with.

    .. math:: 1 - S / S_\text{baseline}

    1 is perfect, 0 no better than the baseline, below 0 worse. Murphy, "Skill Scores Based on the Mean Square Error and
    Their Relationships to the Correlation Coefficient", 1988, for scores that are 0 at best, such as
    :func:`rmse`, :func:`mae`, the pinball loss and the interval score. Say which baseline: the mean of the training
    target (for the RMSE), its mean in each category, its quantiles (for the pinball loss and the interval score).
    The mean of the rows that are scored is no baseline: nobody knew it.

    Args:
        score: Scores, 0 at best.
        baseline: The same score of the baseline's predictions for the same rows. Shape of ``score``.

    Returns:
        Skill in the shape of ``score``; NaN where both scores are 0, -inf where only the baseline's is.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> from reghead.metrics import rmse
        >>> training, target = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 5.0])
        >>> baseline = training.mean().expand_as(target)  # 3, off by 2
        >>> skill(rmse(torch.tensor([2.0, 4.0]), target), rmse(baseline, target))  # 1 - 1 / 2
        tensor(0.5000)
    """
    check_shape("baseline", baseline, score.shape, "of score")
    return 1.0 - score / baseline
