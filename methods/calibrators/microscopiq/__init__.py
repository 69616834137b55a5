"""MicroScopiQ: microscaling integers with outliers of twice the bits, paid for by pruned weights beside them."""
