"""Other kinds of capsules on the digits of the quickstart: minutes on 2 CPU cores; ours."""

from __future__ import annotations

from capsdist.config.em_capsnet import EMCapsNetConfig, EMRouting, SpreadLoss
from capsdist.config.presets.mnist import digits_quickstart
from capsdist.config.schema import Config
from capsdist.config.values import with_values


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


PRESETS = (digits_em,)
