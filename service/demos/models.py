"""The models of the demonstrations, built without weights: the entrypoints that their job specs
name.
"""

from torch import nn


def digits_cnn() -> nn.Module:
    """The batch-normed CNN of the MNIST notebook: `[rows, 1, 28, 28]` in [−1, 1] to
    log-probabilities `[rows, 10]`.
    """
    layers = nn.Sequential(
        nn.Conv2d(1, 10, 5, stride=2),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5, stride=2),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.BatchNorm1d(50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, 10),
        nn.LogSoftmax(dim=1),
    )
    return layers.eval()


def synthetic_mlp() -> nn.Module:
    """A smooth regressor, `[rows, 96]` to `[rows, 1]`: GELU has no kinks, so a few evaluations
    certify a row.
    """
    return nn.Sequential(
        nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)
    ).eval()
