"""Turns a restatement record into one commit: an account's usage, recounted in the periods of its late binding.

No usage of the account was counted after the record that began the restatement, so all values are absolute. The recount
has computed them without any code of the fold; this module only puts them in place.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec

from aggregators.bindings import apply, report_start_ms
from aggregators.codec import (
    CellKey,
    ReportKey,
    ReportValue,
    cell_field,
    cell_text,
    parse_report_text,
    report_field,
    report_text,
    value_text,
    version,
    void_text,
)
from aggregators.levels import HELD_UP_MS_MAX, due_again
from aggregators.steps import AccountControl
from schemas.aggregations import Value
from schemas.clock import HOUR_MS
from schemas.control import RestatementRecord
from schemas.meters import Policy
from schemas.periods import AccountState
from schemas.restatement import RestatementCell
from schemas.rollup import BucketField, Changes, Checkpoint, RankingKey, TotalKey, UniqueKey


def replaced_reports(step: AccountControl, policy: Policy, state: AccountState) -> list[BucketField]:
    """The report entries of the account's open report bucket that may contain usage in the old periods."""
    bucket_ms = report_start_ms(state, policy, step.stream_time_ms)
    return [
        BucketField(bucket_ms, report_field(ReportKey(start_ms, meter, step.control.account)))
        for start_ms, meters in step.content.replaced
        for meter in meters
    ]


def restatement_changes(
    moved: Checkpoint, policy: Policy, step: AccountControl, state: AccountState, reports: dict[BucketField, str]
) -> Changes:
    """The commit of a flush that consists of one restatement record. `moved` is the checkpoint after the record, and
    `reports` are the stored `replaced_reports`. If the account does not wait for this record, only the checkpoint
    moves."""
    control = step.control
    assert isinstance(control, RestatementRecord), "see `Flush.restatement`"  # noqa: S101 - an invariant, not input
    after = apply(state, control, step.position, policy, step.stream_time_ms)
    if after == state:
        return Changes(checkpoint=moved)
    changes = Changes(checkpoint=moved, accounts={control.account: after})
    carrying = {meter.slug for meter in moved.meter_set.meters if meter.carry_over} if moved.meter_set else set()
    if carrying:
        # A restatement that begins too often is given up, and the binding takes effect ahead: the period ends sooner.
        from_ms = step.stream_time_ms - HELD_UP_MS_MAX
        changes = changes._replace(levels=due_again(control.account, after, from_ms, policy, step.stream_time_ms))
    return changes if control.begins or control.declined else _placed(changes, step, policy, state, reports, carrying)


def _placed(
    changes: Changes,
    step: AccountControl,
    policy: Policy,
    state: AccountState,
    reports: dict[BucketField, str],
    carrying: AbstractSet[str],
) -> Changes:
    account, content, checkpoint = step.control.account, step.content, changes.checkpoint
    bucket_ms = report_start_ms(state, policy, step.stream_time_ms)
    cells = {_cell_key(account, cell): _cell_text(cell) for cell in content.cells}
    # The old totals begin anew at 0, so their entries in the open bucket have nothing to report.
    entries = {
        key: report_text(msgspec.structs.replace(parse_report_text(text), base_minor=0, current_minor=0))
        for key, text in reports.items()
    }
    totals: dict[TotalKey, dict[str, str]] = {}
    rankings: dict[RankingKey, dict[str, int]] = {}
    due: dict[TotalKey, int] = {}
    # Of the running period, the state after the record knows the end: another binding may have waited.
    levels = dict(changes.levels)
    for total in content.totals:
        key = TotalKey(account, total.period_start_ms)
        totals.setdefault(key, {})[total.meter] = value_text(
            Value(total.value_minor, total.latest_time_us, total.latest_position)
        )
        rankings.setdefault(RankingKey(total.meter, total.period_start_ms), {})[account] = total.value_minor
        due[key] = total.period_end_ms + policy.periods_kept_ms
        if total.meter in carrying:
            levels.setdefault(key, total.period_end_ms)
        if total.event_name:
            field = report_field(ReportKey(total.period_start_ms, total.meter, account))
            base_minor = total.value_minor - total.reported_minor
            entries[BucketField(bucket_ms, field)] = report_text(
                ReportValue(base_minor, total.value_minor, total.period_end_ms, total.scale, total.event_name)
            )
    return changes._replace(
        totals=totals,
        rankings=rankings,
        cells=cells,
        dirty=dict.fromkeys(cells, version(checkpoint.generation, step.position)),
        reports=entries,
        uniques={UniqueKey(account, item.meter, item.period_start_ms): item.members for item in content.distinct},
        due=due,
        replaced={TotalKey(account, start_ms): tuple(meters) for start_ms, meters in content.replaced},
        levels=levels,
    )


def _cell_key(account: str, cell: RestatementCell) -> BucketField:
    key = CellKey(cell.hour_ms, cell.period_start_ms, cell.meter, cell.dimensions, account)
    return BucketField(cell.arrival_bucket_ms // HOUR_MS * HOUR_MS, cell_field(key))


def _cell_text(cell: RestatementCell) -> str:
    if cell.period_end_ms == cell.period_start_ms:
        return void_text(cell.aggregation, cell.scale, cell.period_start_ms)
    value = Value(cell.value_minor, cell.latest_time_us, cell.latest_position)
    return cell_text(cell.aggregation, cell.scale, cell.period_end_ms, value)
