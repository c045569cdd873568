"""From raw text to indexed datasets: doors to the commands, and recipes that name corpora."""
