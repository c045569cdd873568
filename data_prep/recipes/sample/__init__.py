"""The sample mix: real text for each source of the mixture, from what any Python installation and this folder hold."""
