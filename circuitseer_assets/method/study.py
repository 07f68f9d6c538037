"""Outcomes of many runs in, verdicts out: is one way to select data better than another?

A cell is one method with one seed, and the seed goes for both its selection and its training. All
cells answer the same problems. Seeds and problems are both samples of what might have been: an
interval that forgets either is too narrow. Three figures are given for every difference:

- a mixed model of the runs: method fixed, seeds and problems random and crossed. Verdicts go by it.
  The variance between runs is the pair's own: few degrees of freedom, and right however unlike
  methods vary. What else was run changes nothing.
- a bootstrap over seeds and problems at once: it draws anew the few seeds that there are, and is
  too narrow where most of the noise is between runs.
- the t-test of the seeds' differences, for the problems at hand: no model.

A pair of the methods that are named for it also has the mixed model with the variance between runs
pooled over them: more degrees of freedom, and wrong where methods vary unlike each other.

A verdict errs in about 5 % of studies without an effect, and in fewer with two or three seeds,
whose variance is too poorly known for more degrees of freedom than their own.

Reference: Satterthwaite 1946 (degrees of freedom); Owen 2007 (the two-way bootstrap); Holm 1979.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy  # its parts load when they are used, and Dagster imports this often
from numpy.typing import NDArray

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.method.ranking_statistics import holm_adjusted

LEVEL = 0.05
POWER = 0.8
# With fewer, Satterthwaite's degrees of freedom, themselves estimated from the seeds' variance, are
# taken too high: verdicts erred in up to 13 % of simulated studies with two seeds, 8 % with three.
_MIN_SEEDS_FOR_SATTERTHWAITE = 4
# Below it a variance is what rounding left: a difference of one answer in a million is above.
_NO_VARIANCE = 1e-20

Verdict = Literal["better", "worse", "undecided", "insensitive"]
"""What a comparison may say; `insensitive` where even the oracle is not told from random, or where
outcomes show no variance to judge a difference by."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Pass@1 of one method minus that of another, on the same seeds and problems.

    Attributes:
        method, against: the two methods.
        difference: of the means over seeds and problems.
        stderr, degrees_of_freedom: of the mixed model.
        ci_low, ci_high: its 95 % interval.
        bootstrap_low, bootstrap_high: the 95 % interval of the two-way bootstrap.
        paired_low, paired_high: the 95 % interval of the t-test of the seeds' differences.
        pooled_low, pooled_high: the 95 % interval of the mixed model with pooled variance, None for
            a pair that is not among the pooled methods.
        p_value: two-sided, of the mixed model.
        paired_p_value: two-sided, of that t-test.
        pooled_p_value: two-sided, with pooled variance.
        p_holm: adjusted over the primary hypotheses; None for an exploratory comparison.
        smallest_effect: the smallest difference that this comparison would have told from none with
            a power of 80 %; for a primary hypothesis at the level of Holm's first step.
    """

    method: str
    against: str
    difference: float
    stderr: float
    degrees_of_freedom: float
    ci_low: float
    ci_high: float
    bootstrap_low: float
    bootstrap_high: float
    paired_low: float
    paired_high: float
    p_value: float
    paired_p_value: float
    p_holm: float | None
    smallest_effect: float
    pooled_low: float | None = None
    pooled_high: float | None = None
    pooled_p_value: float | None = None

    @property
    def is_blind(self) -> bool:
        """Whether outcomes show no variance, as where every answer is wrong: no noise to go by."""
        return self.stderr == 0

    @property
    def is_primary(self) -> bool:
        """Whether the hypothesis was fixed beforehand."""
        return self.p_holm is not None

    @property
    def is_significant(self) -> bool:
        """Whether the mixed model tells the two apart: a primary pair by its adjusted p-value."""
        return (self.p_value if self.p_holm is None else self.p_holm) <= LEVEL

    @property
    def is_fragile(self) -> bool:
        """Whether the bootstrap or the t-test of the seeds says otherwise than the mixed model."""
        others = [(self.bootstrap_low, self.bootstrap_high)]
        if self.paired_low < self.paired_high:  # seeds that all differ alike say nothing of chance
            others.append((self.paired_low, self.paired_high))
        return any((low > 0 or high < 0) != self.is_significant for low, high in others)

    @property
    def is_seen(self) -> bool:
        """Whether the first method is told to be better: as a positive control has to be."""
        return not self.is_blind and self.ci_low > 0


def compare_methods(
    outcomes: Mapping[str, Floats],
    pairs: Sequence[tuple[str, str]],
    *,
    primary: Collection[tuple[str, str]] = (),
    pooled: Sequence[str] = (),
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Returns the comparison of every pair of methods, Holm-adjusted over the primary ones.

    Args:
        outcomes: by method the share of right answers, (seeds, problems), in the same order of
            seeds and problems for all.
        pairs: the methods to compare, each with what it is compared to.
        primary: the hypotheses fixed beforehand. One that is not among the pairs, since a method
            of it was not run, counts all the same: leaving it out buys the others nothing.
        pooled: the methods that the variance between runs is pooled over, as far as they were run,
            in the second interval that a pair of two of them has.
        num_bootstrap: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        EvaluationError: fewer than two seeds or problems, or methods with different ones.
    """
    _check_outcomes(outcomes)
    of_pooled = _pooled_run_variance([outcomes[name] for name in pooled if name in outcomes])
    found = []
    for method, against in pairs:
        difference = outcomes[method] - outcomes[against]  # (seeds, problems)
        is_primary = (method, against) in primary
        bootstrap = bootstrap_interval(difference, num_bootstrap=num_bootstrap, seed=seed)
        level = LEVEL / len(primary) if is_primary else LEVEL
        row = _compare(method, against, difference, bootstrap, level)
        both_pooled = method in pooled and against in pooled
        found.append(_with_pooled(row, difference, of_pooled) if both_pooled else row)
    return _adjust(found, primary)


