"""What `torchrun` starts for test_processes.py: every process trains, and writes what it ends with."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_cases import FINETUNE, Interrupted, batches, conv_graph, loader, mlp_graph

import planish
from planish.passes.base import Context


def train(text, graph, data, **context):
    return planish.Pipeline.parse(text).run(graph, Context(data=data, **context)).graph


def main(folder):
    torch.set_num_threads(1)
    runs = {
        "list": train(FINETUNE, mlp_graph(), batches(4)),
        "loader": train(FINETUNE, mlp_graph(), loader(4)),
        "accumulated": train(f"{FINETUNE[:-1]}, accumulate=2}}", mlp_graph(), batches(2)),
        "batch-norm": train("finetune{epochs=2, distill=0.5}", conv_graph(), batches(4, (3, 8, 8), 5)),
        "learned-scales": train(
            "insert-fake-quant, calibrate, finetune{epochs=2, lr=0.005, scales=learned, freeze-batch-norm=3}",
            conv_graph(),
            batches(4, (3, 8, 8), 5),
        ),
    }
    gradual = (
        f'prune-gradually{{ratio=0.5, cuts=2, finetune="epochs=2, checkpoint-every=1", checkpoint="{folder}/state"}}'
    )
    data = batches(4, (3, 8, 8), 5)
    try:
        train(gradual, conv_graph(), Interrupted(data, 5))
    except KeyboardInterrupt:
        runs["resumed"] = train(gradual, conv_graph(), data)
    runs["whole"] = train(gradual.replace("/state", "/other"), conv_graph(), data)
    rank = torch.distributed.get_rank()
    for name, graph in runs.items():
        save_file({k: v.detach() for k, v in graph.weights.items()}, f"{folder}/{name}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
