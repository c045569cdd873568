"""The corpora of Poro 2's continued pretraining.

Their shares: 30 % Finnish FineWeb2 (49.65B tokens, read once), 30 % FineWeb-Edu, 30 % StarCoder, 10 % FineMath; 165B
tokens in all, with the tokenizer of Llama 3.1. Source: "Multilingual continued pretraining" on AMD's ROCm blog, 2025.
"""
