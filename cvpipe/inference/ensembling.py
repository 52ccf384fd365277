"""Ensembles: one answer from the probabilities of several members.

The members' probabilities for the same images flow in, as one array `members` of shape
`(num_members, n, num_classes)` whose rows sum to 1; those of the ensemble flow out. An ensemble is
a few numbers. Applying it takes NumPy alone.

There are three pools, ways to combine, and each method is one of them with its own weights:

    linear         sum_m weight_m p_m
    logarithmic    softmax(sum_m weight_m log(p_m) + intercepts)
    vote           (votes + mean) / (num_members + 1)

Weights are fitted on images that no member was fitted on: a member that knows its images by heart
would get all the weight. Logarithms are taken of probabilities of at least `FLOOR`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.inference.calibration import FLOOR, floored_log
from cvpipe.inference.crops import SUM_TOLERANCE
from cvpipe.numerics import one_thread, softmax


@dataclass(frozen=True)
class Method:
    """A way to make an ensemble.

    Attributes:
        pool: `"linear"`, `"logarithmic"` or `"vote"`.
        is_fitted: Whether its weights are fitted; otherwise they are all equal.
    """

    pool: str
    is_fitted: bool


METHODS: dict[str, Method] = {
    "mean": Method("linear", is_fitted=False),
    "geometric_mean": Method("logarithmic", is_fitted=False),
    "vote": Method("vote", is_fitted=False),
    "weighted": Method("linear", is_fitted=True),
    "greedy": Method("linear", is_fitted=True),
    "stacking": Method("logarithmic", is_fitted=True),
}
# With one each, five equally good members lose little against the mean on a hundred images, and one
# that is far better than four others gets most of the weight.
PSEUDO_IMAGES = 1.0
NUM_ROUNDS = 100  # so the weights of "greedy" are hundredths or coarser
# From the strongest, which a few hundred images hardly move, to one that they hardly feel.
PENALTIES = (10_000.0, 1000.0, 100.0, 10.0, 1.0, 0.1)
NUM_FOLDS = 5
GAP = 1e-10  # by how much the mean penalised log loss of "weighted" may exceed the smallest
MAX_UPDATES = 10_000  # reached by thousands of images with members that are almost the same


@dataclass(frozen=True)
class Ensemble:
    """A rule that makes one answer of the members' answers.

    Attributes:
        method: A key of `METHODS`.
        weights: One per member, at least 0; they sum to 1, but for stacking.
        intercepts: One per class for stacking, otherwise empty.
    """

    method: str
    weights: tuple[float, ...]
    intercepts: tuple[float, ...] = ()

    def apply(self, members: np.ndarray) -> np.ndarray:
        """Combine the members' probabilities.

        Args:
            members: `float (num_members, n, num_classes)`, in the order of the weights; rows sum
                to 1.

        Returns:
            `float64` array of shape `(n, num_classes)`; rows sum to 1.

        Raises:
            InputError: These are no probabilities, or of another number of members or classes.

        Example:
            >>> members = np.array([[[0.9, 0.1]], [[0.5, 0.5]]])
            >>> Ensemble("weighted", (0.75, 0.25)).apply(members).round(3).tolist()
            [[0.8, 0.2]]
            >>> Ensemble("geometric_mean", (0.5, 0.5)).apply(members).round(3).tolist()
            [[0.75, 0.25]]
        """
        return self._combine(self._check(members))

    def to_dict(self) -> dict[str, Any]:
        """Write it as names and numbers, for JSON; `ensemble_from_dict` reads them."""
        return asdict(self)

    def _check(self, members: np.ndarray) -> np.ndarray:
        members = _check_members(members)
        given, expected = len(members), len(self.weights)
        if given != expected:
            raise InputError(
                f"the ensemble has {expected} members, but the probabilities are of {given}; pass "
                "those of its own members, in their order."
            )
        if len(self.intercepts) not in (0, members.shape[2]):
            raise InputError(
                f"the ensemble knows {len(self.intercepts)} classes, but the probabilities are of "
                f"{members.shape[2]}; pass those of the classes it was fitted on."
            )
        return members

    def _combine(self, members: np.ndarray) -> np.ndarray:
        pool = METHODS[self.method].pool
        if pool == "vote":
            return _vote(members)
        if pool == "logarithmic":
            logits = _weighted_sum(self.weights, floored_log(members, FLOOR))
            return softmax(logits + np.array(self.intercepts or 0.0))
        return _normalise(_weighted_sum(self.weights, members))


def ensemble_from_dict(values: Mapping[str, Any]) -> Ensemble:
    """Read what `Ensemble.to_dict` wrote; further entries are ignored.

    The ensemble read gives the same probabilities to the last bit.

    Raises:
        InputError: An entry is missing or cannot be applied.

    Example:
        >>> ensemble_from_dict({"method": "mean", "weights": [0.5, 0.5], "intercepts": []})
        Ensemble(method='mean', weights=(0.5, 0.5), intercepts=())
    """
    method = check_name("ensemble method", str(values.get("method")), METHODS)
    weights, intercepts = (_read_numbers(values, name) for name in ("weights", "intercepts"))
    if len(weights) < 2 or min(weights) < 0:
        raise InputError(
            f"the weights of an ensemble are {list(weights)}; pass one for each of at least two "
            "members, none below 0."
        )
    if method != "stacking" and not abs(sum(weights) - 1) <= SUM_TOLERANCE:
        raise InputError(
            f"the weights of the ensemble {method!r} sum to {sum(weights):.3f}; pass weights that "
            "sum to 1."
        )
    if not METHODS[method].is_fitted and len(set(weights)) > 1:
        raise InputError(
            f"the weights of the ensemble {method!r} are {list(weights)}, but its members all "
            "count the same; pass equal weights, or the method 'weighted'."
        )
    if (len(intercepts) < 2) if method == "stacking" else intercepts:
        raise InputError(
            f"the ensemble {method!r} has {len(intercepts)} intercepts; pass one per class for "
            "'stacking', and none for any other method."
        )
    return Ensemble(method, weights, intercepts)


def fit_ensemble(
    method: str,
    members: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    seed: int,
) -> Ensemble:
    """Fit an ensemble on images that no member was fitted on.

    *Mean*: of the probabilities. *Geometric mean*: of the probabilities, made to sum to 1 again,
    which is the mean of the logits; it is surer where the members agree, and a member that rules a
    class out rules it out for all. *Vote*: see below. These three ignore the targets. *Weighted*:
    see `fit_weighted`. *Greedy*: see `fit_greedy`. *Stacking*: see `fit_stacking`, with the penalty
    that `choose_penalty` finds.

    In a *vote* each member names its most probable class, the first in class order on a tie. The
    mean of the probabilities counts as the vote of one further member who divides it between the
    classes. So the class with the most votes is the most probable one, of several the one with the
    largest mean, and of several still the first in class order. Only what all members call
    impossible has probability 0.

    Args:
        method: A key of `METHODS`.
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`; ignored where nothing is fitted.
        groups: Group of each image, `(n,)`, of any sortable type; needed for stacking only.
        seed: Of the division into folds; needed for stacking only.

    Raises:
        InputError: The method is unknown, the members are no probabilities or fewer than two, or
            there is nothing to fit on.

    Example:
        >>> members = np.array([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]])
        >>> vote = fit_ensemble("vote", members, np.array([0]), ["patient 1"], seed=0)
        >>> vote.apply(members).round(3).tolist()
        [[0.392, 0.608]]

    References:
        Genest and Zidek, "Combining Probability Distributions: A Critique and an Annotated
        Bibliography", Statistical Science 1, 1986 (linear and logarithmic pools); Kittler, Hatef,
        Duin and Matas, "On Combining Classifiers", IEEE Transactions on Pattern Analysis and
        Machine Intelligence 20, 1998 (sum, product and majority vote rule).
    """
    check_name("ensemble method", method, METHODS)
    if method == "weighted":
        return fit_weighted(members, targets)
    if method == "greedy":
        return fit_greedy(members, targets)
    if method == "stacking":
        return fit_stacking(members, targets, choose_penalty(members, targets, groups, seed))
    num_members = len(_check_members(members))
    return Ensemble(method, (1 / num_members,) * num_members)


def fit_weighted(
    members: np.ndarray, targets: np.ndarray, pseudo_images: float = PSEUDO_IMAGES
) -> Ensemble:
    """Find the convex weights of the mixture with the smallest log loss, drawn towards equal ones.

    Maximises `sum_i log(sum_m weight_m p_m(true class of i)) + pseudo_images sum_m log(weight_m)`,
    which is concave, by expectation and maximisation: each image is divided between the members in
    proportion to weight times probability, and the share of the images that a member gets is its
    next weight. No update makes it worse. The second term is a symmetric Dirichlet prior: it is as
    if each member alone had been right on some further images.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`.
        pseudo_images: Number of such images per member, at least 0. With 0 weights can be 0.

    Returns:
        An ensemble `"weighted"`. Its mean penalised log loss is within `GAP` of the smallest, or it
        has been updated `MAX_UPDATES` times.

    Raises:
        InputError: The members are no probabilities or fewer than two, the targets do not fit
            them, there are no images, or `pseudo_images` is below 0.

    Example:
        >>> members = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.4, 0.6], [0.7, 0.3]]])
        >>> np.round(fit_weighted(members, np.array([0, 0])).weights, 3).tolist()
        [0.601, 0.399]

    References:
        Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm",
        Journal of the Royal Statistical Society B 39, 1977, section 4.3 (finite mixtures).
    """
    likelihoods = _likelihoods(members, targets)
    if not (0 <= pseudo_images < np.inf):
        raise InputError(f"pseudo_images is {pseudo_images}; pass a number of at least 0.")
    num_members, n = likelihoods.shape
    total = n + num_members * pseudo_images
    weights = np.full(num_members, 1 / num_members)
    for _ in range(MAX_UPDATES):
        joint = weights[:, np.newaxis] * likelihoods
        shares = joint / joint.sum(axis=0)
        updated = (shares.sum(axis=1) + pseudo_images) / total
        # Updated over old weights are the slopes of the mean objective. Their weighted mean is 1,
        # and by concavity nothing gains more than the largest of them exceeds that.
        if (updated <= weights * (1 + GAP)).all():
            break
        weights = updated
    return Ensemble("weighted", tuple(weights.tolist()))


def fit_greedy(members: np.ndarray, targets: np.ndarray, num_rounds: int = NUM_ROUNDS) -> Ensemble:
    """Add one member after another, each as often as it helps; weights are shares of the rounds.

    Starts with none. Each round adds the member with which the mean of all that were added has the
    smallest log loss, also if it was added before; the first of several that are equally good. The
    round after which the log loss was smallest counts, the first of several.

    Departs from its source: there is no bagging of members, and no start with the best few.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`.
        num_rounds: Largest number of rounds, at least 1.

    Returns:
        An ensemble `"greedy"`.

    Raises:
        InputError: The members are no probabilities or fewer than two, the targets do not fit
            them, there are no images, or there is no round.

    References:
        Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble Selection from Libraries of Models",
        ICML 2004, sections 2 and 2.1 (selection with replacement).
    """
    likelihoods = _likelihoods(members, targets)
    if num_rounds < 1:
        raise InputError(f"num_rounds is {num_rounds}; pass at least 1.")
    total, added, losses = np.zeros(likelihoods.shape[1]), [], []
    for size in range(1, num_rounds + 1):
        candidates = -np.log((total + likelihoods) / size).mean(axis=1)
        added.append(int(candidates.argmin()))
        losses.append(candidates.min())
        total = total + likelihoods[added[-1]]
    num_added = int(np.argmin(losses)) + 1
    counts = np.bincount(added[:num_added], minlength=len(likelihoods))
    return Ensemble("greedy", tuple((counts / num_added).tolist()))


def fit_stacking(members: np.ndarray, targets: np.ndarray, penalty: float) -> Ensemble:
    """Fit a logistic regression on the logarithms of the members' probabilities.

    Its logits are `sum_m weight_m log(p_m) + intercepts`: one weight per member for all classes,
    at least 0, and one intercept per class, which sum to 0. The weights need not sum to 1: a sum
    above 1 makes the answers surer, one below 1 less sure. Minimises the summed log loss plus
    `penalty / 2` times the squared distance from the geometric mean, whose weights are all
    `1 / num_members` and whose intercepts are 0. This is strictly convex.

    Departs from its sources: they fit a weight for each pair of member and class, which takes more
    images than are usually left for it, and not to the log loss.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`.
        penalty: Above 0. 1 weighs about as much as a few images.

    Returns:
        An ensemble `"stacking"`.

    Raises:
        InputError: The members are no probabilities or fewer than two, the targets do not fit
            them, there are no images, or the penalty is not above 0.

    References:
        Wolpert, "Stacked Generalization", Neural Networks 5, 1992; Ting and Witten, "Issues in
        Stacked Generalization", Journal of Artificial Intelligence Research 10, 1999 (learning
        from probabilities); Breiman, "Stacked Regressions", Machine Learning 24, 1996 (weights of
        at least 0).
    """
    from scipy.optimize import minimize

    members = _check_members(members)
    targets = _check_targets(targets, members)
    if not (0 < penalty < np.inf):
        raise InputError(f"penalty is {penalty}; pass a number above 0.")
    num_members, n, num_classes = members.shape
    logs, one_hot = floored_log(members, FLOOR), np.eye(num_classes)[targets]
    start = np.concatenate([np.full(num_members, 1 / num_members), np.zeros(num_classes)])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logits = _weighted_sum(values[:num_members], logs) + values[num_members:]
        logits -= logits.max(axis=1, keepdims=True)
        true_logits = logits[np.arange(n), targets]
        error = softmax(logits) - one_hot
        away = values - start
        value = (np.log(np.exp(logits).sum(axis=1)) - true_logits).sum() + penalty / 2 * away @ away
        slopes = np.concatenate([(logs * error).sum(axis=(1, 2)), error.sum(axis=0)])
        return float(value), slopes + penalty * away

    bounds = [(0, None)] * num_members + [(None, None)] * num_classes
    options = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 1000}
    with one_thread():  # of some ten unknowns: more threads would only wait for each other
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    weights, intercepts = found.x[:num_members], found.x[num_members:]
    return Ensemble("stacking", tuple(weights.tolist()), tuple(intercepts.tolist()))


def choose_penalty(
    members: np.ndarray, targets: np.ndarray, groups: Sequence[str] | np.ndarray, seed: int
) -> float:
    """Choose the penalty of `fit_stacking` by cross-validation that never cuts a group.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`.
        groups: Group of each image, `(n,)`, of any sortable type.
        seed: Of the division into `NUM_FOLDS` folds, or one per group where there are fewer.

    Returns:
        The one of `PENALTIES` with the smallest log loss on held-out images; the strongest where
        all images are of one group.

    Raises:
        InputError: The members are no probabilities or fewer than two, the targets or groups do
            not fit them, or there are no images.
    """
    members = _check_members(members)
    targets = _check_targets(targets, members)
    if len(groups) != len(targets):
        raise InputError(
            f"{len(groups)} groups and {len(targets)} images; pass the group of each image."
        )
    names, group_of_image = np.unique(groups, return_inverse=True)
    if len(names) == 1:
        return PENALTIES[0]
    fold_of_group = np.random.default_rng(seed).permutation(len(names)) % NUM_FOLDS
    fold_of_image = fold_of_group[group_of_image]
    losses = np.zeros(len(PENALTIES))
    for fold in np.unique(fold_of_image):
        held_out = fold_of_image == fold
        rest, rest_targets = members[:, ~held_out], targets[~held_out]
        for position, penalty in enumerate(PENALTIES):
            fitted = fit_stacking(rest, rest_targets, penalty).apply(members[:, held_out])
            likelihoods = fitted[np.arange(held_out.sum()), targets[held_out]]
            losses[position] -= floored_log(likelihoods, FLOOR).sum()
    return PENALTIES[losses.argmin()]


def leave_one_out(ensemble: Ensemble, members: np.ndarray) -> np.ndarray:
    """Combine all members but one, for each one in turn; nothing is fitted again.

    How much worse that is than the whole ensemble is what a member adds to the others.

    The weights of the others are enlarged in proportion, so that their sum stays as it was; where
    they are all 0, they become equal.

    Args:
        ensemble: Of at least two members.
        members: As in `Ensemble.apply`.

    Returns:
        `float64` array of shape `(num_members, n, num_classes)`: at position `m` the ensemble
        without member `m`; rows sum to 1.

    Raises:
        InputError: See `Ensemble.apply`.

    Example:
        >>> members = np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.1, 0.9]]])
        >>> leave_one_out(Ensemble("mean", (1 / 3,) * 3), members)[:, 0].round(3).tolist()
        [[0.3, 0.7], [0.5, 0.5], [0.7, 0.3]]
    """
    members = ensemble._check(members)
    without = []
    for position in range(len(members)):
        others = np.delete(ensemble.weights, position)
        if not others.any():
            others = np.ones(len(others))
        # Without one that had no weight it is the same ensemble, to the last bit.
        if ensemble.weights[position] or not any(ensemble.weights):
            others = others / others.sum() * sum(ensemble.weights)
        smaller = replace(ensemble, weights=tuple(others.tolist()))
        without.append(smaller._combine(np.delete(members, position, axis=0)))
    return np.stack(without)


def disagreement(members: np.ndarray) -> np.ndarray:
    """Measure for each two members the share of the images that they name differently.

    Departs from its source, which counts the images that one member names rightly and the other
    wrongly. With two classes it is the same; with more, two members that err differently disagree
    too, and no target is needed.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.

    Returns:
        Symmetric `float64` array of shape `(num_members, num_members)` in [0, 1], 0 along the
        diagonal.

    Raises:
        InputError: The members are no probabilities or fewer than two, or there are no images.

    Example:
        >>> members = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]])
        >>> disagreement(members).tolist()
        [[0.0, 0.5], [0.5, 0.0]]

    References:
        Kuncheva and Whitaker, "Measures of Diversity in Classifier Ensembles and Their
        Relationship with the Ensemble Accuracy", Machine Learning 51, 2003, section 2.1.
    """
    named = _check_not_empty(_check_members(members)).argmax(axis=2)
    return (named[:, np.newaxis] != named).mean(axis=2)


def error_correlation(members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Correlate the mistakes of each two members: phi coefficient of wrong or right.

    0: they err independently of each other. 1: on the same images. Below 0: one tends to be right
    where the other errs, and an ensemble gains most.

    Args:
        members: `float (num_members, n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `int (n,)`.

    Returns:
        Symmetric `float64` array of shape `(num_members, num_members)` in [-1, 1]; NaN where a
        member makes no mistake, or nothing else.

    Raises:
        InputError: The members are no probabilities or fewer than two, the targets do not fit
            them, or there are no images.

    Example:
        >>> members = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.7, 0.3]]])
        >>> error_correlation(members, np.array([0, 0])).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]

    References:
        Kuncheva and Whitaker, as in `disagreement`, section 2.1 (the correlation coefficient).
    """
    errors = _errors(members, targets)
    n, num_wrong = errors.shape[1], errors.sum(axis=1)
    # In whole numbers, so that equal mistakes correlate with 1 to the last bit.
    covariance = n * (errors @ errors.T) - np.outer(num_wrong, num_wrong)
    variance = covariance.diagonal()
    with np.errstate(invalid="ignore"):
        return covariance / np.sqrt(np.outer(variance, variance))


def _weighted_sum(weights: Sequence[float] | np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sum over members one after another: no image's sum depends on which others there are."""
    return (np.asarray(weights)[:, np.newaxis, np.newaxis] * members).sum(axis=0)


