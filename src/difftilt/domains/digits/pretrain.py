"""Makes the weights that come with the package: the digits model, the proxy and the gold classifier."""

from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from difftilt.domains.card import command, made, shown
from difftilt.domains.digits.model import (
    CLASSES,
    NULL,
    Classifier,
    DiT,
    Images,
    asked,
    chain_of,
    digits_policy,
    load_classifier,
    load_split,
    state_of,
    training_schedule,
)
from difftilt.evaluation.estimate import mean
from difftilt.evaluation.metrics import diversity, frechet, two_sample
from difftilt.networks.bundle import Numbers, save_bundle
from difftilt.policy import rollout
from difftilt.settings import Count, Natural, Rate, Threads
from difftilt.shapes import Samples
from difftilt.training.pretrain import classify, denoise, noisy, shifted
from difftilt.training.unfinished import Unfinished

NETWORK = {"patch": 4, "width": 128, "depth": 2, "heads": 4, "expand": 4}
CLASSIFIER = {"width": 24, "features": 32}
DROP = 0.5  # share of label-free training: fine-tuning starts from the unconditional distribution
CLASSIFIER_RATE = 2e-3


def pretrain_digits(
    out: Path = Path("models/digits"),
    steps: Count = 4500,
    batch: Count = 128,
    learning_rate: Rate = 2e-3,
    classifier_steps: Count = 800,
    threads: Threads = 1,
    seed: Natural = 0,
) -> None:
    """Trains the digits model and its two classifiers, measures them and writes weights and model card.

    Args:
        out: The folder to write; an existing one is replaced once all is done.
        steps: Gradient steps of the diffusion model.
        batch: Images per gradient step of the diffusion model.
        learning_rate: The highest of the diffusion model's schedule.
        classifier_steps: Gradient steps of each classifier.
        threads: CPU threads of torch; a second one costs more than it brings if the other core is busy.
        seed: Of weights and training; the split of the data is always the same.
    """
    torch.set_num_threads(threads)
    split = load_split()
    settings = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
    settings |= {"classifier_steps": classifier_steps, "seed": seed}
    kept = Unfinished(out, settings, {"learned": split.train.image})
    networks = {
        "model": _train_model(split.train, steps, batch, learning_rate, seed, kept),
        "proxy": _train_classifier("proxy", split.proxy, classifier_steps, seed + 1, kept),
        "gold": _train_classifier("gold", split.gold, classifier_steps, seed + 2, kept),
    }
    about = made(settings, kept.seconds(), threads, torch.__version__)
    config = {"network": NETWORK, "classifier": CLASSIFIER, "made": about}

    def judge(folder: Path) -> tuple[Numbers, str]:
        found = quality(folder)
        return found, card(about, found)

    save_bundle(out, networks, config, judge)
    kept.remove()


def _train_model(
    data: Images, steps: int, batch: int, learning_rate: float, seed: int, kept: Unfinished
) -> nn.Module:
    """The running average of the weights."""
    torch.manual_seed(seed)
    network = DiT(**NETWORK)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    loop = partial(
        denoise,
        chain_of(network, training_schedule()),
        state_of(data.image),
        {"label": data.label},
        batch=batch,
        null={"label": torch.tensor(NULL)},
        drop=DROP,
        seed=seed,
    )
    for _ in kept.rows("diffusion model", loop, optimizer, steps, network=network, average=average):
        average.update_parameters(network)
    return average.module


def _train_classifier(name: str, data: Images, steps: int, seed: int, kept: Unfinished) -> nn.Module:
    """Noise, shifts and soft labels make a reward that is hard to exploit and has a useful slope."""
    torch.manual_seed(seed)
    classifier = Classifier(**CLASSIFIER)
    optimizer = torch.optim.AdamW(classifier.parameters(), CLASSIFIER_RATE, weight_decay=0.02)
    loop = partial(
        classify,
        classifier,
        data.image,
        data.label,
        augment=lambda image: noisy(shifted(image, fill=0.0), 0.2),
        smoothing=0.05,
        seed=seed,
    )
    for _ in kept.rows(f"{name} classifier", loop, optimizer, steps, classifier=classifier):
        pass
    return classifier


