"""Methods side by side on one task."""