def _compare(
    method: str, against: str, difference: Floats, bootstrap: tuple[float, float], level: float
) -> Comparison:
    mean = float(difference.mean())
    stderr, freedom = _standard_error(difference, _own_run_variance(difference))
    low, high = _interval(mean, stderr, freedom)
    seen = float(scipy.stats.t.ppf(1 - level / 2, freedom) + scipy.stats.t.ppf(POWER, freedom))
    of_seeds = difference.mean(1)
    num_seeds = len(of_seeds)
    paired_stderr = float(of_seeds.std(ddof=1)) / math.sqrt(num_seeds)
    paired_low, paired_high = _interval(mean, paired_stderr, num_seeds - 1)
    return Comparison(
        method=method,
        against=against,
        difference=mean,
        stderr=stderr,
        degrees_of_freedom=freedom,
        ci_low=low,
        ci_high=high,
        bootstrap_low=bootstrap[0],
        bootstrap_high=bootstrap[1],
        paired_low=paired_low,
        paired_high=paired_high,
        p_value=_two_sided(mean, stderr, freedom),
        paired_p_value=_two_sided(mean, paired_stderr, num_seeds - 1),
        p_holm=None,
        smallest_effect=seen * stderr,
    )


def _with_pooled(row: Comparison, difference: Floats, runs: "_RunVariance") -> Comparison:
    stderr, freedom = _standard_error(difference, runs)
    low, high = _interval(row.difference, stderr, freedom)
    p_value = _two_sided(row.difference, stderr, freedom)
    return replace(row, pooled_low=low, pooled_high=high, pooled_p_value=p_value)


def decide(comparison: Comparison, sensitivity: Comparison | None) -> Verdict:
    """Returns what may be said of a comparison, given that of the oracle with random selection.

    A primary hypothesis goes by its adjusted p-value, any other by its own, as an exploration.
    Without an oracle nothing tells what the study could have seen, and "undecided" says less.
    """
    if comparison.is_blind or (sensitivity is not None and not sensitivity.is_seen):
        return "insensitive"
    if not comparison.is_significant:
        return "undecided"
    return "better" if comparison.difference > 0 else "worse"


def bootstrap_interval(
    difference: Floats, *, num_bootstrap: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean, seeds and problems both drawn anew.

    Args:
        difference: (seeds, problems).
        num_bootstrap: draws.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    num_seeds, num_problems = difference.shape
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_bootstrap)
    problems = generator.multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), num_bootstrap
    )
    means = np.einsum("bs,sp,bp->b", seeds, difference, problems, optimize=True) / difference.size
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Returns the exact two-sided p-value that two checkpoints are equally good.

    It is about these two checkpoints and says nothing of the methods that made them.

    Args:
        one, other: whether each solved a problem, (problems,): more than half of its answers right.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if gained + lost == 0:
        return 1.0
    return float(scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue)


# the mixed model ----------------------------------------------------------------------------------


