"""All trials: every method chooses its rates with the first seed, then runs with every seed."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

import torch

from bench.digits import probe
from bench.digits.images import Digits, load
from bench.digits.learn import BATCH, cut, finetune, pretrain
from bench.digits.methods import METHODS, DigitsMethod
from bench.digits.table import PIXELS, Row
from bimkern.models.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often everything learns."""

    seeds: int = 3
    steps: int = 800  # of pre-training, each of BATCH images
    finetune_steps: int = 150
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)  # peaks, of which pre-training takes the best
    finetune_rates: tuple[float, ...] = (7e-4, 1.5e-3, 3e-3)  # likewise
    images: int | None = None  # None: all


QUICK = Plan(seeds=1, steps=2, finetune_steps=2, rates=(1e-3,), finetune_rates=(1e-3,), images=300)


@dataclass(frozen=True)
class Rates:
    pretrain: float | None  # None where there is no pre-training
    finetune: float


def run(plan: Plan, processes: int) -> Iterator[list[Row]]:
    """Run all trials, each on one thread, and yield the rows of each when it is done."""
    yield [_pixels(plan)]
    context = multiprocessing.get_context("spawn")  # forking would copy torch's threads
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        searching = [method.name for method in METHODS.values() if not method.rates_of]
        waiting: set[Future[list[Row]]] = {pool.submit(trial, name, 0, plan) for name in searching}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for rows in [future.result() for future in done]:
                yield rows
                for name, seed in _followers(rows[0], plan):
                    waiting.add(pool.submit(trial, name, seed, plan, _rates(rows[0])))


def _followers(row: Row, plan: Plan) -> list[tuple[str, int]]:
    """List the trials that wait for the rates of a row: none, unless they were searched for."""
    if row.seed > 0 or METHODS[row.method].rates_of:
        return []
    names = [name for name, method in METHODS.items() if row.method in (name, method.rates_of)]
    trials = [(name, seed) for name in names for seed in range(plan.seeds)]
    return [trial for trial in trials if trial != (row.method, row.seed)]


def _rates(row: Row) -> Rates:
    assert row.finetune_rate is not None
    return Rates(row.rate, row.finetune_rate)


def trial(name: str, seed: int, plan: Plan, rates: Rates | None = None) -> list[Row]:
    """Pre-train, probe and fine-tune one method with one seed, at all its depths; without rates, choose them first."""
    digits, method = load(plan.images), METHODS[name]
    if rates is None:
        rates, encoder = _search(method, digits, seed, plan)
    else:
        encoder = _pretrain(method, digits, rates.pretrain, seed, plan)
    return [_evaluate(method, cut(encoder, depth), digits, seed, plan, rates) for depth in method.depths]


def _search(method: DigitsMethod, digits: Digits, seed: int, plan: Plan) -> tuple[Rates, ViT]:
    """Choose the rates that are best on the validation part: of a linear probe, then of fine-tuning."""
    part = (digits.fit, digits.validation)
    encoders = {
        rate: _pretrain(method, digits, rate, seed, plan) for rate in (plan.rates if method.config else (None,))
    }
    scores = {rate: probe.linear(probe.features(encoder, digits), digits, *part) for rate, encoder in encoders.items()}
    best = max(scores, key=lambda rate: scores[rate])  # the first of equals
    finetuned = {
        rate: finetune(encoders[best], digits, *part, rate=rate, steps=plan.finetune_steps, seed=seed)
        for rate in plan.finetune_rates
    }
    return Rates(best, max(finetuned, key=lambda rate: finetuned[rate])), encoders[best]


def _pretrain(method: DigitsMethod, digits: Digits, rate: float | None, seed: int, plan: Plan) -> ViT:
    images = digits.images[digits.train]
    return pretrain(method.config, images, rate=rate or 0.0, steps=plan.steps, seed=seed)


def _evaluate(method: DigitsMethod, encoder: ViT, digits: Digits, seed: int, plan: Plan, rates: Rates) -> Row:
    parts = (digits.train, digits.held_out)
    values = probe.features(encoder, digits)
    return Row(
        method=method.name,
        layers=len(encoder.blocks),
        seed=seed,
        rate=rates.pretrain,
        finetune_rate=rates.finetune,
        knn=probe.knn(values, digits, *parts),
        linear=probe.linear(values, digits, *parts),
        finetuned=finetune(encoder, digits, *parts, rate=rates.finetune, steps=plan.finetune_steps, seed=seed),
        steps=plan.steps if method.config else 0,
        finetune_steps=plan.finetune_steps,
        batch=BATCH,
        images=len(digits.train),
        held_out=len(digits.held_out),
    )


def _pixels(plan: Plan) -> Row:
    digits = load(plan.images)
    parts = (digits.train, digits.held_out)
    return Row(
        method=PIXELS,
        knn=probe.knn(digits.scans, digits, *parts),
        linear=probe.linear(digits.scans, digits, *parts),
        images=len(digits.train),
        held_out=len(digits.held_out),
    )
