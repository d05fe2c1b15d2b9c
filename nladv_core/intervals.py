"""From numbers to an estimate with its interval, by the design they come from.

Numbers that share a parent are paired (`mean` of their differences). Two groups that share nothing are compared after
Welch (`apart`). Where every unit of repetition has several treatments, as one network has several start epochs, it is a
block: the residuals of all treatments are pooled (`contrast`), which leaves (k - 1)(n - 1) degrees of freedom instead
of n - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nladv_core.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, or a difference of means, and how sure it is.

    Attributes:
        mean: in the unit of the numbers.
        error: its standard error; infinite for a single number.
        freedom: degrees of freedom of the error; 0 for a single number.
        n: independent repetitions; of two groups, the smaller count.
    """

    mean: float
    error: float
    freedom: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided t-interval that holds the true mean with probability `level`; infinite for one repetition.

        Raises:
            RecordError: `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise RecordError(f"level is {level:g}, expected above 0 and below 1, such as 0.95")
        if self.error == 0:
            return self.mean, self.mean
        half = quantile((1 + level) / 2, self.freedom) * self.error if self.freedom > 0 else math.inf
        return self.mean - half, self.mean + half


def quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t with `freedom` > 0 degrees of freedom, not necessarily whole."""
    from scipy.stats import t

    return float(t.ppf(share, freedom))


def mean(numbers: Sequence[float]) -> Estimate:
    """The mean of independent numbers, one a unit of repetition; paired differences are such numbers.

    Raises:
        RecordError: no number.
    """
    found = np.asarray(numbers, dtype=float)
    n = int(found.size)
    if n == 0:
        raise RecordError("found no number to take the mean of; compute the missing runs with `nladv run`")
    error = math.inf if n == 1 else float(found.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean=float(found.mean()), error=error, freedom=n - 1, n=n)


def apart(first: Estimate, second: Estimate) -> Estimate:
    """`first` minus `second`, which share nothing: errors add in squares, freedom after Welch and Satterthwaite."""
    a, b = first.error**2, second.error**2
    n, difference = min(first.n, second.n), first.mean - second.mean
    if not math.isfinite(a + b):
        return Estimate(mean=difference, error=math.inf, freedom=0, n=n)
    if a + b == 0:
        return Estimate(mean=difference, error=0.0, freedom=first.freedom + second.freedom, n=n)
    parts = [part**2 / of.freedom for part, of in ((a, first), (b, second)) if part > 0]
    return Estimate(mean=difference, error=math.sqrt(a + b), freedom=(a + b) ** 2 / sum(parts), n=n)


def contrast(blocks: Mapping[Any, Mapping[Any, float]], weights: Mapping[Any, float]) -> Estimate:
    """A contrast of treatments in a complete block design, residuals pooled over all treatments.

    The model is additive: number = block + treatment + residual, residuals of equal spread. With two treatments it is
    the paired t-interval.

    Args:
        blocks: unit of repetition -> treatment -> number; every block has the same treatments.
        weights: treatment -> its weight in the contrast; they sum to 0.

    Raises:
        RecordError: no block, blocks that differ in their treatments, or weights of others or with another sum.
    """
    treatments = list(next(iter(blocks.values()), {}))
    if not treatments or any(set(row) != set(treatments) for row in blocks.values()):
        raise RecordError("blocks differ in their treatments or there are none; pass only complete ones")
    if not set(weights) <= set(treatments) or abs(sum(weights.values())) > 1e-12:
        raise RecordError(f"weights are {dict(weights)}, expected some of the treatments {treatments} with the sum 0")
    table = np.array([[row[treatment] for treatment in treatments] for row in blocks.values()], dtype=float)
    n, k = table.shape
    factors = np.array([weights.get(treatment, 0.0) for treatment in treatments])
    means = table.mean(axis=0)
    freedom = (k - 1) * (n - 1)
    if freedom == 0:
        return Estimate(mean=float(factors @ means), error=math.inf, freedom=0, n=n)
    rest = table - table.mean(axis=1, keepdims=True) - means + table.mean()
    spread = float((rest**2).sum()) / freedom
    error = math.sqrt(spread * float((factors**2).sum()) / n)
    return Estimate(mean=float(factors @ means), error=error, freedom=freedom, n=n)


def by_chance(count: int, each: float = 0.025) -> tuple[float, float]:
    """Of `count` directions in which nothing is the case: how many would be found all the same.

    Nothing is corrected for their number; this says what that means. A 95 % interval lies wholly on the claim's side of
    zero by chance with probability 0.025.

    Returns:
        How many in the mean, and the probability that it is at least one, were they independent.

    Raises:
        RecordError: a negative count, or `each` not in [0, 1].
    """
    if count < 0 or not 0 <= each <= 1:
        raise RecordError(f"count is {count} and each {each:g}, expected at least 0 and a probability")
    return count * each, 1 - (1 - each) ** count
