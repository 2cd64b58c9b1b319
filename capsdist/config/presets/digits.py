"""Other kinds of capsules on the digits of the quickstart: minutes on 2 CPU cores; ours."""

from __future__ import annotations

from capsdist.config.conv_capsnet import ConvCapsNetConfig, ConvRouting
from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting, SpreadLoss
from capsdist.config.presets.mnist import digits_quickstart
from capsdist.config.schema import Config
from capsdist.config.values import with_values

_STEM = {"conv_channels": 64, "conv_kernel": 5, "primary_kernel": 5, "padding": "valid"}


def digits_conv() -> Config:
    """Two capsule layers, one of convolutional capsules and the class capsules, on 3,600 real digits."""
    model = ConvCapsNetConfig.model_validate({**_STEM, "capsule_dims": (8,)})
    return _on_digits("digits-conv", model)


def digits_deep() -> Config:
    """Four capsule layers, three of convolutional capsules, residual and normalised, on 3,600 real digits."""
    model = ConvCapsNetConfig.model_validate(
        {
            **_STEM,
            "capsule_types": (8, 8, 8),
            "capsule_dims": (8, 8, 8),
            "capsule_kernels": (3, 3, 3),
            "capsule_strides": (2, 1, 1),
            "residual": True,
            "pose_norm": True,
        }
    )
    return _on_digits("digits-deep", model)


def digits_stack() -> Config:
    """One layer of convolutional capsules, which jobs/depth_curve.py stacks; short, on 3,600 real digits."""
    model = ConvCapsNetConfig.model_validate(
        {**_STEM, "conv_channels": 32, "conv_stride": 2, "padding": "same", "primary_kernel": 3,
         "capsule_dims": (8,), "capsule_strides": (1,)}
    )  # fmt: skip
    config = _on_digits("depth-curve", model)
    train = config.train.model_copy(update={"num_workers": 1, "global_batch_size": 32, "epochs": 2})
    return config.model_copy(update={"train": train})


def digits_em() -> Config:
    """Matrix capsules with EM routing, a layer of them and the class capsules, on 3,600 real digits."""
    model = EMCapsNetConfig(
        conv_channels=64,
        conv_kernel=9,
        primary_types=8,
        capsule_types=(16,),
        capsule_kernels=(5,),
        capsule_strides=(2,),
    )
    # 2,000 children a class capsule are few beside the paper's: a larger lambda makes up for it
    routing = EMRouting(iterations=2, inverse_temperature=0.1, temperature_decay=0.5)
    base = digits_quickstart()
    values = {
        "optim.epsilon_placement": "tensorflow",
        "optim.learning_rate": 1e-2,
        "optim.decay_rate": 0.8,
        "optim.decay_steps": 150,
        "train.name": "digits-em",
        "train.epochs": 14,
        "train.global_batch_size": 32,
    }
    plain = Config(
        model=model, routing=routing, loss=SpreadLoss(), data=base.data, optim=base.optim, train=base.train
    )
    return with_values(plain, values)


def _on_digits(name: str, model: ConvCapsNetConfig) -> Config:
    base = digits_quickstart()
    optim = base.optim.model_copy(update={"learning_rate": 2e-3})
    train = base.train.model_copy(update={"name": name, "epochs": 8})
    return Config(model=model, routing=ConvRouting(), data=base.data, optim=optim, train=train)


PRESETS = (digits_conv, digits_deep, digits_em, digits_stack)
