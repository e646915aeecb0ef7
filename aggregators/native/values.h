/* Values of an event that are taken here: instants, plain decimals, texts. Each function answers
   0 for anything else, which Python then judges. */
#ifndef TIDEMARK_VALUES_H
#define TIDEMARK_VALUES_H

#include "event.h"

#define QUANTITY_MINOR_MAX 999999999999999999LL
#define DIMENSION_CHARACTERS_MAX 256

static int64_t two(const uint8_t *p) { return (p[0] - '0') * 10 + (p[1] - '0'); }

static int64_t days_from_civil(int64_t year, int64_t month, int64_t day) { /* see aggregators/instants.py */
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int has_digits(const uint8_t *p, int count) {
    while (count && is_digit(*p)) p++, count--;
    return !count;
}

/* What follows the seconds: a fraction of up to nine digits, of which six count, and Z or an offset. */
static int rest_us(const uint8_t *p, const uint8_t *end, int64_t *us) {
    int64_t unit = 100000;
    *us = 0;
    if (*p == '.') {
        const uint8_t *first = ++p;
        for (; p < end && p - first < 9 && is_digit(*p); p++, unit /= 10) *us += unit * (*p - '0');
        if (p == first) return 0;
    }
    if (end - p == 1) return *p == 'Z';
    if (end - p != 6 || (*p != '+' && *p != '-') || p[3] != ':' || !has_digits(p + 1, 2) || !has_digits(p + 4, 2))
        return 0;
    int64_t hour = two(p + 1), minute = two(p + 4), offset_us = (hour * 60 + minute) * 60000000;
    *us += *p == '+' ? -offset_us : offset_us;
    return hour <= 23 && minute <= 59;
}

/* An instant of RFC 3339 in the years 1970 to 9998, in capitals: 2026-11-21T10:00:00Z, with a fraction or an offset. */
static int instant_us(const Span *span, int64_t *us) {
    static const uint8_t DAYS[13] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const uint8_t *p = span->at;
    int64_t rest;
    if (span->kind != STRING || span->len < 20 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':'
        || p[16] != ':') return 0;
    if (!has_digits(p, 4) || !has_digits(p + 5, 2) || !has_digits(p + 8, 2) || !has_digits(p + 11, 2)
        || !has_digits(p + 14, 2) || !has_digits(p + 17, 2)) return 0;
    int64_t year = two(p) * 100 + two(p + 2), month = two(p + 5), day = two(p + 8);
    int64_t hour = two(p + 11), minute = two(p + 14), second = two(p + 17);
    if (year < 1970 || year > 9998 || month < 1 || month > 12 || day < 1) return 0;
    if (hour > 23 || minute > 59 || second > 59) return 0;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > DAYS[month] + (month == 2 && leap) || !rest_us(p + 19, p + span->len, &rest)) return 0;
    int64_t hours = days_from_civil(year, month, day) * 24 + hour;
    *us = ((hours * 60 + minute) * 60 + second) * 1000000 + rest;
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