@torch.no_grad()
def quality(folder: Path, steps: int | None = None, seed: int = 0) -> Numbers:
    """What the model card states, measured on images that no network has seen.

    The real images beside the generated ones are those of the proxy part, as many, with the same labels:
    the gold classifier, whose features are compared, knows neither them nor the held-out ones.

    Args:
        folder: The weights.
        steps: Transitions of the chain; the model's own number by default.
    """
    torch.manual_seed(seed)
    policy = digits_policy(folder=folder) if steps is None else digits_policy(steps, folder=folder)
    gold, split = load_classifier("gold", folder), load_split()
    real, held_out = split.proxy, split.held_out
    conditional = rollout(policy, {"label": real.label}).sample
    free = rollout(policy, asked(len(real.label))).sample
    sets = {"real": real.image, "conditional": conditional, "unconditional": free}
    hits = (gold(conditional).argmax(1) == real.label).double()
    chosen = gold(conditional).softmax(1).gather(1, real.label[:, None])
    return {
        "steps": policy.steps,
        "images": len(real.label),
        "held_out_images": len(held_out.label),
        "classifiers": {name: accuracy(name, folder, held_out) for name in ("proxy", "gold")},
        "gold_accuracy": mean(hits),
        "gold_confidence": mean(chosen[:, 0].double()),
        "gold_on_real": accuracy("gold", folder, real),
        "unconditional_classes": gold(free).argmax(1).bincount(minlength=CLASSES).tolist(),
        "frechet": {k: frechet(gold.features(x), gold.features(held_out.image)) for k, x in sets.items()},
        "energy": {k: two_sample(gold.features(x), gold.features(held_out.image)) for k, x in sets.items()},
        "energy_pixels": {k: two_sample(state_of(x), state_of(held_out.image)) for k, x in sets.items()},
        "diversity": {k: diversity(state_of(x)) for k, x in sets.items()},
        "nearest_training_image": {
            "conditional": _nearest(conditional, split.train.image),
            "held_out": _nearest(held_out.image, split.train.image),
        },
    }


@torch.no_grad()
def accuracy(name: str, folder: Path, data: Images) -> Numbers:
    """A classifier's share of right answers, cross-entropy and mean probability of the right class."""
    logits = load_classifier(name, folder)(data.image)
    right = (logits.argmax(1) == data.label).double()
    return {
        "accuracy": mean(right),
        "nats": F.cross_entropy(logits, data.label).item(),
        "confidence": mean(logits.softmax(1).gather(1, data.label[:, None])[:, 0]),
    }


def _nearest(sample: Samples, train: Samples) -> float:
    """Mean distance to the nearest training image; far below that of held-out images it means copying."""
    return torch.cdist(state_of(sample).flatten(1), state_of(train).flatten(1)).min(1).values.mean().item()


def card(about: Numbers, found: Numbers) -> str:
    """The model card, in Markdown."""
    found = shown(found)
    rows = (f"| {label} | {' | '.join(found[key][name] for name in SETS)} |" for label, key in TABLE)
    classes = ", ".join(map(str, found["unconditional_classes"]))
    return CARD.format(
        command=command(["digits"], about), **about, **found, rows="\n".join(rows), classes=classes
    )


SETS = ("real", "conditional", "unconditional")
TABLE = (
    ("Frechet distance, gold features", "frechet"),
    ("energy distance, gold features", "energy"),
    ("energy distance, pixels", "energy_pixels"),
    ("mean distance of two images, pixels", "diversity"),
)
CARD = """# Digits: a diffusion model of 8x8 handwritten digits, and two classifiers

Data: the 1797 images of scikit-learn's `load_digits` (the test part of the UCI data set "Optical
Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998, CC BY 4.0), scaled to [0, 1]. They are split
once and for all, with the same share of every digit: 40 % *proxy*, 40 % *gold*, 20 % *held out*.

| file | what | learned from |
| --- | --- | --- |
| `model.safetensors` | class-conditional diffusion transformer; label 10 is any digit | proxy + gold |
| `proxy.safetensors` | classifier for rewards | proxy |
| `gold.safetensors` | classifier that only judges | gold |

Weights are float16 on disk and float32 in memory.

## How it was made

    {command}

{processor_seconds} s of processor time, CPU threads: {threads}, torch {torch}.

## How good it is

Measured on the {held_out_images} held-out images, which no network has seen. Errors are standard errors.

| | proxy | gold |
| --- | --- | --- |
| accuracy | {classifiers[proxy][accuracy]} | {classifiers[gold][accuracy]} |
| cross-entropy in nats | {classifiers[proxy][nats]:.3f} | {classifiers[gold][nats]:.3f} |

{images} images were drawn in {steps} steps with the labels of the proxy part. The gold classifier sees the
asked digit in a share of {gold_accuracy} of them, with a confidence of {gold_confidence}.
For the real images of the proxy part the two are {gold_on_real[accuracy]} and {gold_on_real[confidence]}.
Digits 0 to 9 among as many unconditional images: {classes}.

Distances from sets of as many images to the held-out ones; `real` is the proxy part, which the gold
classifier has not seen either; pixels are scaled to [-1, 1] here:

| | real | conditional | unconditional |
| --- | --- | --- | --- |
{rows}

The Frechet distance of finite sets is biased upwards, so that of the real images is the mark and not 0.
The nearest training image is {nearest_training_image[conditional]:.2f} away from a drawn one, and
{nearest_training_image[held_out]:.2f} from a held-out one; much less would mean copying.
`benchmarks/digits_card.py` measures the same for other numbers of steps.
"""
