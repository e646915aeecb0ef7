"""A restatement record as one commit: an account's usage before its late binding, put into the periods of that binding.

Nothing of the account was counted since the record that began the restatement, so every value is said absolutely. What
its events gave to meters was worked out by the recount, which shares no code with the fold; here it is only put in
place.
"""

from __future__ import annotations

import msgspec

from aggregators.bindings import apply
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
from aggregators.scan import Scan
from aggregators.steps import AccountControl
from schemas.aggregations import Value
from schemas.clock import HOUR_MS
from schemas.control import RestatementRecord
from schemas.meters import Policy
from schemas.periods import AccountState
from schemas.restatement import RestatementCell
from schemas.rollup import BucketField, Changes, Checkpoint, RankingKey, TotalKey, UniqueKey


def restatement_of(scan: Scan) -> AccountControl | None:
    """The restatement that a scan consists of, or None."""
    step = scan.steps[0] if scan.steps else None
    return step if isinstance(step, AccountControl) and isinstance(step.control, RestatementRecord) else None


def replaced_reports(step: AccountControl, policy: Policy) -> list[BucketField]:
    """The report entries of the open bucket that may hold usage in periods of the old cut."""
    bucket_ms = policy.report_bucket_ms(step.stream_time_ms)
    return [
        BucketField(bucket_ms, report_field(ReportKey(start_ms, meter, step.control.account)))
        for start_ms, meters in step.content.replaced
        for meter in meters
    ]


def restatement_changes(
    checkpoint: Checkpoint, scan: Scan, step: AccountControl, state: AccountState, reports: dict[BucketField, str]
) -> Changes:
    """The commit of a flush that consists of one restatement record. `reports` holds what is there of
    `replaced_reports`.

    Where the account does not wait for it, only the checkpoint moves on.
    """
    policy = scan.policies[min(scan.policies)]
    moved = msgspec.structs.replace(
        checkpoint,
        next_offset=scan.next_offset,
        stream_time_ms=scan.state.stream_time_ms,
        meter_set=scan.state.meter_set,
    )
    control = _record(step)
    after = apply(state, control, step.position, policy, step.stream_time_ms)
    if after == state:
        return Changes(checkpoint=moved)
    if control.declined or control.begins:
        return Changes(checkpoint=moved, accounts={control.account: after})
    return _placed(moved, step, policy, reports)._replace(accounts={control.account: after})


def _placed(checkpoint: Checkpoint, step: AccountControl, policy: Policy, reports: dict[BucketField, str]) -> Changes:
    account, content, made = step.control.account, step.content, version(checkpoint.generation, step.position)
    cells = {_cell_key(account, each): _cell_text(each) for each in content.cells}
    # The open bucket's entries of the old cut tell nothing any more.
    told = {key: report_text(_nothing(parse_report_text(text))) for key, text in reports.items()}
    totals: dict[TotalKey, dict[str, str]] = {}
    rankings: dict[RankingKey, dict[str, int]] = {}
    due: dict[TotalKey, int] = {}
    for each in content.totals:
        key = TotalKey(account, each.period_start_ms)
        totals.setdefault(key, {})[each.meter] = value_text(
            Value(each.value_minor, each.latest_time_us, each.latest_position)
        )
        rankings.setdefault(RankingKey(each.meter, each.period_start_ms), {})[account] = each.value_minor
        due[key] = each.period_end_ms + policy.periods_kept_ms
        if each.event_name:
            field = report_field(ReportKey(each.period_start_ms, each.meter, account))
            base_minor = each.value_minor - each.reported_minor
            told[BucketField(policy.report_bucket_ms(step.stream_time_ms), field)] = report_text(
                ReportValue(base_minor, each.value_minor, each.period_end_ms, each.scale, each.event_name)
            )
    return Changes(
        checkpoint=checkpoint,
        totals=totals,
        rankings=rankings,
        cells=cells,
        dirty=dict.fromkeys(cells, made),
        reports=told,
        uniques={UniqueKey(account, each.meter, each.period_start_ms): each.members for each in content.distinct},
        due=due,
        replaced={TotalKey(account, start_ms): tuple(meters) for start_ms, meters in content.replaced},
    )


def _record(step: AccountControl) -> RestatementRecord:
    assert isinstance(step.control, RestatementRecord), "the caller looked"  # noqa: S101 - an invariant, not input
    return step.control


def _nothing(held: ReportValue) -> ReportValue:
    """An entry of a total that begins anew: what comes to it in this bucket is all there is to tell."""
    return msgspec.structs.replace(held, base_minor=0, current_minor=0)


def _cell_key(account: str, cell: RestatementCell) -> BucketField:
    key = CellKey(cell.hour_ms, cell.period_start_ms, cell.meter, cell.dimensions, account)
    return BucketField(cell.arrival_bucket_ms // HOUR_MS * HOUR_MS, cell_field(key))


def _cell_text(cell: RestatementCell) -> str:
    if cell.period_end_ms == cell.period_start_ms:
        return void_text(cell.aggregation, cell.scale, cell.period_start_ms)
    value = Value(cell.value_minor, cell.latest_time_us, cell.latest_position)
    return cell_text(cell.aggregation, cell.scale, cell.period_end_ms, value)
