"""The corpora of Poro 34B: one file a source of its mixture.

What is written to where and with which weight is in ``configs/data/poro_34b.yaml``. Files that begin with ``_`` read
formats.
"""
