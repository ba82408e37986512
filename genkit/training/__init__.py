"""One generic trainer: the loop, the execution of a step, the batches, the optimisers and the signals."""
