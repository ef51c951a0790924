"""What is measured of a trained network: quality and collapse, with the verdicts."""
