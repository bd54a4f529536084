"""What a training will take, before it starts: steps, time, memory and the batch that fits."""
