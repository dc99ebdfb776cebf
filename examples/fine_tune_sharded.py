"""Fine-tune a cut folder of Hugging Face with its weights spread over several accelerators (FSDP): docs/large.md."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset


def fine_tune(accelerator: Accelerator, model: Any, tokens: torch.Tensor, rows: int = 1, lr: float = 1e-5) -> Any:
    """Learn to predict the next token, from so many rows in each process at a time; gives the prepared model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    data = DataLoader(TensorDataset(tokens), batch_size=rows, drop_last=True)
    model, optimizer, data = accelerator.prepare(model.train(), optimizer, data)
    for (batch,) in data:
        logits = model(input_ids=batch)["logits"]
        accelerator.backward(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM

    folder, numbers, out = sys.argv[1:]
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tuned = fine_tune(accelerator, model, torch.from_numpy(np.load(numbers)).long())
    state = accelerator.get_state_dict(tuned)  # whole, in the first process
    if accelerator.is_main_process:
        model.save_pretrained(out, state_dict=state)
    accelerator.end_training()
