/* JSON by a strict grammar. Where the grammar does not hold, or where the text is deeper or longer than is looked at
   here, the answer is NULL: the Python columns take the whole record. */
#ifndef TIDEMARK_JSON_H
#define TIDEMARK_JSON_H

#include "bytes.h"

#define DEPTH_MAX 64
/* Python refuses to read a number of several thousand digits. */
#define NUMBER_BYTES_MAX 300
#define DIGITS_MAX 18
#define FIELDS_MAX 64

static const uint8_t *space(const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) p++;
    return p;
}

#define ONES 0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL
#define HAS_ZERO(word) (((word) - ONES) & ~(word) & HIGHS)

/* The first byte that ends the plain part of a string: a quote, a backslash or a control character. */
static const uint8_t *plain(const uint8_t *p, const uint8_t *end) {
    while (end - p >= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        uint64_t controls = (word - ONES * 0x20) & ~word & HIGHS;
        if (controls | HAS_ZERO(word ^ ONES * '"') | HAS_ZERO(word ^ ONES * '\\')) break;
        p += 8;
    }
    while (p < end && *p >= 0x20 && *p != '"' && *p != '\\') p++;
    return p;
}

/* `p` is after the backslash. */
static const uint8_t *escape(const uint8_t *p, const uint8_t *end, Span *span) {
    if (p >= end) return NULL;
    switch (*p) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't': return p + 1;
    case 'u': break;
    default: return NULL;
    }
    if (end - p < 5) return NULL;
    unsigned value = 0;
    for (int i = 1; i < 5; i++) {
        uint8_t lower = p[i] | 32;
        if (is_digit(p[i])) value = value << 4 | (unsigned)(p[i] - '0');
        else if (lower >= 'a' && lower <= 'f') value = value << 4 | (unsigned)(lower - 'a' + 10);
        else return NULL;
    }
    if (value >= 0xD800 && value < 0xE000) span->kind = STRANGE;
    return p + 5;
}

/* `p` is after the opening quote. */
static const uint8_t *string(const uint8_t *p, const uint8_t *end, Span *span) {
    span->at = p;
    span->kind = STRING;
    for (;;) {
        p = plain(p, end);
        if (p >= end || *p < 0x20) return NULL;
        if (*p == '"') {
            span->len = (int32_t)(p - span->at);
            return p + 1;
        }
        if (span->kind == STRING) span->kind = ESCAPED;
        if (!(p = escape(p + 1, end, span))) return NULL;
    }
}

static const uint8_t *digits(const uint8_t *p, const uint8_t *end) {
    while (p < end && is_digit(*p)) p++;
    return p;
}

static const uint8_t *number(const uint8_t *p, const uint8_t *end, Span *span) {
    const uint8_t *start = p, *first;
    span->at = p;
    span->kind = INTEGER;
    if (p < end && *p == '-') p++;
    first = p;
    p = digits(p, end);
    if (p == first || (*first == '0' && p - first > 1)) return NULL;
    if (p < end && *p == '.') {
        span->kind = DECIMAL;
        first = ++p;
        p = digits(p, end);
        if (p == first) return NULL;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        span->kind = STRANGE;
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        first = p;
        p = digits(p, end);
        if (p == first) return NULL;
    }
    span->len = (int32_t)(p - start);
    if (span->len > NUMBER_BYTES_MAX) span->kind = STRANGE;
    else if (span->len > DIGITS_MAX + 1 && span->kind != STRANGE) span->kind = LONG;
    return p;
}

static const uint8_t *word(const uint8_t *p, const uint8_t *end, Span *span, const char *text, int32_t len, int kind) {
    if (end - p < len || memcmp(p, text, (size_t)len)) return NULL;
    span->at = p;
    span->len = len;
    span->kind = kind;
    return p + len;
}

/* `p` is at the key's quote; the answer is at the value. */
static const uint8_t *key_at(const uint8_t *p, const uint8_t *end, Span *key) {
    if (p >= end || *p != '"' || !(p = string(p + 1, end, key))) return NULL;
    p = space(p, end);
    return p < end && *p == ':' ? space(p + 1, end) : NULL;
}

static const uint8_t *value(const uint8_t *p, const uint8_t *end, Span *span, int depth) {
    if (p >= end || depth > DEPTH_MAX) return NULL;
    switch (*p) {
    case '"': return string(p + 1, end, span);
    case 't': return word(p, end, span, "true", 4, TRUE);
    case 'f': return word(p, end, span, "false", 5, FALSE);
    case 'n': return word(p, end, span, "null", 4, NOTHING);
    case '{': case '[': break;
    default: return number(p, end, span);
    }
    const uint8_t *start = p;
    int object = *p == '{', strange = 0;
    uint8_t close = object ? '}' : ']';
    Span inner;
    p = space(p + 1, end);
    if (p >= end || *p != close) {
        for (;;) {
            if (object && !(p = key_at(p, end, &inner))) return NULL;
            strange |= object && inner.kind == STRANGE;
            if (!(p = value(p, end, &inner, depth + 1))) return NULL;
            strange |= inner.kind == STRANGE;
            p = space(p, end);
            if (p >= end) return NULL;
            if (*p == close) break;
            if (*p != ',') return NULL;
            p = space(p + 1, end);
        }
    }
    span->at = start;
    span->len = (int32_t)(p + 1 - start);
    span->kind = strange ? STRANGE : object ? OBJECT : LIST;
    return p + 1;
}

/* The value of a key of an object that `value` has read; of equal keys the last. The kind is ABSENT where there is no
   such key, and 0 is returned where a key has escapes: it may be the one. */
static int member(const Span *object, const Span *wanted, Span *found) {
    const uint8_t *end = object->at + object->len, *p = space(object->at + 1, end);
    Span key, each;
    found->kind = ABSENT;
    while (p && p < end && *p != '}') {
        if (!(p = key_at(p, end, &key)) || key.kind != STRING || !(p = value(p, end, &each, 0))) return 0;
        if (same(&key, wanted)) *found = each;
        p = space(p, end);
        if (p < end && *p == ',') p = space(p + 1, end);
    }
    return 1;
}

#endif
