"""Guards over Slurm's jobs: what is refused before Slurm is asked, what a node must have, when a run needs a person."""

from tests.guards_off.switch import Guard

_PREFLIGHT = "unit/cluster/test_preflight.py"
_LEDGER = "unit/cluster/test_ledger.py"
_LIMITS = "unit/cluster/test_submitting.py::test_what_lumi_would_refuse_is_refused_first"

GUARDS = (
    Guard(
        name="limits of a cluster",
        keeps="a job that the cluster would refuse, or hold for ever, is refused first",
        where="megatron_poro.cluster.limits:check_job",
        missed_by=(_LIMITS,),
    ),
    Guard(
        name="limits of a partition",
        keeps="a job stays within the time, nodes, devices and cores of its partition",
        where="megatron_poro.cluster.limits:_beyond",
        instead="yield from ()",
        missed_by=(_LIMITS,),
    ),
    Guard(
        name="time to train",
        keeps="a job's time is longer than its start and its last save",
        where="megatron_poro.cluster.limits:_problems",
        off='if kind == "train" and seconds <= margin:',
        instead="if False:",
        missed_by=(_LIMITS,),
    ),
    Guard(
        name="tensor groups on a node",
        keeps="no tensor group reaches over the border of a node",
        where="megatron_poro.cluster.rank_map:check_rank_map",
        missed_by=("unit/cluster/test_submitting.py::test_tensor_groups_stay_on_a_node",),
    ),
    Guard(
        name="tasks in blocks",
        keeps="a job whose tasks are not where the grid wants them does not train",
        where="megatron_poro.cluster.rank_map:misplaced",
        instead="return []",
        missed_by=(
            "unit/cluster/test_submitting.py::test_tasks_that_were_dealt_in_turn_are_noticed",
            f"{_PREFLIGHT}::test_tasks_that_are_dealt_in_turn_are_no_nodes_fault",
        ),
    ),
    Guard(
        name="cores of a task",
        keeps="a task that may use other cores than its mask is told",
        where="megatron_poro.cluster.preflight:look_at_node",
        off="if place.masks and",
        instead="if False and",
        missed_by=(f"{_PREFLIGHT}::test_cores_that_are_not_the_masks_are_told",),
    ),
    Guard(
        name="interfaces of a node",
        keeps="a node whose network is down is named",
        where="megatron_poro.cluster.preflight:interface_state",
        instead='return "up"',
        missed_by=(f"{_PREFLIGHT}::test_interfaces_that_are_not_up_are_named_once_a_node",),
    ),
    Guard(
        name="shared memory of a node",
        keeps="a node with too little shared memory is named",
        where="megatron_poro.cluster.preflight:look_at_node",
        off="if shared < settings.min_shared_memory_bytes:",
        instead="if False:",
        missed_by=(f"{_PREFLIGHT}::test_little_shared_memory_is_called_by_its_name",),
    ),
    Guard(
        name="free space of a job",
        keeps="a job does not train towards a full disk",
        where="megatron_poro.cluster.preflight_report:judge",
        off="if free is not None and free < settings.min_free_bytes:",
        instead="if False:",
        missed_by=(f"{_PREFLIGHT}::test_a_full_disk_is_no_nodes_fault",),
    ),
    Guard(
        name="one software on all nodes",
        keeps="a node with other versions than most is named",
        where="megatron_poro.cluster.preflight_report:_broken",
        off="if json.dumps(finding.versions, sort_keys=True) != common[0][0] and finding.host not in broken:",
        instead="if False:",
        missed_by=(f"{_PREFLIGHT}::test_other_versions_are_a_fault",),
    ),
    Guard(
        name="nodes that say nothing",
        keeps="a node whose tasks never looked at it is named",
        where="megatron_poro.cluster.preflight_report:_broken",
        off="if host not in seen:",
        instead="if False:",
        missed_by=(f"{_PREFLIGHT}::test_a_node_that_says_nothing_is_the_one",),
    ),
    Guard(
        name="slow nodes",
        keeps="a node that is slow with every partner gets a strike",
        where="megatron_poro.cluster.preflight_report:_slow",
        instead="return {}",
        missed_by=(f"{_PREFLIGHT}::test_a_slow_node_gets_a_strike_and_trains",),
    ),
    Guard(
        name="blame on every node",
        keeps="what every node has is no node's fault",
        where="megatron_poro.cluster.preflight_report:judge",
        off="if len(hosts) > 1 and set(broken) == set(hosts)",
        instead="if False",
        missed_by=(f"{_PREFLIGHT}::test_what_every_node_has_no_node_is_to_blame_for",),
    ),
    Guard(
        name="stopped runs stay stopped",
        keeps="a run that a person has stopped is not started by its next job",
        where="megatron_poro.cluster.chain:begin",
        off="if folder.stop_mark.exists():",
        instead="if False:",
        missed_by=(f"{_LEDGER}::test_a_run_that_was_stopped_does_not_start",),
    ),
    Guard(
        name="finished runs stay finished",
        keeps="a run whose last step is saved is not started again",
        where="megatron_poro.cluster.chain:begin",
        off="if step >= last_step(",
        instead="if False and step >= last_step(",
        missed_by=(f"{_LEDGER}::test_a_run_goes_on_until_its_last_step_is_saved",),
    ),
    Guard(
        name="jobs that bring nothing",
        keeps="job after job without a newer checkpoint asks for a person",
        where="megatron_poro.cluster.chain:end",
        off="if verdict == CONTINUE and history.fruitless(step) >= settings.max_fruitless_jobs:",
        instead="if False:",
        missed_by=(f"{_LEDGER}::test_what_may_be_better_next_time_is_tried_again_but_not_for_ever",),
    ),
    Guard(
        name="ends that need a person",
        keeps="what would come to the same again is not started again",
        where="megatron_poro.cluster.chain:end",
        off="{code, *(failure.code for failure in failures)} & set(NEEDS_A_PERSON)",
        instead="False",
        missed_by=(f"{_LEDGER}::test_what_would_come_to_the_same_again_needs_a_person",),
    ),
    Guard(
        name="strikes",
        keeps="the node whose task failed first gets a strike",
        where="megatron_poro.cluster.chain:strike",
        missed_by=(
            f"{_LEDGER}::test_the_node_that_failed_first_gets_the_strike",
            f"{_LEDGER}::test_two_strikes_keep_a_node_out",
        ),
        error="FileNotFoundError",
    ),
)
