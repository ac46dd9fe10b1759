"""What makes every automation safe to run twice, late or half: nudges, claims, journal, poison."""
