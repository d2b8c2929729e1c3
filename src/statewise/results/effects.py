"""Effect sizes of a factorial design: which share of the variance over cells and seeds each factor explains.

Analysis of variance of balanced, fully crossed data with the seeds as replicates within a cell. Only complete designs
are decomposed, since the shares of an unbalanced one depend on the order of the factors; what is missing is therefore
left out level by level first. No test is made: η² says how much, its interval how much is left without noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from statewise.results.intervals import is_constant
from statewise.storage.records import LEVEL, Effect, EffectTable

Array = npt.NDArray[np.float64]
# Axis → level of a cell, and its value by seed.
Cell = tuple[Mapping[str, str], Mapping[int, float]]

# No level or axis of a grid can be called so.
SEEDS, HIGHER_ORDER = "between seeds", "higher-order interactions"
ONE_SEED = "η² = SS / SS total; one seed, so no interval, and what is left over is no noise"


@dataclass(frozen=True)
class Design:
    """`values`, [levels of the first factor, …, seeds], nan where missing."""

    factors: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    values: Array


def estimate_effects(response: str, cells: Sequence[Cell]) -> EffectTable | None:
    """η² of every main effect and two-way interaction, of the interactions above them, and of the seeds.

    Args:
        response: what the values are, for the record.
        cells: arms with their levels, all on the same axes, and one finite value per seed that was measured.

    Returns:
        The table; without rows, and with the reason, where no complete design is left; None where the cells have not
        two axes with two levels each.
    """
    design = _lay_out(cells)
    if len(design.factors) < 2:
        return None
    design, dropped = _complete(design)
    notes = [f"left out, since cells of them are missing: {', '.join(dropped)}"] if dropped else []
    num_cells, num_seeds = int(np.prod(design.values.shape[:-1])), len(design.seeds)

    effects: tuple[Effect, ...] = ()
    if len(design.factors) < 2 or not num_seeds:
        notes = ["no two factors with two levels each have all their cells", *notes]
    elif is_constant(design.values):
        notes = ["all cells have the same value", *notes]
    else:
        effects = _estimate(design)
    method = _method(num_seeds) if effects else ""
    return EffectTable(response, design.factors, num_cells, num_seeds, effects, method, "; ".join(notes))


def explain_variance(values: Array, factors: Sequence[str]) -> dict[str, float]:
    """η² by effect, in the order of a report.

    η²(e) = SS(e) / SS(total), SS(total) = Σ (y − mean)², over the means of complete, balanced data: for factors A and B
    of a and b levels, SS(A) = N / a Σ_i (mean_i − mean)², SS(A × B) = N / ab Σ_ij (mean_ij − mean_i − mean_j + mean)²;
    the interactions above two-way are what the cell means have left, the seeds what lies within the cells.

    Args:
        values: [levels of the first factor, …, seeds], without nan, not all equal.
        factors: names of all axes but the last.

    Returns:
        Shares that add up to 1; "higher-order interactions" from three factors on, "between seeds" from two seeds on.

    Source:
        Fisher (1925) for the decomposition; η²: Cohen (1973).
    """
    centered = values - values.mean()
    total = float((centered**2).sum())
    means = centered.mean(axis=-1)
    num_seeds = values.shape[-1]
    effects = [_marginal(means, (axis,)) for axis in range(means.ndim)]
    mains = list(effects)
    names = list(factors)
    for first, second in itertools.combinations(range(means.ndim), 2):
        effects.append(_marginal(means, (first, second)) - mains[first] - mains[second])
        names.append(f"{factors[first]} × {factors[second]}")
    rest = means - sum(np.broadcast_to(effect, means.shape) for effect in effects)
    shares = {
        name: num_seeds * float((np.broadcast_to(effect, means.shape) ** 2).sum()) / total
        for name, effect in zip(names, effects, strict=True)
    }
    if means.ndim > 2:
        shares[HIGHER_ORDER] = num_seeds * float((rest**2).sum()) / total
    if num_seeds > 1:
        shares[SEEDS] = float(((centered - means[..., np.newaxis]) ** 2).sum()) / total
    return shares


def _marginal(means: Array, axes: tuple[int, ...]) -> Array:
    """Mean over all other axes, which stay with length 1; of centred means, so a main effect as it is."""
    others = tuple(axis for axis in range(means.ndim) if axis not in axes)
    kept: Array = means.mean(axis=others, keepdims=True)
    return kept


def _estimate(design: Design) -> tuple[Effect, ...]:
    shares = explain_variance(design.values, list(design.factors))
    intervals = jackknife_intervals(design.values, list(design.factors))
    degrees = _degrees(design)
    effects = []
    for name, share in shares.items():
        low, high = intervals.get(name, (None, None))
        effects.append(Effect(name, share, low, high, _partial_omega_squared(name, shares, degrees)))
    return tuple(effects)


def jackknife_intervals(values: Array, factors: Sequence[str]) -> dict[str, tuple[float, float]]:
    """95 % interval of every effect's share in what many seeds would show, by leaving out one seed after another.

    With s seeds, η² of all of them and η²₋ⱼ without seed j, the pseudo-values s η² − (s−1) η²₋ⱼ have a mean without the
    share that noise adds to η² (of order 1/s); the interval is that mean ± t_{s−1} · their standard error, cut to 0..1.
    It can thus lie below η². Seeds are the independent units: cells of one seed may be as dependent as they like.

    Args:
        values, factors: as in `explain_variance`.

    Returns:
        (low, high) by effect; nothing for one seed, and for the seeds' own share nothing below three.

    Source:
        Quenouille (1956), Tukey (1958). In simulated designs of 40 cells and 2 to 6 seeds these intervals cover .92 to
        .98 of the time, in 2 × 2 cells .83 to .97; percentile intervals over resampled seeds covered .00 to .84.
    """
    num_seeds = values.shape[-1]
    if num_seeds == 1:
        return {}
    # Without a seed all cells may be equal, which leaves nothing to share out.
    parts = [np.delete(values, seed, axis=-1) for seed in range(num_seeds)]
    if any(is_constant(part) for part in parts):
        return {}
    whole, without = explain_variance(values, factors), [explain_variance(part, factors) for part in parts]
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, num_seeds - 1))
    intervals = {}
    for name in whole.keys() & without[0].keys():
        pseudo = num_seeds * whole[name] - (num_seeds - 1) * np.array([one[name] for one in without])
        middle, reach = float(pseudo.mean()), quantile * float(pseudo.std(ddof=1)) / num_seeds**0.5
        intervals[name] = (_share(middle - reach), _share(middle + reach))
    return intervals


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _degrees(design: Design) -> dict[str, int]:
    """Degrees of freedom by effect."""
    lengths = {name: len(levels) - 1 for name, levels in design.factors.items()}
    degrees = dict(lengths)
    for first, second in itertools.combinations(lengths, 2):
        degrees[f"{first} × {second}"] = lengths[first] * lengths[second]
    num_cells = design.values[..., 0].size
    degrees[HIGHER_ORDER] = num_cells - 1 - sum(degrees.values())
    degrees[SEEDS] = num_cells * (len(design.seeds) - 1)
    return degrees


def _partial_omega_squared(name: str, shares: Mapping[str, float], degrees: Mapping[str, int]) -> float | None:
    """ω² = (SS_e − df_e MS_w) / (SS_e + (N − df_e) MS_w), within cells w: η² without what noise alone would give.

    Source: Olejnik and Algina (2003), eq. for a manipulated factor.
    """
    if name == SEEDS or SEEDS not in shares:
        return None
    noise = shares[SEEDS] / degrees[SEEDS]
    size = sum(degrees.values()) + 1
    below = shares[name] + (size - degrees[name]) * noise
    return (shares[name] - degrees[name] * noise) / below if below > 0 else 0.0


def _method(num_seeds: int) -> str:
    if num_seeds == 1:
        return ONE_SEED
    return (
        "η² = SS / SS total; 95 % interval of the share that many seeds would show, by leaving out each of the "
        f"{num_seeds} seeds (jackknife, Student's t with {num_seeds - 1} d.f.): noise adds to η², so it can lie below"
    )


def _lay_out(cells: Sequence[Cell]) -> Design:
    """The cells as an array; axes of one level are left out."""
    axes = dict.fromkeys(axis for levels, _ in cells for axis in levels)
    factors = {axis: tuple(dict.fromkeys(levels[axis] for levels, _ in cells)) for axis in axes}
    factors = {axis: levels for axis, levels in factors.items() if len(levels) > 1}
    seeds = tuple(sorted({seed for _, by_seed in cells for seed in by_seed}))
    values = np.full([*map(len, factors.values()), len(seeds)], np.nan)
    for levels, by_seed in cells:
        index = tuple(known.index(levels[axis]) for axis, known in factors.items())
        for seed, value in by_seed.items():
            values[(*index, seeds.index(seed))] = value
    return Design(factors, seeds, values)


def _complete(design: Design) -> tuple[Design, list[str]]:
    """The largest complete design that dropping the worst level, one after another, leads to; what was dropped.

    The worst level or seed is the one with most values missing. Of equal ones a seed goes, as long as two stay, since
    every effect can still be told without it; else the level that costs fewest values.
    """
    dropped: list[str] = []
    while design.values.size and np.isnan(design.values).any():
        axis, index = max(_slices(design), key=lambda one: _badness(design, *one))
        design, name = _without(design, axis, index)
        dropped.append(name)
    single = [axis for axis, levels in enumerate(design.factors.values()) if len(levels) == 1]
    factors = {name: levels for name, levels in design.factors.items() if len(levels) > 1}
    return replace(design, factors=factors, values=np.squeeze(design.values, axis=tuple(single))), dropped


def _slices(design: Design) -> list[tuple[int, int]]:
    return [(axis, index) for axis, length in enumerate(design.values.shape) for index in range(length)]


def _badness(design: Design, axis: int, index: int) -> tuple[int, bool, int, int]:
    part = np.take(design.values, index, axis=axis)
    is_spare_seed = axis == design.values.ndim - 1 and len(design.seeds) > 2
    return int(np.isnan(part).sum()), is_spare_seed, -part.size, index


def _without(design: Design, axis: int, index: int) -> tuple[Design, str]:
    values = np.delete(design.values, index, axis=axis)
    if axis == design.values.ndim - 1:
        kept = tuple(seed for position, seed in enumerate(design.seeds) if position != index)
        return Design(design.factors, kept, values), f"seed {design.seeds[index]}"
    name = list(design.factors)[axis]
    levels = design.factors[name]
    factors = {**design.factors, name: (*levels[:index], *levels[index + 1 :])}
    return Design(factors, design.seeds, values), f"{name} {levels[index]}"