def _check_outcomes(outcomes: Mapping[str, Floats]) -> None:
    shapes = {method: values.shape for method, values in outcomes.items()}
    first = next(iter(shapes.values()), (0, 0))
    if len(set(shapes.values())) != 1 or len(first) != 2 or min(first) < 2:
        raise EvaluationError(
            f"every method must have the same two or more seeds and problems, got "
            f"{', '.join(f'{method} {shape}' for method, shape in shapes.items()) or 'none'}; "
            f"run the cells that are missing"
        )
    for method, values in outcomes.items():
        if not np.isfinite(values).all():
            seed, problem = np.argwhere(~np.isfinite(values))[0].tolist()
            raise EvaluationError(
                f"every outcome must be a number, got {values[seed, problem]} for {method}, seed "
                f"{seed}, problem {problem}: its training diverged, or its outcomes were edited; "
                f"lower training.learning_rate, or leave the method out of study.methods"
            )


@dataclass(frozen=True, slots=True)
class _RunVariance:
    """The variance, over seeds, of the difference of two runs' means, as it was estimated.

    The seed's own effect goes for all methods and leaves every difference; what is left of a run's
    mean is the run's: what its draw and its training happened to give, and its share of the rest.
    """

    of_difference: float
    degrees_of_freedom: float


def _pooled_run_variance(outcomes: Sequence[Floats]) -> _RunVariance:
    """Returns twice the mean square of the runs' means about their method and their seed.

    Twice, since a difference has the runs of two methods, which are taken to be independent of
    each other and to vary alike.
    """
    if len(outcomes) < 2:
        return _RunVariance(math.nan, 0.0)
    means = np.stack([values.mean(axis=1) for values in outcomes])  # (methods, seeds)
    freedom = (means.shape[0] - 1) * (means.shape[1] - 1)
    left = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    return _RunVariance(2 * float((left**2).sum() / freedom), float(freedom))


def _own_run_variance(difference: Floats) -> _RunVariance:
    """Returns the variance of this very difference, whose two methods may share what they drew."""
    of_seeds = difference.mean(axis=1)
    return _RunVariance(float(of_seeds.var(ddof=1)), len(of_seeds) - 1.0)


def _standard_error(difference: Floats, runs: _RunVariance) -> tuple[float, float]:
    """Returns the standard error of the difference's mean and its degrees of freedom.

    With D = mu + seed + problem + rest the variance of the mean is that of the seeds' means over
    their number, which holds the rest's share already, plus what problems add:
    (MS_problem - MS_rest) / (S P).
    """
    num_seeds, num_problems = difference.shape
    left = (
        difference
        - difference.mean(1, keepdims=True)
        - difference.mean(0, keepdims=True)
        + difference.mean()
    )
    problem_freedom = num_problems - 1
    rest_freedom = (num_seeds - 1) * problem_freedom
    of_problem = num_seeds * float(difference.mean(0).var(ddof=1))
    of_rest = float((left**2).sum()) / rest_freedom
    between_runs = runs.of_difference / num_seeds
    between_problems = max(0.0, of_problem - of_rest) / difference.size
    variance = between_runs + between_problems
    if variance <= _NO_VARIANCE:
        return 0.0, runs.degrees_of_freedom
    if num_seeds < _MIN_SEEDS_FOR_SATTERTHWAITE:
        return math.sqrt(variance), runs.degrees_of_freedom
    parts = [between_runs**2 / runs.degrees_of_freedom]
    if between_problems:
        parts.append((of_problem / difference.size) ** 2 / problem_freedom)
        parts.append((of_rest / difference.size) ** 2 / rest_freedom)
    # A difference of mean squares may leave fewer than any part has: then those of the runs.
    return math.sqrt(variance), max(variance**2 / sum(parts), runs.degrees_of_freedom)


def _interval(mean: float, stderr: float, freedom: float) -> tuple[float, float]:
    """Returns the 95 % interval of a mean."""
    reach = float(scipy.stats.t.ppf(1 - LEVEL / 2, freedom)) * stderr
    return mean - reach, mean + reach


def _two_sided(mean: float, stderr: float, freedom: float) -> float:
    if stderr <= math.sqrt(_NO_VARIANCE):
        return 1.0
    return 2 * float(scipy.stats.t.sf(abs(mean) / stderr, freedom))


def _adjust(found: Sequence[Comparison], primary: Collection[tuple[str, str]]) -> list[Comparison]:
    chosen = [i for i, row in enumerate(found) if (row.method, row.against) in primary]
    not_run = [1.0] * (len(primary) - len(chosen))
    p_holm = holm_adjusted(np.array([*(found[i].p_value for i in chosen), *not_run])).tolist()
    adjusted = dict(zip(chosen, p_holm[: len(chosen)], strict=True))
    return [replace(row, p_holm=adjusted.get(i)) for i, row in enumerate(found)]
