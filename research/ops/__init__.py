"""Operations on arrays: the one einsum, attention, norms, rotary positions, routing, losses."""
