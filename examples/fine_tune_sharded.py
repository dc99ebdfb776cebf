"""Fine-tune a cut folder of Hugging Face on several accelerators, each of which holds a part of every weight (FSDP).

    graphsurgery compress hf:big --keep 0.5 -o small
    accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
        --num_processes 8 --mixed_precision bf16 examples/fine_tune_sharded.py small tokens.npy tuned

What `compress` writes is a folder like any other, so any script and any trainer takes it. This one learns to predict
the next token; `tokens.npy` holds whole numbers `[rows, tokens]`, which are taken in order.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def fine_tune(accelerator: Accelerator, model: nn.Module, tokens: Tensor, *, rows: int = 1, lr: float = 1e-5) -> Any:
    """One pass over the rows of tokens, so many in each process at a time; gives the prepared model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    loader = DataLoader(TensorDataset(tokens), batch_size=rows, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    for (batch,) in loader:
        logits = model(input_ids=batch)["logits"]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def main(folder: str, tokens: str, out: str) -> None:
    from transformers import AutoModelForCausalLM

    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tuned = fine_tune(accelerator, model, torch.from_numpy(np.load(tokens)).long())
    state = accelerator.get_state_dict(tuned)  # whole, in the first process
    if accelerator.is_main_process:
        model.save_pretrained(out, state_dict=state)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
