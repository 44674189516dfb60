"""Rollout and scoring of GUI agents on recorded trajectories."""
