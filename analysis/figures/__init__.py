"""Pictures of measures, in one style."""
