"""What a run will need and how fast it will be, computed in advance: no torch, no GPU, no data."""
