"""Hyperparameters and which values of them a search tries: plain numbers and words."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

Value = float | str
Setting = dict[str, Value]


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter and what is tried.

    Attributes:
        name: As the report shows it.
        coarse: What a coarse search tries, the simplest or most regularised first. Numbers are
            evenly spaced on a logarithmic scale.
        fine: What a fine search tries. Empty: the coarse values first, then the two values half
            a step, in the logarithm, to either side of the best.
        ends: Where the range ends by nature, so that a best value there is no reason to warn.
        counts_rows: Whether it is a number of train rows, hence bounded by it.
    """

    name: str
    coarse: tuple[Value, ...]
    fine: tuple[Value, ...] = ()
    ends: tuple[float, float] = (0.0, float("inf"))
    counts_rows: bool = False

    def rank(self, value: Value) -> float:
        """Order values, the simplest first."""
        if isinstance(value, str):
            return self.coarse.index(value)
        first, last = float(self.coarse[0]), float(self.coarse[-1])
        return value if first <= last else -value

    def around(self, value: Value) -> tuple[Value, ...]:
        """List a value and what a fine search tries beside it, to three digits."""
        if self.fine or isinstance(value, str):
            return (value,)
        half_step = (float(self.coarse[1]) / float(self.coarse[0])) ** 0.5
        return (_rounded(value / half_step), value, _rounded(value * half_step))


def first_grid(parameters: Sequence[Parameter], fine: bool, num_rows: int) -> list[Setting]:
    """List the settings that a search starts with: every combination.

    Args:
        parameters: What is searched.
        fine: Whether the search is a fine one.
        num_rows: Of the smallest training part; larger numbers of rows are left out.
    """
    values = [
        [
            value
            for value in ((parameter.fine if fine else ()) or parameter.coarse)
            if not parameter.counts_rows or float(value) <= num_rows
        ]
        for parameter in parameters
    ]
    return _combinations(parameters, values)


def second_grid(parameters: Sequence[Parameter], best: Setting) -> list[Setting]:
    """List the settings around the best one of the first grid, without itself."""
    around = [parameter.around(best[parameter.name]) for parameter in parameters]
    return [setting for setting in _combinations(parameters, around) if setting != best]


def simplest_first(parameters: Sequence[Parameter], setting: Setting) -> tuple[float, ...]:
    """Sort settings by it: the earlier one wins a tie; the first parameter counts most."""
    return tuple(parameter.rank(setting[parameter.name]) for parameter in parameters)


def edge_warnings(
    parameters: Sequence[Parameter], tried: Sequence[Setting], chosen: Setting, num_rows: int
) -> list[str]:
    """Say so of every number whose best value is the outermost that was tried.

    Args:
        parameters: What was searched.
        tried: All settings that were.
        chosen: The best of them.
        num_rows: As in `first_grid`.
    """
    warnings = []
    for parameter in parameters:
        best = chosen[parameter.name]
        values = {setting[parameter.name] for setting in tried}
        low, high = parameter.ends
        if parameter.counts_rows:
            high = min(high, num_rows)
        if isinstance(best, str) or len(values) == 1 or not low < best < high:
            continue
        numbers = [float(value) for value in values]
        for side, outermost in (("smallest", min(numbers)), ("largest", max(numbers))):
            if best == outermost:
                warnings.append(
                    f"the best {parameter.name} is the {side} that was tried ({best:g}); a better "
                    "one may lie outside the range"
                )
    return warnings


def _combinations(
    parameters: Sequence[Parameter], values: Sequence[Sequence[Value]]
) -> list[Setting]:
    names = [parameter.name for parameter in parameters]
    return [dict(zip(names, combination, strict=True)) for combination in product(*values)]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
