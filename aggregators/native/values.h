/* Values of an event that are taken here: instants of the two usual shapes, plain decimals, texts. Each function answers
   0 for anything else, which Python then judges. */
#ifndef TIDEMARK_VALUES_H
#define TIDEMARK_VALUES_H

#include "event.h"

#define QUANTITY_MINOR_MAX 999999999999999999LL
#define DIMENSION_CHARACTERS_MAX 256

static int64_t two(const uint8_t *p) { return (p[0] - '0') * 10 + (p[1] - '0'); }

static int64_t days_from_civil(int64_t year, int64_t month, int64_t day) { /* from 1970 on, see aggregators/instants.py */
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* 2026-11-21T10:00:00Z or 2026-11-21T10:00:00.000Z, from 1970 on. */
static int instant_us(const Span *span, int64_t *us) {
    static const uint8_t PLACES[14] = {0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18};
    static const uint8_t DAYS[13] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const uint8_t *p = span->at;
    if (span->kind != STRING || (span->len != 20 && span->len != 24) || p[span->len - 1] != 'Z') return 0;
    if (p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':') return 0;
    for (int i = 0; i < 14; i++) if (!is_digit(p[PLACES[i]])) return 0;
    int64_t millisecond = 0;
    if (span->len == 24) {
        if (p[19] != '.' || !is_digit(p[20]) || !is_digit(p[21]) || !is_digit(p[22])) return 0;
        millisecond = (p[20] - '0') * 100 + two(p + 21);
    }
    int64_t year = two(p) * 100 + two(p + 2), month = two(p + 5), day = two(p + 8);
    int64_t hour = two(p + 11), minute = two(p + 14), second = two(p + 17);
    if (year < 1970 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59) return 0;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > DAYS[month] + (month == 2 && leap)) return 0;
    int64_t hours = days_from_civil(year, month, day) * 24 + hour;
    *us = ((hours * 60 + minute) * 60 + second) * 1000000 + millisecond * 1000;
    return 1;
}

/* A number or a text that is a decimal of up to 18 digits, times 10^scale. */
static int minor_of(const Span *span, int scale, int negative, int64_t *minor) {
    if (span->kind != INTEGER && span->kind != DECIMAL && span->kind != STRING) return 0;
    if (span->len < 1 || span->len > DIGITS_MAX + 2) return 0;
    const uint8_t *p = span->at, *end = p + span->len;
    int minus = *p == '-', whole = 0, fraction = 0;
    if (minus && (!negative || ++p == end)) return 0;
    if (*p == '0' && end - p > 1 && p[1] != '.') return 0;
    int64_t found = 0;
    for (; p < end && is_digit(*p); p++) {
        if (++whole > DIGITS_MAX) return 0;
        found = found * 10 + (*p - '0');
    }
    if (!whole) return 0;
    if (p < end) {
        if (*p++ != '.' || p == end) return 0;
        for (; p < end && is_digit(*p); p++) {
            if (fraction == scale) {
                if (*p != '0') return 0;
                continue;
            }
            fraction++;
            if (whole + fraction > DIGITS_MAX) return 0;
            found = found * 10 + (*p - '0');
        }
        if (p != end) return 0;
    }
    for (; fraction < scale; fraction++) {
        if (found > QUANTITY_MINOR_MAX / 10) return 0;
        found *= 10;
    }
    if (found > QUANTITY_MINOR_MAX || (minus && !found)) return 0;
    *minor = minus ? -found : found;
    return 1;
}

/* A scalar as a text, for dimensions, filters and distinct values. A missing value is the empty text. */
static int text_of(const Span *span, Span *text) {
    *text = *span;
    switch (span->kind) {
    case ABSENT: case NOTHING: text->len = 0; return 1;
    case TRUE: case FALSE: return 1;
    case INTEGER: return !is(span, "-0", 2);
    default: return is_text(span, DIMENSION_CHARACTERS_MAX);
    }
}

#endif
