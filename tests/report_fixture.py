"""A study that nobody ran, for the tests of the report: plausible shapes, invented numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser

from statewise.storage.records import (
    DriftEstimate,
    Effect,
    EffectTable,
    Estimate,
    HypothesisSummary,
    Largest,
    RunSummary,
    StudySummary,
)

VOID = {"meta", "link", "br", "hr", "img", "input"}
ITEMS = "cluster bootstrap over items, 10,000 resamples; seeds resampled within"
PAIRED = "paired bootstrap over items and seeds, 10,000 resamples"
COLUMNS = {"pocket_math": "Pocket Math", "pocket_myths": "Pocket Myths", "pocket_facts": "Pocket Facts"}
NUM_ITEMS = {"pocket_math": 1000, "pocket_myths": 400, "pocket_facts": 800}
BASE_SCORES = {"pocket_math": 0.448, "pocket_myths": 0.3, "pocket_facts": 0.436}


def estimate(value: float, half: float, num_items: int = 1000, num_seeds: int = 3, method: str = PAIRED) -> Estimate:
    return Estimate(value, round(value - half, 6), round(value + half, 6), num_items, num_seeds, method)


def deltas(*values: float, num_seeds: int = 3) -> dict[str, Estimate]:
    halves = (0.019, 0.024, 0.017)
    return {
        key: estimate(value, half, NUM_ITEMS[key], num_seeds)
        for key, value, half in zip(COLUMNS, values, halves, strict=True)
    }


def drift(mmd: float, jaccard: float, p_value: float = 2.9e-6) -> dict[str, DriftEstimate]:
    rest = {"p_values": (0.002, 0.002, 0.004), "p_value": p_value, "num_seeds": 3, "method": "t interval over seeds"}
    return {
        "mmd": DriftEstimate(mmd, mmd * 0.86, mmd * 1.17, 0.00041, **rest),
        "within_prompt_mmd": DriftEstimate(mmd * 2, mmd * 1.6, mmd * 2.4, 0.0009, **rest),
        "centroid": DriftEstimate(mmd * 9, mmd * 8.1, mmd * 10.4, 0.0113, **rest),
        "sliced_wasserstein": DriftEstimate(mmd * 3, mmd * 2.8, mmd * 3.3, 0.0042, **rest),
        "jaccard": DriftEstimate(jaccard, jaccard - 0.02, jaccard + 0.015, 0.312, **rest),
    }


def trained(
    arm: str, label: str, gains: tuple[float, float, float], mmd: float, recipe: str, num_seeds: int = 3
) -> RunSummary:
    base = list(BASE_SCORES.values())
    forgetting = -(gains[1] + gains[2]) / 2
    ratio = ((base[1] + gains[1]) / base[1] + (base[2] + gains[2]) / base[2]) / 2
    return RunSummary(
        arm=arm,
        label=label,
        num_seeds=num_seeds,
        num_diverged=0,
        recipe=recipe,
        scores={
            key: estimate(BASE_SCORES[key] + gain, 0.021, NUM_ITEMS[key], num_seeds, ITEMS)
            for key, gain in zip(COLUMNS, gains, strict=True)
        },
        against_base=deltas(*gains, num_seeds=num_seeds),
        forgetting=estimate(forgetting, 0.015, 400, num_seeds),
        retention_ratio=estimate(ratio, 0.041, 400, num_seeds),
        drift=drift(mmd, 0.35 + mmd * 10),
        budget={
            "num_updates": 120.0,
            "num_states": 184_320.0,
            "num_loss_tokens": 184_320.0,
            "num_generated_tokens": 0.0 if "sft" in arm and "opd" not in arm else 1_204_410.0,
            "flops": 3.21e14,
            "train_s": 312.4,
        },
    )


def fake_study() -> StudySummary:
    """Six runs, three seeds, four hypotheses."""
    base = RunSummary(
        arm="base",
        label="base",
        num_seeds=1,
        num_diverged=0,
        recipe="no post-training",
        scores={key: estimate(value, 0.03, NUM_ITEMS[key], 1, ITEMS) for key, value in BASE_SCORES.items()},
    )
    adapter = "full weights, AdamW, constant schedule, clip 1.0"
    mild = trained("mild_sft", "mild SFT", (0.064, -0.005, 0.008), 0.00956, f"dataset × imitate, lr 2e-4, {adapter}")
    stress = trained(
        "stress_sft", "stress SFT", (-0.028, -0.055, -0.072), 0.01093, f"dataset × imitate, lr 2e-3, {adapter}"
    )
    opd = f"rollout (learner) × continuation, lr 2e-4, {adapter}"
    opd_mild = trained("opd_mild", "OPD from mild SFT", (0.064, -0.01, -0.002), 0.0147, opd)
    opd_stress = trained("opd_stress", "OPD from stress SFT", (0.018, -0.025, -0.006), 0.01092, opd)
    rl = trained(
        "rl", "on-policy RL", (0.024, -0.01, 0.006), 0.00044, f"rollout (learner) × reward, lr 1e-4, {adapter}"
    )
    opd_mild = dataclasses.replace(opd_mild, teacher="mild_sft", against_teacher=deltas(0.0, -0.005, -0.01))
    opd_stress = dataclasses.replace(opd_stress, teacher="stress_sft", against_teacher=deltas(0.046, 0.03, 0.066))
    rl = dataclasses.replace(rl, drift=drift(0.00044, 0.331, 0.143))
    return StudySummary(
        name="made-up-study",
        description="Invented numbers for the tests of the report. Nobody ran this.",
        columns=COLUMNS,
        target=next(iter(COLUMNS)),
        retention=tuple(COLUMNS)[1:],
        protocols={
            "pocket_math": "greedy, 0-shot, exact_match,flexible-extract, split test",
            "pocket_myths": "multiple choice by log-likelihood, acc, split test",
            "pocket_facts": "multiple choice by log-likelihood, acc_norm, split test",
        },
        runs=(base, mild, stress, opd_mild, opd_stress, rl),
        hypotheses=hypotheses(),
        environment={
            "statewise": "0.1.0",
            "python": "3.11.2",
            "torch": "2.9.0 (cpu, 1 thread)",
            "machine": "x86_64, 2 cores",
            "study": "sha256 0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
        },
        reference_label="arXiv:2605.22731, Table 2: Qwen3-0.6B-Base, one seed, no intervals",
        reference_headings=("run", "GSM8K", "TruthfulQA", "MMLU", "MMD", "F", "retention"),
        reference_rows=(
            ("base", ".448", ".300", ".436", "–", "–", "–"),
            ("mild SFT", ".512", ".295", ".444", ".00956", "−.0015", "1.0008"),
            ("stress SFT", ".420", ".245", ".364", ".01093", ".0635", ".8258"),
            ("OPD from mild SFT", ".512", ".290", ".434", ".01470", ".0060", ".9810"),
            ("OPD from stress SFT", ".466", ".275", ".430", ".01092", ".0155", ".9515"),
            ("on-policy RL", ".472", ".290", ".442", ".01098", ".0020", ".9902"),
        ),
        largest=(
            Largest("gain", ("mild_sft",), dataclasses.replace(mild.against_base["pocket_math"], level=0.99), 5),
            Largest("forgetting", ("stress_sft",), dataclasses.replace(stress.forgetting, level=0.99), 5),
        ),
        problems=("pocket_myths, seed 2, arm rl: 3 of 400 items could not be scored and count as wrong",),
    )


SOURCES = ("dataset", "rl-states", "teacher", "prefix-half", "own")
SIGNALS = ("imitate", "continuation", "expert", "reverse-kl", "reward")
RATES = ("1e-4", "1e-3")


def fake_design(sources=SOURCES, signals=SIGNALS, rates=RATES) -> StudySummary:
    """A grid of sources × signals × learning rates beside two arms that are written out; invented numbers."""
    runs = [trained("sft", "SFT teacher", (0.05, -0.02, -0.01), 0.01, "dataset × imitate")]
    runs.append(trained("rl", "on-policy RL", (0.02, 0.0, 0.004), 0.001, "rollout × reward"))
    for i, source in enumerate(sources):
        for j, signal in enumerate(signals):
            for k, rate in enumerate(rates):
                gain = 0.03 * (i - 2) + 0.02 * (j - 1) * (1 - k) - 0.05 * k
                lost = (-0.06 + 0.012 * i - 0.02 * k, -0.03 + 0.01 * j)
                run = trained(f"{source}.{signal}.{rate}", f"{signal} on {source}, lr {rate}", (gain, *lost), 0.01, "x")
                # A log is the same for all of its arms, other states are an arm's own.
                origin = source if source in ("dataset", "rl-states") else run.arm
                hashes = {str(seed): hashlib.sha256(f"{origin} {seed}".encode()).hexdigest() for seed in range(3)}
                levels = {"source": source, "signal": signal, "lr": rate}
                budget = {**run.budget, "num_trajectories": 1920.0, "num_tokens": 401_311.3 + 100 * i}
                planned = {"num_updates": 120.0, "num_trajectories": 1920.0, "num_tokens": 398_000.0}
                runs.append(
                    dataclasses.replace(run, levels=levels, state_hashes=hashes, budget=budget, planned=planned)
                )
    factors = {"source": tuple(sources), "signal": tuple(signals), "lr": tuple(rates)}
    names = ("source", "signal", "lr", "source × signal", "source × lr", "signal × lr", "higher-order interactions")
    shares = (0.41, 0.22, 0.13, 0.08, 0.05, 0.04, 0.03)
    effects = tuple(Effect(n, s, s - 0.02, s + 0.03, s / (s + 0.05)) for n, s in zip(names, shares, strict=True))
    effects += (Effect("between seeds", 0.04, 0.01, 0.05, None),)
    method = "η² = SS / SS total; 95 % interval by leaving out each of the 3 seeds"
    tables = [EffectTable(response, factors, 50, 3, effects, method) for response in ("gain", "forgetting")]
    tables[1] = dataclasses.replace(tables[1], note="left out, since cells of them are missing: signal reward")
    study = fake_study()
    return dataclasses.replace(study, runs=(study.runs[0], *runs), effects=tuple(tables), hypotheses=())


def hypotheses() -> tuple[HypothesisSummary, ...]:
    test = "paired bootstrap, one-sided at .025, Holm over the contrasts of the hypothesis"
    return (
        HypothesisSummary(
            name="stress forgets",
            statement="Stress SFT forgets more than mild SFT.",
            verdict="holds",
            test=test,
            contrasts={"F(stress SFT) − F(mild SFT)": estimate(0.065, 0.017, 400)},
        ),
        HypothesisSummary(
            name="on-policy keeps",
            statement="OPD and RL forget less than .01 on average.",
            verdict="not resolved",
            test=test,
            contrasts={
                "F(OPD from mild SFT) − F(base)": estimate(0.006, 0.015, 400),
                "F(on-policy RL) − F(base)": estimate(0.002, 0.015, 400),
            },
            note="The margin was set in the study file before the runs.",
        ),
        HypothesisSummary(
            name="student beats teacher",
            statement="OPD from stress SFT scores above its teacher on the target.",
            verdict="holds",
            test=test,
            contrasts={"OPD from stress SFT − stress SFT": estimate(0.046, 0.019, 1000)},
        ),
        HypothesisSummary(
            name="drift explains forgetting",
            statement="Runs that drift further forget more.",
            verdict="does not hold",
            test="exact permutation of runs, Spearman",
            contrasts={"F(OPD from mild SFT) − F(stress SFT)": estimate(-0.0575, 0.018, 400)},
        ),
    )


def diverged(run: RunSummary) -> RunSummary:
    """The same arm, had every seed diverged: nothing was measured."""
    return RunSummary(run.arm, run.label, 0, run.num_seeds, run.recipe, scores={}, teacher=run.teacher)


def replace_run(summary: StudySummary, arm: str, run: RunSummary) -> StudySummary:
    runs = tuple(run if old.arm == arm else old for old in summary.runs)
    return dataclasses.replace(summary, runs=runs)


def run_named(summary: StudySummary, arm: str) -> RunSummary:
    return next(run for run in summary.runs if run.arm == arm)


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
