"""What our dependencies would tell their makers, switched off. We tell nobody anything ourselves.

They read their switches when they are imported: `switch_off` comes first, and every command calls it.
"""

from __future__ import annotations

import os

SWITCHES = {
    "DO_NOT_TRACK": "1",  # any that keeps to https://donottrack.sh, huggingface_hub among them
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's trainers report themselves through huggingface_hub
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",  # its logging is the user's own wish: training.report_to
}


def switch_off() -> None:
    """Set every switch in the environment, for child processes too; what the user has set stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
