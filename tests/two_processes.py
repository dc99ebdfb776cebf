"""Work in two processes that are a group, over gloo, as a launcher starts them."""

import functools
import os

import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.tensor
from forked import Forked

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` puts into the environment."""


def in_two(work, **environment):
    """Call `work(rank)` in two forks of this process, which share its imports; both have to end well."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": True, **environment}
    children = [Forked(functools.partial(_as_rank, work, rank, shared)) for rank in range(2)]
    assert [child.wait() for child in children] == [0, 0]


def _as_rank(work, rank, shared):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what this process has trained before
    os.environ |= {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
    work(rank)
    torch.distributed.barrier()


def shard_on_cpu():
    """Let Accelerate spread parameters over processes without an accelerator too, which it leaves out on its own."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def init(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        state = AcceleratorState._shared_state
        state["distributed_type"] = DistributedType.FSDP
        if getattr(self, "fsdp_plugin", None) is None:
            state["fsdp_plugin"] = FullyShardedDataParallelPlugin()

    AcceleratorState.__init__ = init
