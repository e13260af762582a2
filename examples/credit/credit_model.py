"""A small network that says how likely a credit is repaid. `python credit_model.py` fits it."""

import csv
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FEATURES = (
    "checking_overdrawn",
    "checking_below_200",
    "savings_below_100",
    "months",
    "amount",
    "instalment_class",
    "years_employed",
    "other_instalments",
    "owns_home",
    "owns_land",
    "credits_here",
)


class Credit(nn.Module):
    """Features in raw units, `[rows, 11]`, to the probability of repayment, `[rows]`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("std", torch.ones(len(FEATURES)))
        self.net = nn.Sequential(
            nn.Linear(len(FEATURES), 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std).squeeze(1).sigmoid()


def build() -> nn.Module:
    return Credit().eval()


def fit(applications: Path) -> nn.Module:
    with applications.open() as file:
        rows = list(csv.DictReader(file))
    x = torch.tensor([[float(row[name]) for name in FEATURES] for row in rows])
    repaid = torch.tensor([float(row["repaid"]) for row in rows])
    torch.manual_seed(0)
    model = Credit()
    model.mean, model.std = x.mean(0), x.std(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy(model(x), repaid).backward()
        optimizer.step()
    return model.eval()


def save(model: nn.Module, weights: Path) -> None:
    save_file(model.state_dict(), weights)


if __name__ == "__main__":
    folder = Path(__file__).parent
    save(fit(folder / "applications.csv"), folder / "credit.safetensors")
