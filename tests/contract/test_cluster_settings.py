"""What tests on a cluster begin with is said in full: what one of them leaves, broken off or not, is no other's."""

from __future__ import annotations

import click

from cluster_addon import SETTINGS
from confcom.cli.addon import setting_options


def test_no_setting_is_left_to_what_was_before() -> None:
    @setting_options
    def command() -> None:
        """Nothing."""

    options: list[click.Option] = command.__click_params__  # type: ignore[attr-defined]
    said = {setting.partition("=")[0] for setting in SETTINGS} | {"--image"}
    for option in options:
        assert said & {*option.opts, *option.secondary_opts}, option.name
    assert len(said) == len(options)
