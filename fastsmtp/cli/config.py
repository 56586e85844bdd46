"""fastsmtp config: the effective configuration, each value with where it came from; and the example."""

from __future__ import annotations

from collections.abc import Sequence

from fastsmtp.cli.flags import make_parser, parse_flags


def run(arguments: Sequence[str]) -> int:
    parser = make_parser("config", "Show the configuration in effect, and where each value comes from.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--example", action="store_true", help="every key with its default, as a file to start from"
    )
    form.add_argument("--json", action="store_true", help="key to value and origin, for programs")
    form.add_argument("--markdown", action="store_true", help="every key as docs/configuration.md has it")
    flags, given = parse_flags(parser, arguments)

    from fastsmtp.config import write

    if given.example:
        print(write.example(), end="")
        return 0
    if given.markdown:
        print(write.markdown(), end="")
        return 0

    from fastsmtp.config.load import load

    loaded = load(flags, is_served=False)
    if given.json:
        import json

        print(json.dumps(write.as_json(loaded.config, loaded.provenance), indent=2, ensure_ascii=False))
    else:
        print(write.effective(loaded.config, loaded.provenance), end="")
        print(write.facts_behind(loaded), end="")
    return 0
