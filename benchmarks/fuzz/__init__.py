"""Damaged bundles, and what is said about them: it must be no, in one or two lines, whatever the damage."""
