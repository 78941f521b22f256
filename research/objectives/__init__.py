"""What a run minimises. An objective turns a window of tokens into an example and a batch of them
into a sum of losses.

Every objective has `window_length(sequence_length)` and `overlap`, the tokens that an example takes
and shares with the next one; `example(window, rng)`, arrays of one row; and `loss(model, trainable,
frozen, batch, key)`, which returns a sum of losses in nats, the count of tokens it is over, and
further (sum, count) pairs to report. Sums and counts, so that accumulation, packing and the number
of devices cannot change the loss.
"""
