"""The sample corpora as recipes: what ``data_prep.sample_corpora`` writes, for the mixture of ``smoke_cpu``."""
