"""Settings that an earlier version saved with a checkpoint."""

from collections.abc import Mapping
from typing import Any

# Version 0.1 saved these among the data settings, though they follow from others.
DERIVED = {"image_size", "patch_size", "ipd", "ipd_use", "ipd_margin", "seed", "num_boxes"}


def upgrade(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings as this version names them.

    Version 0.1 had no `task`, and None in the place of a group whose part the model does not have; such groups are left
    out, since their settings are not known.

    Args:
        saved: nested dict, of a run (all groups) or of a converted model (only `model`).
    """
    if "task" in saved:
        return dict(saved)
    groups = {name: dict(values) if isinstance(values, Mapping) else values for name, values in saved.items()}
    model, data = groups.get("model", {}), groups.get("data", {})
    if "data" in groups:
        has_detector = model.get("detector") is not None
        groups["task"] = "detection" if has_detector else "domains" if data.get("domains") else "retrieval"
        groups["data"] = {name: value for name, value in data.items() if name not in DERIVED}
    for group in groups.values():
        if isinstance(group, dict):
            for name in [name for name, value in group.items() if value is None]:
                del group[name]
    return groups
