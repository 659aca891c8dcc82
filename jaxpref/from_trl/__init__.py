"""Configs of TRL and axolotl, read without running anything and written as configs of ours."""
