"""Imports once, in the parent, what DeepSpeed would import in every forked rank: seconds for each rank of each test."""

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx  # noqa: F401

import megatron_poro.engine.pipeline_engine  # noqa: F401
