"""The measured tables of docs/measured.md, all by one command.

    python -m roads.benchmark.tables                # everything; what was measured before is kept
    python -m roads.benchmark.tables --tasks 1 --only blend

`jobs` is one measurement each, remembered in a folder; `edits`, `erasing`, `words` and `defaults`
are what is measured, `memory` how much it takes; `page` puts tables between the markers of the
page, so that no figure in it can be anything but what was measured.
"""
