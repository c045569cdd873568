"""What is known about single corpora: how their documents are put together, and the mixes made of them."""
