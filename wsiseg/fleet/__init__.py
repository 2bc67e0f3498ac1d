"""Many slides: each into its own file, none lost, none done twice, here or on a cluster.

    jobs = fleet.jobs_in_folder("slides", ["outline the nuclei"])   # or fleet.read_manifest("slides.csv")
    records = fleet.run(jobs, "results", fleet.Settings(threshold=0.6))

`jobs` says what to do, `work` does one slide, `claim` keeps two processes apart, `record` remembers, `run_files`
tell all of it, `runner` goes through all of them; `tiling` makes tile stores of them.
"""

from __future__ import annotations

from wsiseg.fleet.jobs import Job, jobs_in_folder, read_manifest, slurm_shard, take_shard
from wsiseg.fleet.record import Record, Settings
from wsiseg.fleet.run_files import read_run
from wsiseg.fleet.runner import Report, run
from wsiseg.fleet.tiling import tile_slide, tile_slides

__all__ = [
    "Job",
    "Record",
    "Report",
    "Settings",
    "jobs_in_folder",
    "read_manifest",
    "read_run",
    "run",
    "slurm_shard",
    "take_shard",
    "tile_slide",
    "tile_slides",
]
