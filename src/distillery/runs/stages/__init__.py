"""Several stages in one fit."""
