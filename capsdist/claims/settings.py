"""What claims are tested with: sizes, seeds, fractions; and the configuration of every run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from capsdist.claims.experiment import BASELINE, CAPSNET
from capsdist.claims.matched import matched_baseline
from capsdist.config import Config, with_values
from capsdist.config.models import NoOptions
from capsdist.config.presets.mnist import SMALLER
from capsdist.errors import ConfigError, Problem

__all__ = ["SIZES", "Settings", "SizeName", "Trained", "configs_of"]

SizeName = Literal["tiny", "mini", "quarter", "full"]
SIZES: dict[SizeName, dict[str, Any]] = {
    "tiny": {"model.conv_channels": 8, "model.primary_types": 2, "model.decoder_hidden": (16, 32)},
    "mini": SMALLER["mini"],
    "quarter": SMALLER["quarter"],
    "full": {},
}
"""Fields of the capsule network by the name of its size; those of the paper are full."""

_BATCH = 128


@dataclass(frozen=True)
class Settings:
    """What claims are tested with."""

    size: SizeName = "mini"
    """Size of the capsule network: 64, 128 or 256 channels, 8, 16 or 32 types; tiny: to see that it runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initialisation, order and choice of images; two or more for intervals."""
    fractions: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Parts of the training images, percent, 0.5 to 100 for example; the networks of the largest one serve
    all experiments."""
    epochs: float = 5
    """Passes over the largest part; networks of smaller parts take as many steps."""
    images: int | None = None
    """Training images of which the fractions are; None: all."""
    test_images: int | None = 2000
    """The first so many test images are transformed, disturbed and arranged; None: all. Errors against
    training data are always of all."""
    data: str = "mnist"
    """Packed set of 28x28 grey images in 10 classes."""
    root: str = "data"
    """Folder or s3:// URL of the packed sets; parts of the training split are written beside it."""
    storage: str = "runs"
    """Folder or s3:// URL of the study's folder."""
    name: str = "claims"
    """Name of the study's folder: runs, measurements, claims.json, claims.md and figures."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of the runs; experiments are on the GPU if there is one."""

    @property
    def without_places(self) -> dict[str, Any]:
        """Return them as a record has them: where a study lay says nothing to others."""
        return vars(self) | {"root": "", "storage": ""}

    def checked(self) -> Settings:
        """Return these settings, fractions ascending.

        Raises:
            ConfigError: a value is out of its range; names all.
        """
        found, seeds, fractions = list[Problem](), self.seeds, self.fractions
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            found.append(Problem("seeds", seeds, "are not distinct numbers from 0", "give --seeds 0 1 2"))
        if (
            not fractions
            or len(set(fractions)) < len(fractions)
            or not 0 < min(fractions) <= max(fractions) <= 100
        ):
            rule = "are not distinct numbers above 0, up to 100 percent"
            found.append(Problem("fractions", fractions, rule, "give --fractions 1 10 100"))
        for name in ("epochs", "images", "test_images"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(Problem(name, value, "must be above 0", f"leave out --{name.replace('_', '-')}"))
        if found:
            raise ConfigError(found)
        return replace(self, fractions=tuple(sorted(fractions)))


@dataclass(frozen=True)
class Trained:
    """A network to train: which of the two, its seed, the part of the images in percent, steps, its run."""

    network: str
    seed: int
    fraction: float
    steps: int
    config: Config

    @property
    def name(self) -> str:
        """Name of its cell in the grid of the study."""
        return self.config.train.name


def configs_of(
    settings: Settings, base: Config, seed: int, fraction: float, split: str, num_images: int, steps: int
) -> list[Trained]:
    """Return the runs of both networks with `seed` on `split`, which has `num_images`, for `steps`.

    base: preset with data set and network of the paper. Training shows the images as they are, without the
    random shift of the paper: no transformation of the test digits was seen.
    """
    batch = min(_BATCH, num_images)
    values = {
        **SIZES[settings.size],
        "data.root": settings.root,
        "data.train_split": split,
        "data.validation_split": None,
        "data.shift": 0,
        "data.lanes": 1,
        "train.storage": settings.storage,
        "train.device": settings.device,
        "train.precision": "fp32",
        "train.seed": seed,
        "train.global_batch_size": batch,
        "train.max_steps": steps,
        "train.epochs": -(-steps // -(-num_images // batch)),
        "train.stop_at_error": None,  # as presets of novel viewpoints have it; here all runs are equally long
        "train.patience": None,
        "data.further_tests": (),
        "train.checkpoint_every_steps": max(1, -(-steps // 5)),
        "train.keep_checkpoints": 1,
        "train.keep_best": 0,
        "train.loggers": ("jsonl",),
    }
    capsnet = with_values(base, values)
    model = matched_baseline(capsnet.model, capsnet.routing)
    baseline = capsnet.model_copy(update={"model": model, "routing": NoOptions(), "loss": NoOptions()})
    found = []
    for network, config in ((CAPSNET, capsnet), (BASELINE, baseline)):
        name = f"{config.data.name}-{settings.size}-{network}-{fraction:g}-seed-{seed}".replace(".", "_")
        named = with_values(config, {"train.name": name})
        found.append(Trained(network, seed, fraction, steps, named))
    return found
