"""All guards, by name."""

from tests.guards_off import checkpoints, clusters, corpora, exports, jobs, models, rules, steps

ROOMS = {
    "steps": steps.GUARDS,
    "jobs": jobs.GUARDS,
    "checkpoints": checkpoints.GUARDS,
    "exports": exports.GUARDS,
    "corpora": corpora.GUARDS,
    "models": models.GUARDS,
    "clusters": clusters.GUARDS,
    "rules": rules.GUARDS,
}
"""The guards of each file of this folder."""

GUARDS = tuple(guard for guards in ROOMS.values() for guard in guards)

BY_NAME = {guard.name: guard for guard in GUARDS}
