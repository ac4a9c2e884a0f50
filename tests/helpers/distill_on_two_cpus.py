"""One of torchrun's processes: distil on a CPU with gloo, and save what the ranks must share.

    torchrun --nproc-per-node 2 distill_on_two_cpus.py FOLDER    # with config.json in it

Ultralytics starts process groups on GPUs only; the trainer here does the same on CPUs.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from drone_kd_training.distillation import distill as distill_module
from drone_kd_training.distillation import trainer as trainer_module
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.loss_balancing import average_over_processes
from drone_kd_training.distillation.trainer import DistillTrainer

RANK = int(os.environ["RANK"])


class GlooTrainer(DistillTrainer):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.images: set[str] = set()
        shared["trainer"] = self

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo")

    def preprocess_batch(self, batch: dict) -> dict:
        self.images.update(batch["im_file"])
        return super().preprocess_batch(batch)


class CpuParallel(nn.parallel.DistributedDataParallel):
    def __init__(self, module: nn.Module, device_ids: list, **kwargs) -> None:
        super().__init__(module, **kwargs)  # device ids are for GPUs


shared: dict[str, GlooTrainer] = {}
nn.parallel.DistributedDataParallel = CpuParallel
distill_module.DistillTrainer = GlooTrainer
torch.set_num_threads(1)
trainer_module._cores = torch.get_num_threads  # as in the other tests
folder = Path(sys.argv[1])
config = Config(**json.loads((folder / "config.json").read_text()))
metrics = distill_module.distill(config, folder / "out", measure_teacher=False)
trainer = shared["trainer"]
found = {
    "metrics": metrics,
    "average": average_over_processes(torch.tensor([float(RANK), 10.0])).tolist(),
    "balance": trainer.student.criterion.balance.state(),
    "student": dict(trainer.student.named_parameters()),
    "adapters": trainer.adapters.state_dict(),
    "images": trainer.images,
}
torch.save(found, folder / f"rank{RANK}.pt")
