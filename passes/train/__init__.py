"""Training inside a pipeline: fine-tuning, distillation, and pruning in steps around a training loop."""
