"""Entitlements computed from the mirror by SQL alone, for the reconciler (`schemas.entitlement_recount`).

The SQL shares nothing with `aggregators.account_grants` and `aggregators.entitlements`: it reads the tables and the
catalogs' JSON by itself, and knows one instant instead of segments. PostgreSQL only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DataError

from schemas.entitlement_recount import KeptFlag, LinkedCustomer, RecountedFeature
from sinks.sql.intents import Run

_ACCOUNTS: Final = text("""
SELECT account FROM accounts
WHERE account > :after AND EXISTS (SELECT FROM catalog_versions WHERE state = 'active')
ORDER BY account LIMIT :limit
""")
# What the accounts have bought at the instant: by price and quantity, then by plan.
_BOUGHT: Final = """
asked AS (
    SELECT account, entitled_seq <> audit_seq AS is_stale FROM accounts WHERE account = ANY(:accounts)
),
active AS (SELECT body::jsonb AS body FROM catalog_versions WHERE state = 'active'),
sold AS (SELECT plan, version, kind, body::jsonb AS body FROM plan_versions),
linked AS (
    SELECT DISTINCT ON (account) account, customer_id, starts_ms FROM account_customers
    WHERE account = ANY(:accounts) AND starts_ms <= :now
    ORDER BY account, starts_ms DESC
),
newest_case AS (
    SELECT DISTINCT ON (subscription_id) subscription_id, downgrade_ms, outcome FROM dunning_cases
    ORDER BY subscription_id, found_ms DESC, opened_ms DESC
),
withheld AS (
    SELECT subscription_id, COALESCE(downgrade_ms <= :now, FALSE) AS is_lost FROM newest_case
    WHERE outcome IS DISTINCT FROM 'written_off'
),
read AS (
    SELECT id, customer_id, deleted, start_ms, ended_ms, cancel_at_ms, trial_end_ms,
        CASE WHEN status = 'paused' AND pause_reason = 'trial_end_without_payment_method' THEN
                CASE WHEN w.is_lost THEN 'unpaid' ELSE 'canceled' END
            WHEN status = 'unpaid' OR status = 'paused' AND pause_reason = 'final_payment_failure' THEN
                CASE WHEN NOT w.is_lost THEN 'past_due' ELSE 'unpaid' END
            WHEN status IN ('active', 'trialing', 'past_due', 'canceled') AND w.is_lost THEN 'unpaid'
            WHEN status <> 'paused' THEN status
        END AS status,
        CASE WHEN status = 'paused' AND pause_reason = 'trial_end_without_payment_method' THEN trial_end_ms
        END AS paused_ms,
        (
            SELECT max((phase->>'end_ms')::bigint)
            FROM subscription_schedules c, jsonb_array_elements(c.phases_json::jsonb) AS phase
            WHERE c.subscription_id = s.id AND c.customer_id = s.customer_id AND c.end_behavior = 'cancel'
                AND c.status IN ('not_started', 'active') AND c.deleted IS DISTINCT FROM 1
        ) AS schedule_ends_ms
    FROM subscriptions s LEFT JOIN withheld w ON w.subscription_id = s.id
    WHERE customer_id IN (SELECT customer_id FROM linked)
),
subscribed AS (
    SELECT l.account, s.customer_id, s.id, s.trial_end_ms,
        s.status,
        GREATEST(COALESCE(s.start_ms, l.starts_ms), l.starts_ms) AS begins_ms
    FROM linked l JOIN read s ON s.customer_id = l.customer_id AND l.customer_id <> ''
    WHERE s.deleted IS DISTINCT FROM 1 AND COALESCE(s.start_ms <= :now, TRUE)
        AND COALESCE(LEAST(s.ended_ms, s.cancel_at_ms, s.schedule_ends_ms, s.paused_ms) > :now, TRUE)
        AND s.status IN ('active', 'trialing', 'past_due', 'canceled', 'unpaid')
),
phases AS (
    SELECT s.account, s.id, (phase->>'start_ms')::bigint AS starts_ms, phase->'prices' AS prices
    FROM subscribed s
    JOIN subscription_schedules c ON c.customer_id = s.customer_id AND c.subscription_id = s.id
        AND c.status IN ('not_started', 'active') AND c.deleted IS DISTINCT FROM 1,
    jsonb_array_elements(c.phases_json::jsonb) AS phase
    WHERE (phase->>'start_ms')::bigint > GREATEST(s.begins_ms, (
        SELECT max(i.period_start_ms) FROM subscription_items i WHERE i.subscription_id = s.id
    ))
),
phase AS (
    SELECT DISTINCT ON (account, id) * FROM phases WHERE starts_ms <= :now ORDER BY account, id, starts_ms DESC
),
items AS (
    SELECT s.account, s.id, s.begins_ms, i.price_id, i.quantity
    FROM subscribed s JOIN subscription_items i ON i.subscription_id = s.id
),
bought AS (
    SELECT * FROM items WHERE NOT EXISTS (SELECT FROM phase p WHERE (p.account, p.id) = (items.account, items.id))
    UNION ALL
    SELECT p.account, p.id, p.starts_ms, price->>'price', (price->>'quantity')::bigint
    FROM phase p, jsonb_array_elements(p.prices) AS price
),
pinned AS (
    SELECT b.*, v.plan, v.version, v.kind, o.component
    FROM bought b
    JOIN stripe_objects o ON o.kind = 'price' AND o.stripe_id = b.price_id
    JOIN sold v ON v.plan = o.plan AND v.version = o.plan_version
),
had AS (
    SELECT p.account, p.id, p.plan, p.version, p.kind, s.status, s.trial_end_ms, min(p.begins_ms) AS begins_ms,
        sum(COALESCE(p.quantity, 1)) AS times
    FROM pinned p JOIN subscribed s USING (account, id)
    GROUP BY p.account, p.id, p.plan, p.version, p.kind, s.status, s.trial_end_ms
),
unpaid AS (
    SELECT account FROM had WHERE status = 'unpaid'
    EXCEPT SELECT account FROM had WHERE status <> 'unpaid' AND kind = 'plan'
),
given AS (
    SELECT h.*, v.body FROM had h JOIN sold v USING (plan, version)
    WHERE h.status <> 'unpaid' AND h.account NOT IN (SELECT account FROM unpaid)
        OR h.kind = 'addon' AND h.account IN (SELECT account FROM unpaid)
            AND (SELECT body#>'{dunning,suspend_addons}' = 'false' FROM active)
),
riddles AS (
    SELECT account FROM items WHERE NOT EXISTS (SELECT FROM stripe_objects o WHERE o.stripe_id = items.price_id)
    UNION
    SELECT p.account FROM phases p, jsonb_array_elements(p.prices) AS price
    WHERE NOT EXISTS (SELECT FROM stripe_objects o WHERE o.stripe_id = price->>'price')
),
"""
# The grants of the catalog as JSON, then every grant with its place in the order of resolution.
_GRANTS: Final = """
plain AS (
    SELECT a.account, name AS plan, body#>>ARRAY['plans', name, 'version'] AS version,
        body#>ARRAY['plans', name] AS body
    FROM asked a, active, LATERAL (
        SELECT CASE WHEN a.account IN (SELECT account FROM unpaid) THEN body#>>'{dunning,fallback_plan}'
            WHEN a.account NOT IN (SELECT account FROM given WHERE kind = 'plan') THEN body#>>'{defaults,plan}'
        END AS name
    ) AS chosen
    WHERE name IS NOT NULL
),
written AS (
    SELECT p.account, 0 AS layer, e.key AS feature, e.value, 0 AS rank, p.plan || '@' || p.version AS source,
        0::bigint AS begins_ms, NULL::numeric AS paid, 1::numeric AS times
    FROM plain p, jsonb_each(p.body->'grants') AS e
    UNION ALL
    SELECT g.account, 0, e.key, e.value, (g.body->>'rank')::int, g.plan || '@' || g.version, g.begins_ms, (
        SELECT sum(COALESCE(p.quantity, 0)) FROM pinned p, jsonb_array_elements(g.body->'prices') AS line
        WHERE (p.account, p.id, p.plan, p.version) = (g.account, g.id, g.plan, g.version)
            AND line->>'component' = p.component AND line->>'quantity' = e.key
    ), 1
    FROM given g, jsonb_each(g.body->'grants') AS e WHERE g.kind = 'plan'
    UNION ALL
    SELECT g.account, 0, 'included:' || (line->>'meter'), COALESCE(g.body->'included'->(line->>'meter'), '0'::jsonb),
        0, '', 0, NULL, 1
    FROM given g, jsonb_array_elements(g.body->'prices') AS line WHERE g.kind = 'plan' AND line->>'meter' IS NOT NULL
    UNION ALL
    SELECT g.account, 1, e.key, e.value, 0, g.plan || '@' || g.version, g.begins_ms, NULL, 1
    FROM given g, jsonb_each(NULLIF(g.body->'trial', 'null'::jsonb)->'grants') AS e
    WHERE g.kind = 'plan' AND g.trial_end_ms > :now
    UNION ALL
    SELECT g.account, 2, e.key, e.value, 0, g.plan || '@' || g.version, g.begins_ms, NULL, g.times
    FROM given g, jsonb_each(g.body->'grants') AS e WHERE g.kind = 'addon' AND g.times > 0
),
grants AS (
    SELECT account, layer, feature, rank, source, begins_ms,
        CASE WHEN layer > 0 AND is_more THEN 'add' WHEN layer = 2 AND jsonb_typeof(value) <> 'object'
            THEN 'at_least' ELSE 'set' END AS operation,
        CASE WHEN jsonb_typeof(value) = 'boolean' THEN value::boolean END AS flag,
        CASE WHEN jsonb_typeof(value) = 'number' THEN value::numeric
            WHEN value = '"unlimited"' THEN 'Infinity' WHEN value = '"quantity"' THEN COALESCE(paid, 0)
            WHEN is_more THEN (value->'add')::numeric * times END AS number,
        CASE WHEN jsonb_typeof(value) = 'object' AND NOT is_more THEN value END AS config
    FROM written, LATERAL (SELECT value = jsonb_build_object('add', value->'add') AS is_more) m
    UNION ALL
    SELECT account, CASE kind WHEN 'promotion' THEN 2 WHEN 'contract' THEN 3 ELSE 4 END, feature, 0, source, starts_ms,
        operation,
        CASE WHEN value_json IN ('true', 'false') THEN value_json::boolean END,
        CASE WHEN value_json = '"unlimited"' THEN 'Infinity'
            WHEN value_json ~ '^"[0-9.]+"$' THEN trim('"' FROM value_json)::numeric END,
        CASE WHEN value_json LIKE '":%' THEN substr(value_json::jsonb#>>'{}', 2)::jsonb END
    FROM overrides
    WHERE account = ANY(:accounts) AND revoked_ms IS NULL AND starts_ms <= :now AND COALESCE(ends_ms > :now, TRUE)
),
"""
# The plans' values merged, then each other grant applied to what came out before it.
_RESOLVED: Final = """
features AS (
    SELECT e.key AS feature, e.value->>'type' AS type,
        COALESCE(e.value->>'merge', CASE e.value->>'type' WHEN 'flag' THEN 'any' ELSE 'first' END) AS merge
    FROM active, jsonb_each(body->'features') AS e
    UNION
    SELECT 'included:' || (line->>'meter'), 'limit', 'sum'
    FROM sold, jsonb_array_elements(body->'prices') AS line WHERE kind = 'plan' AND line->>'meter' IS NOT NULL
),
base AS (
    SELECT a.account, f.feature, f.type, 0::bigint AS step, COALESCE(bool_or(g.flag), FALSE) AS flag,
        COALESCE(CASE f.merge WHEN 'sum' THEN sum(g.number) ELSE max(g.number) END, 0) AS number,
        COALESCE((array_agg(g.config ORDER BY g.rank DESC, g.source COLLATE "C", g.begins_ms)
            FILTER (WHERE g.config IS NOT NULL))[1], 'null'::jsonb) AS config
    FROM asked a CROSS JOIN features f
    LEFT JOIN grants g ON (g.account, g.feature, g.layer) = (a.account, f.feature, 0)
    GROUP BY a.account, f.feature, f.type, f.merge
),
steps AS (
    SELECT *, row_number() OVER (
        PARTITION BY account, feature
        ORDER BY layer, array_position(ARRAY['set', 'add', 'at_least', 'at_most'], operation), begins_ms,
            source COLLATE "C"
    ) AS step
    FROM grants WHERE layer > 0 AND operation <> 'deny'
),
applied AS (
    SELECT * FROM base
    UNION ALL
    SELECT a.account, a.feature, a.type, s.step,
        CASE s.operation WHEN 'set' THEN s.flag WHEN 'at_most' THEN a.flag AND s.flag ELSE a.flag OR s.flag END,
        CASE s.operation WHEN 'set' THEN s.number WHEN 'add' THEN a.number + s.number
            WHEN 'at_least' THEN GREATEST(a.number, s.number) ELSE LEAST(a.number, s.number) END,
        CASE s.operation WHEN 'set' THEN s.config ELSE a.config END
    FROM applied a JOIN steps s ON (s.account, s.feature, s.step) = (a.account, a.feature, a.step + 1)
),
resolved AS (
    SELECT DISTINCT ON (a.account, a.feature) a.account, a.feature,
        CASE a.type WHEN 'flag' THEN (a.flag AND d.account IS NULL)::text
            WHEN 'config' THEN CASE WHEN d.account IS NULL THEN a.config::text ELSE 'null' END
            ELSE CASE WHEN d.account IS NOT NULL THEN '0' WHEN a.number = 'Infinity' THEN 'unlimited'
                ELSE trim_scale(a.number)::text END
        END AS value
    FROM applied a
    LEFT JOIN (SELECT DISTINCT account, feature FROM grants WHERE operation = 'deny') d USING (account, feature)
    ORDER BY a.account, a.feature, a.step DESC
),
"""
# The newest version's segment of the instant, beside it.
_NEWEST: Final = """
newest AS (
    SELECT a.account, n.version, segment->'features' AS features
    FROM asked a, LATERAL (
        SELECT version, segments_json FROM entitlement_versions e WHERE e.account = a.account
        ORDER BY version DESC LIMIT 1
    ) n, LATERAL (
        SELECT segment FROM jsonb_array_elements(n.segments_json::jsonb) AS segment
        WHERE (segment->>'from_ms')::numeric <= :now ORDER BY (segment->>'from_ms')::numeric DESC LIMIT 1
    ) s
),
"""
_COMPARED: Final = """
kept AS (
    SELECT account, key AS feature, CASE WHEN said LIKE ':%' THEN substr(said, 2)::jsonb::text
        WHEN said ~ '^[0-9.]+$' THEN trim_scale(said::numeric)::text ELSE said END AS value
    FROM newest, jsonb_each(features), LATERAL (SELECT value->>'value' AS said) v
)
SELECT account, feature, COALESCE(n.version, 0), r.value, k.value, a.is_stale,
    account IN (SELECT account FROM riddles) AS is_kept
FROM resolved r FULL JOIN kept k USING (account, feature)
JOIN asked a USING (account) LEFT JOIN newest n USING (account)
ORDER BY account, feature
"""
_HAS_FEATURES: Final = text("""
SELECT EXISTS (
    SELECT FROM catalog_versions, jsonb_each(body::jsonb->'features') AS e
    WHERE state = 'active' AND e.value->>'stripe_feature' IS NOT NULL
)
""")
_LINKED: Final = text("""
SELECT a.account, l.customer_id, v.computed_ms, EXISTS (
    SELECT FROM subscriptions s
    WHERE s.customer_id = l.customer_id AND s.status = 'paused' AND s.deleted IS DISTINCT FROM 1
)
FROM accounts a, LATERAL (
    SELECT customer_id FROM account_customers c WHERE c.account = a.account AND c.starts_ms <= :now
    ORDER BY starts_ms DESC LIMIT 1
) l, LATERAL (
    SELECT computed_ms FROM entitlement_versions e WHERE e.account = a.account ORDER BY version DESC LIMIT 1
) v
WHERE a.account > :after AND l.customer_id <> ''
ORDER BY a.account LIMIT :limit
""")
_FLAGS: Final = text(f"""
WITH asked AS (SELECT account FROM accounts WHERE account = ANY(:accounts)),
{_NEWEST}
known AS (
    SELECT e.key AS feature, e.value->>'stripe_feature' AS lookup_key
    FROM catalog_versions, jsonb_each(body::jsonb->'features') AS e
    WHERE state = 'active' AND e.value->>'stripe_feature' IS NOT NULL
)
SELECT n.account, k.lookup_key, COALESCE(found->'value' = 'true', FALSE), EXISTS (
    SELECT FROM jsonb_array_elements(found->'gives') AS give
    WHERE found->'value' = 'true' AND give->>0 IN ('plan', 'addon') AND give->3 = 'true'
), EXISTS (
    SELECT FROM jsonb_array_elements(found->'gives') AS give WHERE give->>0 IN ('override', 'contract', 'promotion')
)
FROM newest n CROSS JOIN known k, LATERAL (SELECT n.features->k.feature AS found) f
ORDER BY n.account, k.lookup_key
""")  # noqa: S608  # texts of ours
_RECOUNT: Final = text(f"WITH RECURSIVE {_BOUGHT}{_GRANTS}{_RESOLVED}{_NEWEST}{_COMPARED}")


class SqlEntitlementRecount:
    """Implements `schemas.entitlement_recount.EntitlementRecount`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def accounts(self, after: str = "", limit: int = 200) -> Sequence[str]:
        values = {"after": after, "limit": limit}
        return await self._run(lambda connection: list(connection.execute(_ACCOUNTS, values).scalars()))

    async def recount(self, accounts: Sequence[str], now_ms: int) -> Sequence[RecountedFeature]:
        rows = await self._rows(_RECOUNT, {"accounts": list(accounts), "now": now_ms})
        return [RecountedFeature(*row) for row in rows]

    async def has_stripe_features(self) -> bool:
        return bool((await self._rows(_HAS_FEATURES, {}))[0][0])

    async def linked(self, now_ms: int, after: str = "", limit: int = 200) -> Sequence[LinkedCustomer]:
        rows = await self._rows(_LINKED, {"now": now_ms, "after": after, "limit": limit})
        return [LinkedCustomer(*row) for row in rows]

    async def flags(self, accounts: Sequence[str], now_ms: int) -> Sequence[KeptFlag]:
        return [KeptFlag(*row) for row in await self._rows(_FLAGS, {"accounts": list(accounts), "now": now_ms})]

    async def _rows(self, wanted: TextClause, values: Mapping[str, object]) -> Sequence[Any]:
        def body(connection: Connection) -> Sequence[Any]:
            return connection.execute(wanted, values).all()

        try:
            return await self._run(body)
        except DataError as error:
            raise ValueError(str(error.orig)) from error
