"""Every public entry of palkit, with its bad input: for tests/test_bad_input.py and campaigns/fuzz.py."""

from collections.abc import Callable

from bad_arrays import adapter_cases, checkpoint_cases, fixed_adapters, fixed_checkpoints, fixed_shards, shard_cases
from bad_calls import (
    device_cases,
    fixed_forecasts,
    fixed_selections,
    fixed_sessions,
    forecast_cases,
    question_cases,
    select_cases,
    session_cases,
)
from bad_configs import command_cases, config_cases, fixed_commands, fixed_configs, fixed_sweeps, sweep_cases
from bad_files import (
    archive_cases,
    fixed_archives,
    fixed_pictures,
    fixed_session_files,
    picture_cases,
    session_file_cases,
)
from bad_input import Case, World
from bad_tables import (
    csv_cases,
    fixed_imports,
    fixed_logs,
    fixed_manifests,
    label_csv_cases,
    label_studio_cases,
    log_cases,
    parquet_cases,
)
from hypothesis.strategies import SearchStrategy

# All entries: name -> (strategy of random cases, known cases, share of a campaign)

Drawn = Callable[[World], SearchStrategy[Case]]
ENTRIES: dict[str, tuple[Drawn, Callable[[World], dict[str, Case]], float]] = {
    "config": (config_cases, fixed_configs, 0.15),
    "command line": (command_cases, fixed_commands, 0.06),
    "sweep": (sweep_cases, fixed_sweeps, 0.08),
    "manifest csv": (csv_cases, fixed_manifests, 0.06),
    "manifest parquet": (parquet_cases, lambda _: {}, 0.05),
    "images": (picture_cases, fixed_pictures, 0.1),
    "label log": (log_cases, fixed_logs, 0.07),
    "label csv": (label_csv_cases, fixed_imports, 0.06),
    "label studio": (label_studio_cases, lambda _: {}, 0.06),
    "session file": (session_file_cases, fixed_session_files, 0.04),
    "session": (session_cases, fixed_sessions, 0.04),
    "shards": (shard_cases, fixed_shards, 0.07),
    "select": (select_cases, fixed_selections, 0.08),
    "adapter": (adapter_cases, fixed_adapters, 0.02),
    "checkpoint": (checkpoint_cases, fixed_checkpoints, 0.02),
    "archive": (archive_cases, fixed_archives, 0.03),
    "forecast": (forecast_cases, fixed_forecasts, 0.05),
    "explorer": (question_cases, lambda _: {}, 0.03),
    "devices": (device_cases, lambda _: {}, 0.03),
}
