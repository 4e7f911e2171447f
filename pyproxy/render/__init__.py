"""Values to text; no decision is left to take here."""
