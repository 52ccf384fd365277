"""The classifiers by name: plain data; scikit-learn is imported when something is built."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cvpipe.classifiers.parameters import Parameter, first_grid, second_grid

# Number of folds of each kind of search.
SEARCHES = {"coarse": 3, "fine": 5}
CLASS_WEIGHTS = ("none", "balanced")
# What fits that hold a number for each pair of rows may take together.
MAX_PAIR_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Classifier:
    """A classifier and the hyperparameters that are searched.

    Attributes:
        title: What people call it.
        build: Makes the unfitted estimator; takes hyperparameters by name. Those that a fit of
            an older version did not choose have defaults.
        parameters: What is searched.
        sweep: Makes, from all rows, a function that predicts held-out rows at several settings
            and shares the work that they have in common: `predict(settings, train, held_out,
            targets, weights)` gets the settings, the positions of rows to learn from and to
            predict, targets and weights of all rows, and yields targets for each setting. `None`
            where each setting is a fit of its own.
        swept: Parameters whose values share the work.
        any_scale: Whether columns may be on any scale, such as bytes beside pixels: they are
            standardised, or only their order counts.
        holds_pairs: Whether a fit holds a number for each pair of rows.
        scoring: What picks the setting: `"accuracy"`, or `"log_likelihood"` where the
            probabilities themselves are fitted.
        calibrate: Whether scores become probabilities by Platt's sigmoid, fitted on
            out-of-fold scores inside train, because the classifier has none of its own.
        takes_weights: Whether weights of classes change anything.
        by_dot_products: Whether nothing of the rows counts but their dot products, so that a
            search may do with shorter rows that have the same ones.
        non_negative: Whether rows must be without negative numbers, as histograms are.
        alone: Whether one fit runs at a time, because the solver has one random generator for
            all threads.
        as_layers: Whether a fit can be written as layers of a network, so that on frozen features
            it makes one network with them.
    """

    title: str
    build: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    sweep: Callable[[Any], Any] | None = None
    swept: tuple[str, ...] = ()
    any_scale: bool = False
    holds_pairs: bool = False
    scoring: str = "accuracy"
    calibrate: bool = False
    takes_weights: bool = True
    by_dot_products: bool = False
    non_negative: bool = False
    alone: bool = False
    as_layers: bool = False

    @property
    def counts_rows(self) -> bool:
        """Whether a hyperparameter is a number of train rows."""
        return any(parameter.counts_rows for parameter in self.parameters)


def count_search_fits(classifier: Classifier, search: str) -> int:
    """Count the fits of a search; those that share their work count once.

    Args:
        classifier: Whose hyperparameters are searched.
        search: One of `SEARCHES`.
    """
    if not classifier.parameters:
        return 0
    alone = [p.name for p in classifier.parameters if p.name not in classifier.swept]
    grids = [first_grid(classifier.parameters, search == "fine", num_rows=1)]
    if search == "fine":
        # Whichever is the best has as many settings around it.
        grids.append(second_grid(classifier.parameters, grids[0][0]))
    shared = [{tuple(setting[name] for name in alone) for setting in grid} for grid in grids]
    return sum(map(len, shared)) * SEARCHES[search]


def _majority() -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def _nearest_neighbours(metric: str) -> Callable[..., Any]:
    def build(k: float, vote: str = "majority") -> Any:
        from cvpipe.classifiers.neighbours import NearestNeighbours

        return NearestNeighbours(metric, num_neighbours=int(k), vote=vote)

    return build


def _sweep_neighbours(metric: str) -> Callable[[Any], Any]:
    def sweep(features: Any) -> Any:
        from cvpipe.classifiers.neighbours import sweep_neighbours

        return sweep_neighbours(metric, features)

    return sweep


def _nearest_mean(metric: str) -> Any:
    from cvpipe.classifiers.nearest_mean import NearestMean

    return NearestMean(metric)


def _linear_svm(C: float) -> Any:  # noqa: N803 (scikit-learn's name)
    from sklearn.svm import LinearSVC

    # The primal solver with LIBLINEAR's own tolerance for it. On HOG of 1,800 images the dual
    # solver, scikit-learn's choice for more features than images, took many times longer.
    return LinearSVC(C=C, dual=False, tol=1e-2)


def _linear_svm_hinge(C: float) -> Any:  # noqa: N803
    from sklearn.svm import LinearSVC

    # The hinge has a corner, so there is no primal solver; this one visits rows at random.
    return LinearSVC(C=C, loss="hinge", dual=True, tol=1e-2, max_iter=1_000, random_state=0)


def _softmax(C: float) -> Any:  # noqa: N803
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5_000))


def _softmax_common_scale(C: float) -> Any:  # noqa: N803
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from cvpipe.classifiers.common_scaler import CommonScaler

    return make_pipeline(CommonScaler(), LogisticRegression(C=C, max_iter=5_000))


def _sparse_softmax(C: float, l1_ratio: float = 1.0) -> Any:  # noqa: N803
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cvpipe.classifiers.sparse_softmax import SparseSoftmax

    return make_pipeline(StandardScaler(), SparseSoftmax(C, l1_ratio))


def _kernel_svm(kernel: str) -> Callable[..., Any]:
    def build(C: float, gamma_factor: float = 1.0) -> Any:  # noqa: N803
        from cvpipe.classifiers.kernel_svm import KernelSVM

        # Not standardised: HOG and pooled network features are on one scale by nature, and on
        # two data sets scaling every column to unit variance cost up to 5 points (it lifts the
        # noise of columns that are nearly always zero).
        return KernelSVM(C, kernel, gamma_factor)

    return build


def _sweep_kernel_svm(kernel: str) -> Callable[[Any], Any]:
    def sweep(features: Any) -> Any:
        from cvpipe.classifiers.kernel_svm import sweep_kernel_svm

        return sweep_kernel_svm(kernel, features)

    return sweep


def _gradient_boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Small leaves, because small data; early stopping would set rows aside at random, groups cut.
    return HistGradientBoostingClassifier(min_samples_leaf=5, early_stopping=False, random_state=0)


def _two_layer_net(weight_decay: float, learning_rate: float = 0.1) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cvpipe.classifiers.two_layer_net import TwoLayerNet

    # The rate falls to a fifth whenever the train loss stands still for two epochs.
    net = TwoLayerNet(
        hidden_layer_sizes=(64,),
        activation="relu",
        solver="sgd",
        momentum=0.9,
        alpha=weight_decay,
        learning_rate="adaptive",
        learning_rate_init=learning_rate,
        max_iter=100,
        tol=1e-3,
        n_iter_no_change=2,
        early_stopping=False,  # it would set rows aside at random, groups cut
        random_state=0,
    )
    return make_pipeline(StandardScaler(), net)


_DECADES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_C_LINEAR = Parameter("C", _DECADES)
_C_SOFTMAX = Parameter("C", (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0))
_C_SPARSE = Parameter("C", (1e-2, 0.1, 1.0, 10.0))
_C_KERNEL = Parameter("C", (0.1, 1.0, 10.0, 100.0, 1_000.0))
_GAMMA = Parameter("gamma_factor", (0.25, 1.0, 4.0, 16.0, 64.0))
_K = Parameter(
    "k",
    (1, 3, 9, 27),
    fine=(1, 3, 4, 5, 7, 9, 11, 14, 18, 23, 29, 37, 47, 60),
    ends=(1, float("inf")),
    counts_rows=True,
)
_VOTE = Parameter("vote", ("majority", "distance"))
_METRIC = Parameter("metric", ("l2", "l1", "cosine"))
_L1_RATIO = Parameter("l1_ratio", (0.5, 0.1), fine=(0.5, 0.1), ends=(0.1, 0.5))
_WEIGHT_DECAY = Parameter("weight_decay", (100.0, 10.0, 1.0, 0.1))
_LEARNING_RATE = Parameter("learning_rate", (0.01, 0.1), fine=(0.01, 0.1), ends=(0.01, 0.1))


def _neighbours_classifier(metric: str, distance: str) -> Classifier:
    return Classifier(
        f"vote of the k nearest train images ({distance})",
        _nearest_neighbours(metric),
        parameters=(_K, _VOTE),
        sweep=_sweep_neighbours(metric),
        swept=("k", "vote"),
    )


def _kernel_classifier(kernel: str, words: str, parameters: tuple[Parameter, ...]) -> Classifier:
    return Classifier(
        f"support vector machine with a {words} kernel",
        _kernel_svm(kernel),
        parameters=parameters,
        sweep=_sweep_kernel_svm(kernel),
        swept=("C",),
        calibrate=True,
        holds_pairs=True,
        non_negative=kernel != "rbf",
        as_layers=kernel == "rbf",
    )


CLASSIFIERS = {
    "majority": Classifier(
        "class frequencies of train, whatever the image shows",
        _majority,
        any_scale=True,
        takes_weights=False,
    ),
    "nearest_mean": Classifier(
        "nearest class mean",
        _nearest_mean,
        parameters=(_METRIC,),
        calibrate=True,
    ),
    "nearest_neighbours": _neighbours_classifier("l2", "Euclidean distance"),
    "nearest_neighbours_l1": _neighbours_classifier("l1", "sum of absolute differences"),
    "nearest_neighbours_cosine": _neighbours_classifier("cosine", "angle"),
    "linear_svm": Classifier(
        "linear support vector machine (squared hinge loss)",
        _linear_svm,
        parameters=(_C_LINEAR,),
        calibrate=True,
        by_dot_products=True,
        as_layers=True,
    ),
    "linear_svm_hinge": Classifier(
        "linear support vector machine (hinge loss)",
        _linear_svm_hinge,
        parameters=(_C_LINEAR,),
        calibrate=True,
        by_dot_products=True,
        alone=True,
        as_layers=True,
    ),
    "rbf_svm": _kernel_classifier("rbf", "Gaussian (RBF)", (_C_KERNEL, _GAMMA)),
    "chi2_svm": _kernel_classifier("chi2", "chi-squared", (_C_KERNEL, _GAMMA)),
    "intersection_svm": _kernel_classifier("intersection", "histogram intersection", (_C_KERNEL,)),
    "gradient_boosting": Classifier(
        "gradient boosting of decision trees", _gradient_boosting, any_scale=True
    ),
    # Of these, the probabilities themselves are what a network head hands on.
    "softmax": Classifier(
        "softmax regression with L2 penalty on standardised features",
        _softmax,
        parameters=(_C_SOFTMAX,),
        scoring="log_likelihood",
        any_scale=True,
        as_layers=True,
    ),
    "softmax_common_scale": Classifier(
        "softmax regression with L2 penalty on features of one scale",
        _softmax_common_scale,
        parameters=(_C_SOFTMAX,),
        scoring="log_likelihood",
        as_layers=True,
    ),
    "softmax_l1": Classifier(
        "softmax regression with L1 penalty on standardised features",
        _sparse_softmax,
        parameters=(_C_SPARSE,),
        scoring="log_likelihood",
        any_scale=True,
        as_layers=True,
    ),
    "softmax_elastic_net": Classifier(
        "softmax regression with elastic-net penalty on standardised features",
        _sparse_softmax,
        parameters=(_C_SPARSE, _L1_RATIO),
        scoring="log_likelihood",
        any_scale=True,
        as_layers=True,
    ),
    "two_layer_net": Classifier(
        "two-layer neural network with 64 hidden units on standardised features",
        _two_layer_net,
        parameters=(_WEIGHT_DECAY, _LEARNING_RATE),
        scoring="log_likelihood",
        any_scale=True,
        as_layers=True,
    ),
}
