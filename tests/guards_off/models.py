"""Guards over what a model is made of: its tokenizer, its grid, and weights that come from elsewhere."""

from tests.guards_off.switch import Guard

_SENTENCEPIECE = "unit/tokenizer/test_sentencepiece.py"
_TOKENIZER = "unit/tokenizer/test_tokenizer.py"
_MEGATRON = "unit/checkpoint/test_megatron_import.py"

GUARDS = (
    # --- tokenizers --------------------------------------------------------------------------------------------------
    Guard(
        name="ids of an imported tokenizer",
        keeps="a SentencePiece model whose import gives other ids is refused",
        where="megatron_poro.tokenizer.sentencepiece_import:_require_equal",
        missed_by=(f"{_SENTENCEPIECE}::test_an_import_that_gives_other_ids_is_refused",),
    ),
    Guard(
        name="kind of an imported tokenizer",
        keeps="a SentencePiece model that has no exact counterpart is refused",
        where="megatron_poro.tokenizer.sentencepiece_import:_require_representable",
        missed_by=(f"{_SENTENCEPIECE}::test_a_model_that_has_no_counterpart_is_refused",),
    ),
    Guard(
        name="order of imported merges",
        keeps="a SentencePiece model whose order of merges depends on the text is refused",
        where="megatron_poro.tokenizer.sentencepiece_import:_require_closed",
        off="if pieces > 1:",
        instead="if False:",
        missed_by=(f"{_SENTENCEPIECE}::test_pieces_of_one_score_are_refused",),
        error="RuntimeError",
    ),
    Guard(
        name="halves of surrogate pairs",
        keeps="what is not text is refused with its place",
        where="megatron_poro.tokenizer.tokenizer:_refuse_half_surrogates",
        missed_by=(f"{_TOKENIZER}::test_half_a_surrogate_pair_is_refused_with_its_place",),
        error="TypeError",
    ),
    Guard(
        name="trainer that was compared",
        keeps="a release of the fast trainer that nobody has compared is refused",
        where="megatron_poro.tokenizer.fast_training:_gigabpe",
        off="if found != VERSION:",
        instead="if False:",
        missed_by=("unit/tokenizer/test_fast_training.py::test_a_release_that_nobody_compared_is_refused",),
    ),
    # --- grids -------------------------------------------------------------------------------------------------------
    Guard(
        name="grid of the processes",
        keeps="a grid that is not the number of processes is refused",
        where="megatron_poro.parallel.groups:ParallelGroups.create",
        off="if world.size != topology.world_size:",
        instead="if False:",
        missed_by=("distributed/test_tensor_layers.py::test_a_grid_that_is_not_the_number_of_processes_is_refused",),
    ),
    Guard(
        name="layers for the stages",
        keeps="more stages than layers are refused",
        where="megatron_poro.parallel.stages:stage_boundaries",
        off="if len(cuts) < num_stages:",
        instead="if False:",
        missed_by=("unit/parallel/test_stages.py::test_more_stages_than_layers_are_refused",),
        error="KeyError",
    ),
    Guard(
        name="samples for the replicas",
        keeps="a batch that the replicas cannot share is refused",
        where="megatron_poro.data.sampler:Sampler.__post_init__",
        missed_by=(
            "unit/data/test_sampler.py::test_batch_that_replicas_cannot_share_is_refused_with_all_numbers",
            "unit/data/test_sampler.py::test_sizes_must_be_positive",
        ),
    ),
    Guard(
        name="flags of all processes",
        keeps="a flag that one process sets is set on all",
        where="megatron_poro.parallel.agreement:World.union",
        off="dist.all_reduce(merged, op=dist.ReduceOp.BOR, group=self.process_group)",
        instead="pass",
        missed_by=("distributed/test_agreement.py::test_values_and_flags_of_one_process_are_known_to_all",),
    ),
    Guard(
        name="kernels that cannot drop",
        keeps="a fused kernel whose dropout could not be reproduced is refused",
        where="megatron_poro.models.kernel_choice:choose_kernel",
        off="if dropout > 0.0:",
        instead="if False:",
        missed_by=("unit/models/test_attention.py::test_impossible_backends_are_refused",),
    ),
    # --- weights from elsewhere --------------------------------------------------------------------------------------
    Guard(
        name="weights that do not fit",
        keeps="weights that are not the model of their config are not imported",
        where="megatron_poro.checkpoint.importing:refuse",
        missed_by=(
            "unit/checkpoint/test_hf_import.py::test_a_tensor_that_does_not_fit_is_named",
            f"{_MEGATRON}::test_a_config_of_another_model_is_refused",
        ),
    ),
    Guard(
        name="tokenizer of imported weights",
        keeps="weights whose tokenizer has more ids than rows are not imported",
        where="megatron_poro.checkpoint.importing:read_description",
        off="if tokenizer.vocab_size > model.vocab_size:",
        instead="if False:",
        missed_by=(f"{_MEGATRON}::test_a_config_of_another_model_is_refused",),
    ),
    Guard(
        name="layers of imported weights",
        keeps="a layer with unknown or missing parameters is not imported",
        where="megatron_poro.checkpoint.megatron_import:_parameters",
        off="if part.keys() != table.keys():",
        instead="if False:",
        missed_by=(f"{_MEGATRON}::test_what_is_missing_unknown_or_damaged_is_named",),
    ),
    Guard(
        name="parameters that come twice",
        keeps="a parameter that two files hold is not imported",
        where="megatron_poro.checkpoint.megatron_import:_parameters",
        off="if prefix + name in found:",
        instead="if False:",
        missed_by=(f"{_MEGATRON}::test_what_is_missing_unknown_or_damaged_is_named",),
    ),
    Guard(
        name="exports that lost a tensor",
        keeps="an export without one of its tensors does not generate",
        where="megatron_poro.evaluate.loading:_filled",
        off="if missing:",
        instead="if False:",
        missed_by=("integration/test_generate.py::test_export_that_lost_a_tensor_is_refused",),
    ),
)
