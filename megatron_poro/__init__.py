"""megatron_poro: 3D-parallel training of large language models on DeepSpeed and Hydra.

Importing the package imports nothing else; every room is imported by name.
"""

__version__ = "0.1.0"
