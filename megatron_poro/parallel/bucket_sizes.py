"""How large a bucket of gradients is. Pure arithmetic, no torch, for the engine and for plans."""


def bucket_numbers(replicas: int) -> int:
    """Numbers of a process's gradients that are sent to its replicas at a time.

    Few enough that the first are sent early, and enough that each replica's share is worth a message.

    Source: Megatron-LM, ``megatron/core/distributed/distributed_data_parallel.py``.
    """
    return max(40_000_000, 1_000_000 * replicas)
