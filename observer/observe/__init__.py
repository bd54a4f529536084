"""`observer grade`, `extract` and `observe`: conversations in, observations out, as a stream that can be resumed."""
