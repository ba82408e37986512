"""The mutation campaign of the parity gate: small models, faults that are planted in their exports, other checkers."""
