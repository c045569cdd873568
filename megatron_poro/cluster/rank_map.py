"""Which process computes what on which node, and whether neighbours on the grid are neighbours in the machine.

Tasks are dealt to nodes in blocks, so rank ``r`` is on node ``r // tasks_per_node``. Tensor ranks, which speak most,
are consecutive; a pipeline neighbour is as far away as a stage has processes.
"""

from collections.abc import Iterator

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.topology import Topology


def check_rank_map(topology: Topology, *, tasks_per_node: int) -> None:
    """Refuses a grid whose tensor groups reach over the border of a node.

    Raises:
        TopologyError: with sizes that work.
    """
    tensor = topology.tensor
    if topology.world_size <= tasks_per_node or tasks_per_node % tensor == 0:
        return
    fitting = [str(size) for size in range(1, tasks_per_node + 1) if tasks_per_node % size == 0]
    raise TopologyError(
        f"parallel.tensor={tensor} does not divide the {tasks_per_node} processes of a node, so tensor groups would "
        f"speak over the network in every layer. Use {', '.join(fitting)}."
    )


def describe_rank_map(topology: Topology, *, tasks_per_node: int, devices_per_module: int) -> Iterator[str]:
    """What lies where, a line each."""
    per_stage = topology.data * topology.tensor
    count = min(tasks_per_node, topology.world_size)
    first, last = topology.coordinate(0), topology.coordinate(count - 1)
    yield (
        f"node 0 has {_range('rank', 0, count - 1)}: {_range('stage', first.pipeline, last.pipeline)}, "
        f"{_range('replica', first.data, last.data)}"
    )
    if topology.tensor > 1:
        where = "share a module" if devices_per_module % topology.tensor == 0 else "share a node"
        yield f"tensor ranks {', '.join(map(str, topology.tensor_ranks(first)))} {where}, and so on"
    if topology.pipeline > 1:
        nodes = per_stage / tasks_per_node
        yield f"a pipeline neighbour is {per_stage} ranks away, " + (
            f"{nodes:g} nodes" if nodes >= 1 else f"on the same node or the next one ({tasks_per_node} ranks a node)"
        )


def misplaced(hosts: list[str], *, tasks_per_node: int) -> list[str]:
    """What is wrong with where the ranks are, in sentences.

    Args:
        hosts: the node of each rank.
        tasks_per_node: processes of each node.
    """
    problems = []
    for start in range(0, len(hosts), tasks_per_node):
        block = hosts[start : start + tasks_per_node]
        if len(set(block)) > 1:
            problems.append(
                f"ranks {start} to {start + len(block) - 1} should be one node and are {', '.join(sorted(set(block)))}"
            )
    return problems


def _range(noun: str, first: int, last: int) -> str:
    return f"{noun} {first}" if first == last else f"{noun}s {first} to {last}"
