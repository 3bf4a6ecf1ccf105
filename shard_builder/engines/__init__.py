"""Engines run the builder's tasks: where and with how many processes. To add one: one file, one line here."""

from shard_builder.engines.processes import ProcessesEngine

ENGINES = {
    "processes": ProcessesEngine,
}
