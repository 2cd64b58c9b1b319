"""README.md of an exported network: the card that model hubs show."""

from __future__ import annotations

import shlex

from capsdist import __version__
from capsdist.algorithms import find_algorithm
from capsdist.config import Config
from capsdist.config.images import sides, size_text
from capsdist.config.models import Routing, find_family
from capsdist.config.shapes import image_shape
from capsdist.data.sets.spec import find_dataset
from capsdist.errors import ConfigError
from capsdist.export.subject import Subject
from capsdist.storage.documents import printable

__all__ = ["model_card"]

_SHOWN_CLASSES = 30


def model_card(subject: Subject) -> str:
    """Return the card in Markdown, its header in YAML.

    What is not known is said to be so: an error that nobody measured, the licence of the weights. Nothing is
    said of a source that family or routing algorithm do not name.
    """
    saved, config = subject.saved, subject.config
    family = find_family(config.model.kind)
    title, licence = _data_set(config)
    num_parameters = sum(parameter.numel() for parameter in subject.predictor.network.parameters())
    averaged = ", weights averaged over steps" if config.optim.average_decay else ""
    return f"""---
library_name: capsdist
pipeline_tag: image-classification
tags:
- image-classification
- {config.model.kind}
---
# {config.train.name}: {family.title}

{num_parameters:,} parameters, after {saved.step:,} steps of preset `{config.preset}`{averaged}.

```python
import capsdist

network = capsdist.load("FOLDER")  # the folder of this file
found = network.predict(["IMAGE.png"])  # found.names, found.scores
```

## Data

{title}; split `{config.data.train_split}` for training.{licence}

{_classes(subject)}

## Error

{_error(subject)}

## Input

{_input(config)}

## Intended use

Research and teaching, on images like those of the data set, which show {config.model.num_labels} of its
classes. An image that shows none of them gets a class too. Scores are not probabilities. Other images and
other uses were not tested. The licence of the weights is for their owner to state.

## Source

{_sources(config)}Written by capsdist {__version__}; `config.json` has the whole configuration.
"""


def _sources(config: Config) -> str:
    """Return who published network and routing, a line each; "" if one of them is a control, or nobody's."""
    found = [find_family(config.model.kind).source]
    if isinstance(config.routing, Routing):
        found.append(find_algorithm(config.routing.algorithm).source)
    return "".join(f"- {source}.\n" for source in dict.fromkeys(found)) + "\n" if all(found) else ""


def _data_set(config: Config) -> tuple[str, str]:
    """Return what the data set is, and the sentence on its licence."""
    name = config.data.name
    try:
        found = find_dataset(name)
    except ConfigError:  # a set of the user's
        return f"data set `{name}`" if name else "data set without a name", ""
    return found.title, f" Licence of the images: {found.licence}." if found.licence else ""


def _classes(subject: Subject) -> str:
    classes = subject.predictor.classes
    shown = ", ".join(f"`{printable(name)}`" for name in classes[:_SHOWN_CLASSES])
    more = f" and {len(classes) - _SHOWN_CLASSES:,} more in `config.json`" * (len(classes) > _SHOWN_CLASSES)
    return f"{len(classes):,} classes: {shown}{more}."


def _error(subject: Subject) -> str:
    if (found := subject.error) is None:
        return "Not measured. `capsdist evaluate FOLDER --split SPLIT` measures it on a packed split."
    return f"""error_percent {found.error_percent:.2f} on {found.split}, {found.measured}. Repeat it:

```bash
capsdist evaluate FOLDER --split {shlex.quote(found.split)}
```"""


def _input(config: Config) -> str:
    data, model = config.data, config.model
    steps = []
    if data.crop:
        steps.append(f"the central {size_text(sides(data.crop))} is cut out")
    if data.resize:
        steps.append(f"the largest central part is resized to {size_text(sides(data.resize))}")
    if data.standardise:
        steps.append("each image is standardised")
    elif data.normalise_mean:
        means, deviations = (", ".join(map(str, each)) for each in (data.normalise_mean, data.normalise_std))
        steps.append(f"pixels in [0, 1], less the means {means}, over the deviations {deviations}")
    else:
        steps.append("pixels are grey levels over 255")
    shape = " x ".join(map(str, image_shape(model)))
    return f"{shape} (C x H x W): {'; '.join(steps)}. `capsdist.load` does so by itself."