def _vote(members: np.ndarray) -> np.ndarray:
    num_members, _, num_classes = members.shape
    votes = np.eye(num_classes)[members.argmax(axis=2)].sum(axis=0)
    return _normalise((votes + members.mean(axis=0)) / (num_members + 1))


def _likelihoods(members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pick what each member gives the true class, at least `FLOOR`: `(num_members, n)`."""
    members = _check_members(members)
    targets = _check_targets(targets, members)
    return np.maximum(members[:, np.arange(len(targets)), targets], FLOOR)


def _errors(members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mark with 1 what each member names wrongly, `float64 (num_members, n)`."""
    members = _check_members(members)
    return (members.argmax(axis=2) != _check_targets(targets, members)).astype(np.float64)


def _normalise(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=1, keepdims=True)


def _check_members(members: np.ndarray) -> np.ndarray:
    """Return the members' probabilities in `float64`."""
    shape = np.shape(members)
    if len(shape) != 3 or shape[0] < 2 or shape[2] < 2:
        raise InputError(
            f"the members' probabilities have shape {shape}; pass (num_members, n, num_classes) "
            "with at least two members and two classes."
        )
    members = np.asarray(members, dtype=np.float64)
    sums, smallest = members.sum(axis=2), members.min(axis=2)
    # `not (a <= b)` instead of `a > b`, so that a NaN counts as bad.
    bad = np.argwhere(~((np.abs(sums - 1) <= SUM_TOLERANCE) & (smallest >= 0)))
    if len(bad):
        member, image = bad[0]
        raise InputError(
            "the probabilities of each member and image must be at least 0 and sum to 1, but those "
            f"of member {member} for image {image} sum to {sums[member, image]:.3f}, the smallest "
            f"being {smallest[member, image]:.3f}; pass probabilities, not logits."
        )
    return members


def _check_not_empty(members: np.ndarray) -> np.ndarray:
    if not members.shape[1]:
        raise InputError("there are no images; pass the members' probabilities for at least one.")
    return members


def _check_targets(targets: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the positions of the true classes of at least one image."""
    _, n, num_classes = _check_not_empty(members).shape
    targets = np.asarray(targets)
    if targets.shape != (n,) or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(
            f"the targets are {targets.dtype} of shape {targets.shape} for {n} images; pass the "
            "position of the true class, a whole number, of each."
        )
    if targets.min() < 0 or targets.max() >= num_classes:
        raise InputError(
            f"the targets go from {targets.min()} to {targets.max()}, but there are {num_classes} "
            f"classes; pass positions from 0 to {num_classes - 1}."
        )
    return targets


def _read_numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    numbers: Any = values.get(name)
    is_list = isinstance(numbers, list | tuple) and all(isinstance(v, int | float) for v in numbers)
    if not is_list or not np.isfinite(numbers).all():
        raise InputError(
            f"the {name} of an ensemble are {numbers!r}; pass a list of finite numbers."
        )
    return tuple(map(float, numbers))
