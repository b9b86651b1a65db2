"""Reports: pages that people look at: a run, a leaderboard, charts, galleries of samples."""
