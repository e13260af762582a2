"""What a user would write today: Ray Data map_batches with Captum IntegratedGradients(n_steps=50)
in an actor pool.

Run as its own process: `python peer_ray_data.py SOURCE OUTPUT ACTIVATION WORKERS`. Prints the
seconds that its pipeline took, start-up included. The actors get less than all CPUs, or the read
tasks starve.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(source: str, output: str, activation: str, workers: int) -> None:
    started = time.perf_counter()
    import numpy as np
    import ray
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from models import FEATURES, mlp

    class Explainer:
        def __init__(self) -> None:
            from captum.attr import IntegratedGradients

            torch.set_num_threads(1)
            self.method = IntegratedGradients(mlp(activation).requires_grad_(False))

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            x = torch.from_numpy(np.stack([batch[f] for f in FEATURES], 1))
            found = self.method.attribute(x, target=0, n_steps=50, internal_batch_size=3200)
            return {"id": batch["id"]} | {
                f"attr.{f}": found[:, i].numpy() for i, f in enumerate(FEATURES)
            }

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = ray.data.read_parquet(source).map_batches(
        Explainer, batch_size=1024, num_cpus=0.5, concurrency=workers, batch_format="numpy"
    )
    made.write_parquet(output)
    print(f"seconds {time.perf_counter() - started:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
